"""Which epoch is kept, and the way back to it."""

import shutil
from dataclasses import replace

import pytest
import torch

import training.epoch
import training.fit
from bundle import tensors
from bundle.errors import CheckpointError
from training.epoch import accuracy
from training.projection import project
from training.run import Run

PROTOTYPES = "prototype_head.prototypes"


def test_the_last_of_the_best_joint_epochs_is_the_one_that_is_projected(make_trainer, tiny_config, monkeypatch):
    """Best is the highest sum of both heads' validation accuracies, the later epoch where two are equal."""
    trainer = make_trainer(replace(tiny_config, epochs=5, warmup_epochs=1), every=4)
    script = [(1.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.125), (0.125, 0.75)]  # the first is a warm-up epoch
    after, seen = [], []

    def state():
        return {key: value.clone() for key, value in trainer.learner.network.state_dict().items()}

    def scripted(network, feed, part):
        assert part == "validation"
        after.append(state())
        full, attention = script[len(after) - 1] if len(after) <= len(script) else (0.0, 0.0)
        return {"full": full, "attention": attention}

    def looks(*arguments):
        seen.append(state())
        return project(*arguments)

    for module in (training.epoch, training.fit):
        monkeypatch.setattr(module, "accuracy", scripted)
    monkeypatch.setattr(training.fit, "project", looks)
    record = trainer.fit(resume=False)
    assert [(row["full"], row["attention"]) for row in record.results["history"]] == script
    assert not torch.equal(after[2][PROTOTYPES], after[4][PROTOTYPES])
    for best in (trainer.run.read_state("best.pt"), seen[0]):
        assert best.keys() == after[2].keys()
        assert all(torch.equal(best[key], value) for key, value in after[2].items())


def test_a_collapse_goes_back_to_the_best_epoch_with_half_the_step(make_trainer, tiny_config, monkeypatch):
    trainer = make_trainer(replace(tiny_config, adversarial="fast", epochs=3))
    robust = iter([0.9, 0.1, 0.8])

    def scripted(network, feed, part, attack=None):
        if attack is None:
            return accuracy(network, feed, part)
        return dict.fromkeys(tensors.NETWORKS, next(robust))

    monkeypatch.setattr(training.epoch, "accuracy", scripted)
    weights = []
    returning = trainer.selection.return_to_best

    def watched():
        returning()
        weights.append({key: value.clone() for key, value in trainer.learner.network.state_dict().items()})

    trainer.selection.return_to_best = watched
    record = trainer.fit(resume=False)
    assert [row["caution"] for row in record.results["history"]] == [1.0, 1.0, 0.5]
    best = trainer.run.read_state("best.pt")
    assert len(weights) == 1
    assert all(torch.equal(weights[0][key], best[key]) for key in best)  # the first epoch stayed the best
    assert trainer.config.training_attack(1.0, 0.5).step == trainer.config.adversarial_step / 2


def test_best_weights_of_another_network_are_one_sentence(make_trainer, tiny_config, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    run = Run(tmp_path / "run")
    (run.path / "model.pt").unlink()
    run.write_state("best.pt", {"backbone": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"best\.pt is not of this run"):
        make_trainer(tiny_config).fit(resume=True)
