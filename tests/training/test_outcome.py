"""A run that went wrong says so: at once, at the end, and in its record."""

from dataclasses import replace

import pytest
from rich.console import Console

from training.data import open_dataset
from training.fit import Trainer
from training.outcome import exploded, fallen, guessing
from training.parallel import Devices
from training.run import Run


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([2.0, 1.0, 9.9], False),
        ([2.0, 1.0, 10.1], True),
        ([3.0, 1.9e10], True),
        ([50.0, 3.0, 2.0], False),  # falling from far above is no explosion
        ([2.0, -0.5, -0.9], False),  # separation is unbounded below
        ([0.81, -0.01, -0.66, -0.4], False),
        ([0.8, -0.6, 5.0], True),
        ([0.5, 0.002, 0.03], False),  # nothing near zero is a measure
        ([1.0], False),
        ([], False),
    ],
)
def test_a_loss_that_explodes_is_told_from_one_that_falls(losses, says):
    sentence = exploded([{"loss": each} for each in losses], 0)
    assert (sentence is not None) == says
    if sentence is not None:
        assert "learning_rate_heads" in sentence
        assert "clip" in sentence


def test_the_warm_up_has_another_objective_and_does_not_count():
    history = [{"loss": 1.0}, {"loss": 60.0}, {"loss": 50.0}]
    assert exploded(history, 1) is None
    assert exploded(history, 0) is not None


def test_a_head_below_its_warm_up_is_named():
    assert fallen({"full": 0.126, "attention": 0.3}, {"full": 0.017, "attention": 0.31}, ended=False) == [
        "full got worse than its warm-up (1.7% of validation after 12.6%): the backbone learns too fast "
        "(--set learning_rate_backbone=...), the heads warmed up for too short a time, or what regularises them begins "
        "too early (--set regularise_from=0.5)"
    ]
    assert fallen({"full": 0.27}, {"full": 0.203}, ended=False) == []  # the rates are still high; it comes back
    assert len(fallen({"full": 0.27}, {"full": 0.203}, ended=True)) == 1
    assert fallen({"full": 0.5}, {"full": 0.49}, ended=True) == []  # a few images more or less
    assert fallen({}, {"full": 0.0}, ended=True) == []


@pytest.mark.parametrize(
    ("right", "images", "classes", "says"),
    [(5, 24, 6, True), (12, 24, 6, False), (296, 296, 81, False), (3, 296, 81, True), (0, 24, 6, True)],
)
def test_a_head_that_guesses_is_named(right, images, classes, says):
    found = guessing({"full": right / images}, images, classes)
    assert bool(found) == says
    assert not found or f"{right} of {images} validation images" in found[0]


def test_without_validation_images_nothing_is_said():
    assert guessing({"full": 0.0}, 0, 6) == []


def test_a_run_that_is_destroyed_says_so_at_once_and_in_its_record(
    tiny_birds, tiny_config, tmp_path, capsys, monkeypatch
):
    record, shown = scripted_run([0.9, 0.2, 0.3, 0.3, 0.3], tiny_birds, tiny_config, tmp_path, capsys, monkeypatch)
    assert shown.count("warning: full got worse than its warm-up") == 2  # after both joint epochs
    outcome = record.results["outcome"]
    assert any("attention got worse than its warm-up (30.0% of validation after 90.0%)" in each for each in outcome)
    assert any("no better than guessing among 3 classes" in each for each in outcome)


def test_a_good_run_has_nothing_against_it(tiny_birds, tiny_config, tmp_path, capsys, monkeypatch):
    record, shown = scripted_run([0.5, 0.9, 0.95, 0.95, 0.95], tiny_birds, tiny_config, tmp_path, capsys, monkeypatch)
    assert record.results["outcome"] == []
    assert "warning" not in shown


def scripted_run(shares, data, config, folder, capsys, monkeypatch):
    """A run of three epochs, the first of them warm-up, with these shares of validation: after each epoch, after the
    projection, and at the end.
    """
    dataset = open_dataset(data)
    config = replace(config, warmup_epochs=1)
    trainer = Trainer(Run(folder / "run"), dataset, config, Devices(accelerator="cpu"), Console())
    left = iter(shares)
    for module in ("training.epoch", "training.fit"):
        monkeypatch.setattr(f"{module}.accuracy", lambda *_: dict.fromkeys(("full", "attention"), next(left)))
    return trainer.fit(resume=False), capsys.readouterr().out
