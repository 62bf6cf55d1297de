"""Training end to end on a tiny set: what a run leaves behind, and how what it left is read."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from bundle.errors import CheckpointError
from training.attacks.loop import run_attack
from training.attacks.losses import loss_of
from training.hardening import Hardening
from training.networks import HEADS
from training.run import Run


def test_a_finished_run_learns_and_says_what_it_was_made_of(tiny_run, tiny_config):
    record, network = Run(tiny_run).load_network()
    assert record.config == tiny_config
    assert len(record.labels) == 3
    assert record.dataset.counts["test"] == 12
    losses = [row["loss"] for row in record.results["history"]]
    assert losses[-1] < losses[0]
    assert len(Run(tiny_run).read_prototypes()) == 6
    assert not network.training


def test_fast_adversarial_training_runs_and_changes_the_result(make_trainer, tiny_config, tiny_run, tmp_path):
    make_trainer(replace(tiny_config, adversarial="fast")).fit(resume=False)
    robust, plain = Run(tmp_path / "run").read_state("model.pt"), Run(tiny_run).read_state("model.pt")
    assert not torch.equal(robust["prototype_head.prototypes"], plain["prototype_head.prototypes"])


def test_in_turns_the_step_climbs_one_heads_loss_and_every_head_has_its_turn(tiny_run, tiny_config):
    network, config = Run(tiny_run).load_network()[1], replace(tiny_config, adversarial="fast")
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0])

    def made(climbs, seed):
        hardening = Hardening(replace(config, adversarial_climbs=climbs), nullcontext)
        return hardening.attacked(network, pixels, labels, 0.0, torch.Generator().manual_seed(seed))

    def climbing(head, seed, turns):
        generator = torch.Generator().manual_seed(seed)
        if turns:
            torch.randint(2, (), generator=generator)  # whose turn it is
        network.eval()
        return run_attack(config.training_attack(), loss_of(network, head), pixels, labels, generator)

    assert torch.equal(made("sum", 0), climbing(None, 0, False))
    drawn = [
        next(head for head in HEADS if torch.equal(made("turns", seed), climbing(head, seed, True)))
        for seed in range(8)
    ]
    assert set(drawn) == {"full", "attention"}


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04"])
def test_damaged_checkpoints_are_explained(tiny_run, content, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pt is damaged"):
        Run(tmp_path / "run").load_network()


def test_a_checkpoint_of_another_shape_and_records_of_another_kind_are_explained(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    for change, message in (
        ({"config": {**record["config"], "prototype_channels": 8}}, "does not fit its config"),
        ({"config": {**record["config"], "surprise": 1}}, "unknown key 'surprise'"),
        ({"schema": 99}, "schema 99"),
    ):
        (tmp_path / "run" / "run.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(CheckpointError, match=message):
            Run(tmp_path / "run").load_network()
    with pytest.raises(CheckpointError, match="no training run"):
        Run(tmp_path / "nothing").load_network()
