"""Accuracy under attack, image by image: transfer, AutoAttack, the worst of all, and names that mean nothing."""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from bundle.errors import OptionError
from robustness.accuracy import PAPER, evaluate_run, show
from robustness.cli import app
from training.adversaries import attack_pixels, check_attacks, open_sources
from training.attack_losses import LOSSES, cross_entropy, judge_of, losses_against, margin, targets_of
from training.attacks import attack_named, run_attack
from training.autoattack import HeadLogits, auto_attack
from training.data import open_dataset
from training.fit import Trainer
from training.networks import Network, NetworkConfig
from training.parallel import Devices
from training.run import Run


@pytest.fixture(scope="module")
def substitute(tiny_birds, tiny_config, tmp_path_factory):
    """A plain network on the same data."""
    run = Run(tmp_path_factory.mktemp("substitute") / "run")
    config = replace(tiny_config, system="gap", preset="gap-small", epochs=2)
    data = open_dataset(tiny_birds, seed=3)
    Trainer(run, data, config, Devices(accelerator="cpu"), Console(quiet=True)).fit(resume=False)
    return run


@pytest.fixture
def untrained():
    torch.manual_seed(0)
    config = NetworkConfig(backbone="small", classes=5, prototypes_per_class=2, prototype_channels=8)
    return Network(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def evaluated(tiny_run, tiny_birds, substitute):
    record, network = Run(tiny_run).load_network()
    return evaluate_run(
        record,
        network,
        tiny_birds,
        attacks=(*PAPER, "pgd10-8@twin"),
        sources={"twin": substitute.load_network()[1]},
        part="test",
        count=9,
        autoattack_count=4,
        seed=0,
    )


def test_every_column_is_there_for_every_image_and_head(evaluated):
    assert set(evaluated["right"]) == {"full", "attention"}
    for answers in evaluated["right"].values():
        assert list(answers) == [*PAPER, "pgd10-8@twin", "worst"]
        assert {len(text) for text in answers.values()} == {9}
    assert len(evaluated["images"]) == 9
    assert evaluated["autoattack_images"] == []  # three classes are too few for it
    assert evaluated["not_measured"] == ["not measured: AutoAttack needs four classes"]


def test_the_worst_case_is_right_only_where_every_attack_is(evaluated):
    for answers in evaluated["right"].values():
        columns = [text for name, text in answers.items() if name != "worst"]
        assert answers["worst"] == "".join("01"[all(bit == "1" for bit in bits)] for bits in zip(*columns, strict=True))


def test_a_transferred_attack_is_made_on_the_source_and_judged_on_the_network(
    tiny_run, substitute, evaluated, tiny_birds
):
    _, network = Run(tiny_run).load_network()
    source = substitute.load_network()[1]
    pixels, labels = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2])
    attacked = attack_pixels(
        "bim10-8@twin", network, "full", pixels, labels, torch.Generator().manual_seed(0), {"twin": source}
    )
    expected = run_attack(attack_named("bim10-8"), losses_against(source, "pooled")[0], pixels, labels)
    torch.testing.assert_close(attacked, expected)
    mine = run_attack(attack_named("bim10-8"), losses_against(network, "full")[0], pixels, labels)
    assert not torch.equal(attacked, mine)


def test_an_attack_raises_the_loss_it_names(tiny_run):
    _, network = Run(tiny_run).load_network()
    pixels, labels, made = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2]), {}
    for name, loss in (("bim10-8", cross_entropy), ("bim10-8:ce", cross_entropy), ("bim10-8:margin", margin)):
        made[name] = attack_pixels(name, network, "attention", pixels, labels, torch.Generator())
        losses = losses_against(network, "attention", loss)
        torch.testing.assert_close(made[name], run_attack(attack_named("bim10-8"), losses[0], pixels, labels))
    assert torch.equal(made["bim10-8"], made["bim10-8:ce"])
    assert not torch.equal(made["bim10-8"], made["bim10-8:margin"])


@pytest.mark.parametrize("head", ["full", "attention"])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_a_targeted_attack_comes_closer_to_its_target(untrained, head, loss):
    torch.manual_seed(3)
    pixels = torch.rand(6, 3, 32, 32)
    with torch.no_grad():
        logits = untrained(pixels, head).logits[head]
    labels = logits.argmax(1)
    targets = targets_of("least-likely", logits, labels, torch.Generator())
    attacked = attack_pixels(f"bim20-32:{loss}:least-likely", untrained, head, pixels, labels, torch.Generator())
    with torch.no_grad():
        after = untrained(attacked, head).logits[head]
    assert (LOSSES[loss](after, targets) < LOSSES[loss](logits, targets)).all()
    assert ((attacked - pixels).abs() <= 32 / 255 + 1e-6).all()
    own = attack_pixels(f"bim20-32:{loss}", untrained, head, pixels, labels, torch.Generator())
    assert not torch.equal(attacked, own)


def test_autoattack_stays_in_the_ball_and_leaves_less_standing_than_nothing(untrained):
    torch.manual_seed(1)
    pixels = torch.rand(6, 3, 32, 32)
    labels = untrained(pixels).logits["attention"].argmax(1)
    attacked = auto_attack(untrained, "attention", pixels, labels, eps=8 / 255, seed=0)
    assert (attacked >= (pixels - 8 / 255).clamp(0, 1)).all()
    assert (attacked <= (pixels + 8 / 255).clamp(0, 1)).all()
    with torch.no_grad():
        assert not judge_of(untrained, "attention")(attacked, labels).all()
        torch.testing.assert_close(HeadLogits(untrained, "attention")(pixels), untrained(pixels).logits["attention"])
    again = auto_attack(untrained, "attention", pixels, labels, eps=8 / 255, seed=0)
    assert torch.equal(attacked, again)
    assert torch.equal(auto_attack(untrained, "full", pixels, labels, eps=0.0, seed=0), pixels)


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


def test_apgd_runs_the_two_gradient_attacks_of_the_suite_and_nothing_else(untrained, monkeypatch):
    import pyautoattack.autoattack as library

    def never(*_, **__):
        raise AssertionError("not one of the two")

    monkeypatch.setattr(library.FABAttack_PT, "perturb", never)
    monkeypatch.setattr(library.SquareAttack, "perturb", never)
    torch.manual_seed(1)
    pixels = torch.rand(2, 3, 32, 32)
    labels = untrained(pixels).logits["attention"].argmax(1)
    made = attack_pixels("apgd-8", untrained, "attention", pixels, labels, torch.Generator().manual_seed(0))
    assert ((made - pixels).abs() <= 8 / 255 + 1e-7).all()
    plain = attack_pixels("pgd10-8", untrained, "attention", pixels, labels, torch.Generator().manual_seed(0))
    judge = judge_of(untrained, "attention")
    with torch.no_grad():
        assert judge(made, labels).sum() <= judge(plain, labels).sum()
    with pytest.raises(AssertionError, match="not one of the two"):
        attack_pixels("autoattack-1", untrained, "attention", pixels, labels, torch.Generator())


def test_autoattack_hands_out_no_clean_image_as_attacked(untrained):
    """Also where it has nothing to do: images that are answered wrongly from the start, and survivors."""
    torch.manual_seed(1)
    pixels = torch.rand(6, 3, 32, 32)
    right = untrained(pixels).logits["attention"].argmax(1)
    labels = torch.cat([right[:3], (right[3:] + 1) % 5])
    made = attack_pixels("autoattack-1", untrained, "attention", pixels, labels, torch.Generator().manual_seed(0))
    judge = judge_of(untrained, "attention")
    with torch.no_grad():
        assert not judge(made[3:], labels[3:]).any()
    untouched = (made == pixels).flatten(1).all(1)
    assert not untouched[:3].any()
    assert ((made - pixels).abs() <= 1 / 255 + 1e-7).all()


def test_autoattack_as_a_column_runs_once_on_all_images(tiny_birds, tiny_config, tmp_path):
    from training.data.cub_writer import Recipe, write_birds

    birds = tmp_path / "birds"
    write_birds(birds, Recipe(species=4, size=32, images_train=12, images_test=2, seed=1), workers=1)
    run, data = Run(tmp_path / "run"), open_dataset(birds, seed=3)
    config = replace(tiny_config, system="ap", preset="ap-small", epochs=1)
    Trainer(run, data, config, Devices(accelerator="cpu"), Console(quiet=True)).fit(resume=False)
    options = {"sources": {}, "part": "test", "count": 6, "seed": 0}
    record, network = run.load_network()
    names = ("autoattack-8", "fgsm-8")
    found = evaluate_run(record, network, birds, attacks=names, autoattack_count=3, **options)
    assert {name: len(text) for name, text in found["right"]["attention"].items()} == dict.fromkeys(
        ("clean", *names, "worst"), 6
    )
    found = evaluate_run(record, network, birds, attacks=("fgsm-8",), autoattack_count=3, **options)
    assert len(found["right"]["attention"]["autoattack-8"]) == len(found["autoattack_images"]) == 3
    assert found["not_measured"] == []


def test_sources_must_take_the_same_images_and_know_the_same_classes(tiny_run, substitute):
    record, _ = Run(tiny_run).load_network()
    assert set(open_sources((f"twin={substitute.path}",), record)) == {"twin"}
    for change in ({"labels": ("a", "b", "c")}, {"config": replace(record.config, image_size=48)}):
        with pytest.raises(OptionError, match="takes other images or knows other classes"):
            open_sources((f"twin={substitute.path}",), replace(record, **change))
    with pytest.raises(OptionError, match="two sources are named 'twin'"):
        open_sources((f"twin={substitute.path}",) * 2, record)
    for text in ("twin", "=run", "a@b=run"):
        with pytest.raises(OptionError, match="is not NAME=RUN"):
            open_sources((text,), record)


def test_the_verb_prints_a_table_and_writes_every_answer(tiny_run, tiny_birds, substitute, tmp_path):
    out = tmp_path / "evaluation.json"
    arguments = ["evaluate", str(tiny_run), "--data", str(tiny_birds), "--count", "6", "--attacks", "fgsm-8"]
    done = CliRunner().invoke(app, [*arguments, "--source", f"twin={substitute.path}", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "fgsm-8" in done.output
    assert "not measured: AutoAttack needs four classes" in done.output
    written = json.loads(out.read_text())
    assert list(written["right"]["full"]) == ["clean", "fgsm-8", "worst"]


def test_the_table_shows_shares_with_their_intervals(evaluated):
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(show(evaluated))
    share = evaluated["right"]["full"]["clean"].count("1") / 9
    assert f"{share:.1%}" in capture.get()
