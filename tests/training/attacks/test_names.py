"""What attacks' names mean, and that the wrong ones end in one sentence."""

import pytest

from bundle.errors import OptionError
from training.attacks.loop import Attack
from training.attacks.names import attack_named, check_attacks
from training.run import Run


def test_names_carry_the_papers_numbers():
    assert attack_named("pgd10-2") == Attack(name="pgd10-2", eps=2 / 255, steps=10, step=1 / 255, random_start=True)
    assert attack_named("pgd10-8").step == pytest.approx(2 / 255)
    assert attack_named("bim10-8") == Attack(name="bim10-8", eps=8 / 255, steps=10, step=8 / 255 / 10)
    assert attack_named("mim10-8").momentum == 1.0
    assert attack_named("rfgsm-8") == Attack(name="rfgsm-8", eps=8 / 255, steps=1, step=8 / 255, random_start=True)
    assert (attack_named("pgd100x10-8").steps, attack_named("pgd100x10-8").restarts) == (100, 10)
    assert attack_named("fgsm-2") == Attack(name="fgsm-2", eps=2 / 255, steps=1, step=2 / 255)


@pytest.mark.parametrize(
    "name",
    ["", "pgd", "pgd10", "cw10-8", "pgd10-8.5", "PGD10-8", "fgsm3-8", "pgd0-8", "pgd10-256", "pgd10x0-8", "bim10x3-8"],
)
def test_bad_names_are_one_sentence(name):
    with pytest.raises(OptionError, match="attack"):
        attack_named(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pgd10-8@nowhere", r"source 'nowhere'.*Sources: twin"),
        ("autoattack", "unknown attack"),
        ("autoattack-8", "at least 4 classes"),
        ("apgd-8", "at least 4 classes"),
        ("autoattack-8@twin", "at least 4 classes"),
        ("pgd-", "METHOD"),
        ("pgd10-8@", "source ''"),
        ("pgd10-8:hinge", "losses: ce, margin, dlr"),
        ("autoattack-8:margin", "unknown attack"),
        ("autoattack-8:random", "unknown attack"),
        ("pgd10-8:random:ce", "targets: random, runner-up, least-likely"),
        ("pgd10-8:", "no loss and no target by ''"),
    ],
)
def test_names_that_mean_nothing_are_one_sentence(tiny_run, substitute, name, message):
    _, network = Run(tiny_run).load_network()
    with pytest.raises(OptionError, match=message):
        check_attacks(("clean", name), {"twin": substitute.load_network()[1]}, network)


@pytest.mark.parametrize("name", ["autoattack-256", "pgd10-256", "pgd10-08", "pgd10-\u0668", "pgd10-" + "9" * 5000])
def test_eps_is_a_plain_number_up_to_255(untrained, name):
    with pytest.raises(OptionError, match=r"outside \[0, 1\]|unknown attack"):
        check_attacks((name,), {}, untrained)
