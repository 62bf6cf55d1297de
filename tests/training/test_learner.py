"""What is optimised: where its weights come from, how fast each of them learns, and the average over them."""

from dataclasses import replace

import pytest
import torch

from bundle.errors import CheckpointError
from training.epoch import train_epoch
from training.networks import NetworkConfig
from training.run import Run, network_config

CLASSIFIER, PROTOTYPES = "prototype_head.classifier.weight", "prototype_head.prototypes"


def test_the_network_is_made_as_the_config_says(tiny_config):
    config = replace(tiny_config, prototypes_per_class=4, prototype_channels=7, attention_dropout=0.3)
    assert network_config(config, 5) == NetworkConfig(
        backbone="small", classes=5, prototypes_per_class=4, prototype_channels=7, attention_dropout=0.3
    )


def test_a_run_starts_from_a_finished_one(make_trainer, tiny_config, tiny_run, tmp_path):
    learner = make_trainer(replace(tiny_config, start=str(tiny_run))).learner
    finished = Run(tiny_run).read_state("model.pt")
    assert all(torch.equal(value, finished[key]) for key, value in learner.network.state_dict().items())
    with pytest.raises(CheckpointError, match="cannot be started from"):
        make_trainer(replace(tiny_config, start=str(tiny_run), prototype_channels=8), tmp_path / "other")
    with pytest.raises(CheckpointError, match="no training run at"):
        make_trainer(replace(tiny_config, start=str(tmp_path / "nothing")), tmp_path / "none")


def test_every_parameter_has_its_rate_and_decay_and_the_last_layer_has_none(make_trainer, tiny_config):
    rates = {"learning_rate_backbone": 1e-3, "learning_rate_heads": 5e-3, "weight_decay": 0.02}
    learner = make_trainer(replace(tiny_config, **rates)).learner
    found = [
        (id(parameter), group["lr"], group["base"], group["weight_decay"])
        for group in learner.optimizer.param_groups
        for parameter in group["params"]
    ]
    expected = []
    for name, parameter in learner.network.named_parameters():
        if name != CLASSIFIER:
            rate = 1e-3 if name.startswith("backbone.") else 5e-3
            expected.append((id(parameter), rate, rate, 0.0 if name == PROTOTYPES else 0.02))
    assert sorted(found) == sorted(expected)


def test_the_average_over_weights_is_the_recursion_it_is_named_for(make_trainer, tiny_config):
    trainer = make_trainer(replace(tiny_config, ema=0.8, epochs=1))
    learner = trainer.learner
    seen, update = [], learner.average.update_parameters

    def watched(network):
        seen.append(network.state_dict()[PROTOTYPES].clone())
        update(network)

    learner.average.update_parameters = watched
    trainer.run.path.mkdir()
    trainer.selection.judge(train_epoch(learner, trainer.hardening, trainer.feed, 0, lambda: None))
    expected = seen[0]
    for weights in seen[1:]:
        expected = 0.8 * expected + 0.2 * weights
    torch.testing.assert_close(learner.kept.state_dict()[PROTOTYPES], expected)
    assert not torch.equal(learner.network.state_dict()[PROTOTYPES], expected)
    assert torch.equal(trainer.run.read_state("best.pt")[PROTOTYPES], learner.kept.state_dict()[PROTOTYPES])
