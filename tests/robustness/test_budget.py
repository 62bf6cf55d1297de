"""What attacks take is known before they begin, what does not fit is left out and named, and what fits is untouched."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bundle.errors import OptionError
from robustness.accuracy import evaluate_run
from robustness.budget import ALONE, Costs, few, passes, within
from robustness.fitting import MIN_IMAGES
from robustness.journal import Journal
from robustness.suites import SUITES
from training.attacks.attacker import Attackers
from training.run import Run

QUICK, FULL = SUITES["quick"], SUITES["full"]


def costs(seconds: float, classes: int = 20) -> Costs:
    return Costs(seconds={"full": seconds, "attention": seconds}, losses={"full": 2, "attention": 1}, classes=classes)


@pytest.mark.parametrize(
    ("name", "losses", "expected"),
    [
        ("clean", 2, 1),
        ("fgsm-8", 1, 2),
        ("fgsm-8", 2, 4),
        ("pgd10-8:margin", 2, 22),
        ("pgd100x10-8", 1, 1010),
        ("pgd10-8@twin", 1, 11),
        ("autoattack-8", 1, 4000),
        ("apgd-8", 1, 1000),
    ],
)
def test_an_attack_costs_its_steps_its_restarts_and_its_losses(name, losses, expected):
    assert passes(name, losses) == expected


def test_no_attack_takes_more_passes_than_it_is_said_to(tiny_run):
    """Counted in the network itself: every image that goes through it with a gradient."""
    _, network = Run(tiny_run).load_network()
    seen = []
    network.backbone.register_forward_hook(
        lambda module, inputs, output: seen.append(len(inputs[0]) if torch.is_grad_enabled() else len(inputs[0]) / 3)
    )
    for name in ("fgsm-8", "bim3-2", "pgd5x2-2:margin", "pgd4-8:least-likely"):
        for head, losses in (("full", 2), ("attention", 1)):
            seen.clear()
            attacker = Attackers(network=network).on(head)
            attacker.attack(name, torch.rand(6, 3, 32, 32), torch.zeros(6, dtype=torch.long))
            assert sum(seen) / 6 <= passes(name, losses) + 1, (name, head)


def test_a_probe_takes_the_fastest_try_of_every_head_and_leaves_the_threads_alone(tiny_run):
    _, network = Run(tiny_run).load_network()
    before = torch.get_num_threads()
    times = iter([0.0, 8.0, 10.0, 12.0, 20.0, 24.0, 0.0, 80.0, 100.0, 116.0, 200.0, 264.0])
    found = Costs.measured(
        network, ("full", "attention"), np.zeros((40, 32, 32, 3), np.uint8), clock=lambda: next(times)
    )
    threads = torch.get_num_threads()
    together = 1 + 0.7 * (min(threads, 8) - 1)
    assert found.seconds == pytest.approx({"full": 2 / 16 / together, "attention": 16 / 16 / together})
    assert found.losses == {"full": 2, "attention": 1}
    assert torch.get_num_threads() == before


def test_lessons_that_fit_are_all_there_is_and_say_nothing():
    assert few(300, 1.0, 5.0, "lessons") == (300, None)
    assert few(12, 1e9, 5.0, "lessons") == (12, None)


def test_lessons_that_do_not_fit_are_fewer_and_never_too_few():
    kept, said = few(300, 6.0, 5.0, "lessons")
    assert kept == 50
    assert said == f"lessons: 50 of 300 images, since all would take up to 30 min {ALONE} and 5 min are allowed"
    kept, said = few(300, 60.0, 5.0, "lessons")
    assert kept == MIN_IMAGES
    assert said.endswith("fewer teach nothing stable, so it may take 20 min")


def test_a_report_that_fits_is_untouched():
    assert within(QUICK, costs(1e-4), 10.0, 600) is QUICK


def test_a_report_that_does_not_fit_has_fewer_images_and_says_how_many():
    whole = costs(0.02).suite(QUICK, 600)
    found = within(QUICK, costs(0.02), 0.7 * whole / 60, 600)
    assert found.attacks == QUICK.attacks
    assert found.adaptive == QUICK.adaptive
    assert MIN_IMAGES <= found.adaptive_count < QUICK.adaptive_count
    assert MIN_IMAGES <= found.count < QUICK.count
    assert costs(0.02).suite(found, 600) <= 0.7 * whole
    (said,) = found.left_out
    assert said.startswith("fewer images for want of time (all would take up to ")
    assert f"{found.count} of 60 under every attack, {found.adaptive_count} of 40 under attacks that know" in said


@pytest.mark.parametrize("images", [24, 600])
def test_a_report_whose_fewest_images_do_not_fit_goes_without_its_dearest_parts(images):
    slow = costs(0.08)
    least = slow.suite(replace(QUICK, count=20, adaptive_count=20, clean_count=min(images, 200)), images)
    found = within(QUICK, slow, 0.5 * least / 60, images)
    assert {"fgsm-8", "pgd10-8"} <= set(found.attacks)
    assert "selective PGD" in found.adaptive
    gone = {*QUICK.attacks, *QUICK.adaptive} - {*found.attacks, *found.adaptive}
    assert gone
    assert found.left_out[0].startswith("left out for want of time (")
    for name in gone:
        assert name in found.left_out[0]
    assert slow.suite(found, images) <= 0.5 * least


def test_what_cannot_be_had_in_the_time_is_said_and_done_all_the_same():
    found = within(FULL, costs(1.0), 0.01, 600)
    assert set(found.attacks) == {"fgsm-8", "pgd10-8"}
    assert found.adaptive == ("selective PGD",)
    assert found.autoattack_count == found.curve_steps == 0
    assert found.count == found.adaptive_count == MIN_IMAGES
    assert any(each.startswith("what is left may take") for each in found.left_out)


def test_attacks_that_were_asked_for_by_name_stay():
    found = within(QUICK, costs(1.0), 0.01, 600, kept=QUICK.attacks)
    assert found.attacks == QUICK.attacks


def test_the_papers_columns_on_fewer_images(tiny_run, tiny_birds, monkeypatch):
    """On a machine on which a pass takes a second, a minute is enough for the fewest images alone."""
    record, network = Run(tiny_run).load_network()
    suite = replace(SUITES["paper"], attacks=("fgsm-8",), count=30, autoattack_count=3)
    arguments = record, Attackers(network=network), tiny_birds, suite
    free = evaluate_run(*arguments, part="train")
    ample = evaluate_run(*arguments, part="train", minutes=1e6)
    assert (ample["right"], ample["not_measured"]) == (free["right"], ["not measured: AutoAttack needs four classes"])
    monkeypatch.setattr("robustness.budget.Costs.measured", lambda *_: costs(1.0, classes=3))
    found = evaluate_run(*arguments, part="train", minutes=1.0)
    assert len(found["images"]) == MIN_IMAGES
    assert found["not_measured"][1].endswith("1 min are allowed): 20 of 30 under every attack")


def test_what_was_chosen_at_the_first_start_is_what_goes_on(tiny_run, tiny_birds, tmp_path, monkeypatch):
    """The clock never says the same twice, and other images would make what is finished worthless."""
    record, network = Run(tiny_run).load_network()
    suite = replace(SUITES["paper"], attacks=("fgsm-8",), count=30, autoattack_count=0)
    arguments = record, Attackers(network=network), tiny_birds, suite
    seconds = iter([0.5, 0.5])
    monkeypatch.setattr("robustness.budget.Costs.measured", lambda *_: costs(next(seconds), classes=3))
    path = tmp_path / "x.progress.json"
    first = evaluate_run(*arguments, part="train", minutes=1.7, journal=Journal(path))
    assert 20 < len(first["images"]) < 30
    before = path.read_text()
    again = evaluate_run(*arguments, part="train", minutes=1.7, journal=Journal(path))
    assert again["images"] == first["images"]
    assert again["seconds"] == {}  # all was told before
    assert path.read_text() == before
    more = evaluate_run(*arguments, part="train", minutes=3.0, journal=Journal(path))  # another time asks anew
    assert len(more["images"]) == 30
    for damage in ("5", "{", '{"name": 3, "no": 1}', "[" * 100_000):
        damaged = {key: damage if key.startswith("suite ") else bits for key, bits in json.loads(before).items()}
        path.write_text(json.dumps(damaged))
        with pytest.raises(OptionError, match=r"progress in .* cannot be read .*Remove it"):
            evaluate_run(*arguments, part="train", minutes=1.7, journal=Journal(path))
    path.write_text("[" * 100_000)
    with pytest.raises(OptionError, match="cannot be read"):
        Journal(path)
