"""One epoch: which images it sees, which weights it moves, and that weights which are no numbers end it."""

import math
from dataclasses import replace

import pytest
import torch

from bundle.errors import TrainingError
from training.epoch import train_epoch


def test_every_image_comes_once_for_each_copy(make_trainer, tiny_config):
    feed = make_trainer(replace(tiny_config, copies=3)).feed
    positions = torch.cat([batch.positions for batch in feed.batches("train", 0)])
    images = len(feed.parts["train"])
    assert feed.steps_per_epoch == math.ceil(3 * images / tiny_config.batch_size)
    assert torch.bincount(positions).tolist() == [3] * images
    again = torch.cat([batch.positions for batch in feed.batches("train")])
    assert again.tolist() == list(range(images))  # what is measured or projected comes once


def test_warm_up_leaves_the_backbone_alone(make_trainer, tiny_config):
    trainer = make_trainer(replace(tiny_config, warmup_epochs=1, epochs=2))
    backbone = trainer.learner.network.backbone
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    train_epoch(trainer.learner, trainer.hardening, trainer.feed, 0, lambda: None)
    after = backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    train_epoch(trainer.learner, trainer.hardening, trainer.feed, 1, lambda: None)
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_frozen_stages_keep_their_weights_and_statistics(make_trainer, tiny_config):
    trainer = make_trainer(replace(tiny_config, frozen_stages=2, epochs=1))
    backbone = trainer.learner.network.backbone
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    trainer.fit(resume=False)
    for key, value in backbone.state_dict().items():
        frozen = key.startswith(("stages.0.", "stages.1."))
        assert torch.equal(value, before[key]) == frozen, key


def test_weights_that_are_not_finite_are_never_written(make_trainer, tiny_config, tmp_path):
    """One step of a whole epoch: the loss before it is fine, the weights after it are not."""
    trainer = make_trainer(replace(tiny_config, batch_size=4000, epochs=2))
    trainer.learner.optimizer.param_groups[1]["base"] = float("inf")
    with pytest.raises(TrainingError, match=r"no longer finite after epoch 1.*learning rates"):
        trainer.fit(resume=False)
    assert not (tmp_path / "run" / "state.pt").exists()
    assert not (tmp_path / "run" / "best.pt").exists()
