"""Training end to end on a tiny set: what a run leaves behind, how it goes on, and how it fails."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from bundle.errors import CheckpointError, OptionError, TrainingError
from bundle.image import ImageSpec
from training.attacks import from_bytes
from training.config import PRESETS, preset
from training.data import open_dataset
from training.data.loading import images_array
from training.fit import Devices, Trainer
from training.run import Run


def make_trainer(path, data, config):
    dataset = open_dataset(data, seed=config.seed)
    return Trainer(Run(path), dataset, config, Devices(accelerator="cpu"), Console(quiet=True))


def test_a_finished_run_learns_and_says_what_it_was_made_of(tiny_run, tiny_config):
    record, network = Run(tiny_run).load_network()
    assert record.config == tiny_config
    assert len(record.labels) == 3
    assert record.dataset.counts["test"] == 12
    losses = [row["loss"] for row in record.results["history"]]
    assert losses[-1] < losses[0]
    assert len(Run(tiny_run).read_prototypes()) == 6
    assert not network.training


def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tiny_birds, tiny_config, tiny_run, tmp_path):
    class Stop(Exception):
        pass

    trainer = make_trainer(tmp_path / "run", tiny_birds, tiny_config)
    original = trainer._epoch

    def stop_in_the_last_epoch(epoch, advance):
        if epoch == 2:
            raise Stop
        return original(epoch, advance)

    trainer._epoch = stop_in_the_last_epoch
    with pytest.raises(Stop):
        trainer.fit(resume=False)
    assert not Run(tmp_path / "run").finished
    make_trainer(tmp_path / "run", tiny_birds, tiny_config).fit(resume=True)
    resumed, whole = (Run(path).read_state("model.pt") for path in (tmp_path / "run", tiny_run))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert Run(tmp_path / "run").read_prototypes() == Run(tiny_run).read_prototypes()


def test_prototypes_are_the_nearest_patches_of_their_own_class(tiny_run, tiny_birds, tiny_config):
    """Brute force over every patch of every training image: the prototype is one of them, where the run says."""
    record, network = Run(tiny_run).load_network()
    dataset = open_dataset(tiny_birds, seed=record.dataset.seed)
    samples = {sample.key: sample for sample in dataset.parts["train"]}
    head = network.prototype_head
    for index, source in enumerate(Run(tiny_run).read_prototypes()):
        sample = samples[source.source]
        assert sample.label == source.label == index // tiny_config.prototypes_per_class
        image = images_array((sample,), ImageSpec(height=32, width=32))[0]
        with torch.no_grad():
            local = network(from_bytes(torch.from_numpy(image))).local
        patch = local[0, :, source.row, source.column]
        torch.testing.assert_close(head.prototypes[index], patch, rtol=1e-4, atol=1e-4)


def test_projection_chooses_the_minimum(tiny_run, tiny_birds):
    from training.data.loading import image_loader
    from training.projection import project

    record, network = Run(tiny_run).load_network()
    part = open_dataset(tiny_birds, seed=record.dataset.seed).parts["train"]
    spec = ImageSpec(height=32, width=32)
    torch.manual_seed(0)
    before = torch.rand_like(network.prototype_head.prototypes)
    network.prototype_head.prototypes.data.copy_(before)
    images, labels = images_array(part, spec)
    with torch.no_grad():
        local = network(from_bytes(torch.from_numpy(images))).local
    per_class = record.config.prototypes_per_class
    sources = project(
        network, lambda: image_loader(part, spec, batch_size=7, shuffle_seed=None), part, torch.device("cpu")
    )
    for index, source in enumerate(sources):
        own = local[torch.from_numpy(labels) == index // per_class].permute(0, 2, 3, 1).reshape(-1, local.shape[1])
        nearest = (own - before[index]).square().sum(1).min()
        moved = (network.prototype_head.prototypes[index] - before[index]).square().sum()
        torch.testing.assert_close(moved, nearest, rtol=1e-3, atol=1e-4)
        assert source.label == index // per_class


def test_fast_adversarial_training_runs_and_changes_the_result(tiny_birds, tiny_config, tiny_run, tmp_path):
    make_trainer(tmp_path / "run", tiny_birds, replace(tiny_config, adversarial="fast")).fit(resume=False)
    robust, plain = Run(tmp_path / "run").read_state("model.pt"), Run(tiny_run).read_state("model.pt")
    assert not torch.equal(robust["prototype_head.prototypes"], plain["prototype_head.prototypes"])


def test_warm_up_leaves_the_backbone_alone(tiny_birds, tiny_config, tmp_path):
    config = replace(tiny_config, warmup_epochs=1, epochs=2)
    trainer = make_trainer(tmp_path / "run", tiny_birds, config)
    before = {key: value.clone() for key, value in trainer.network.backbone.state_dict().items()}
    trainer.run.path.mkdir()
    trainer._epoch(0, lambda: None)
    after = trainer.network.backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    trainer._epoch(1, lambda: None)
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_a_loss_that_is_not_finite_stops_with_the_batch_and_keeps_the_last_state(tiny_birds, tiny_config, tmp_path):
    trainer = make_trainer(tmp_path / "run", tiny_birds, tiny_config)
    original = trainer._set_rates

    def poison(step):
        original(step)
        if step == trainer.steps_per_epoch + 1:
            trainer.network.attention_head.agnostic.bias.data.fill_(float("nan"))

    trainer._set_rates = poison
    with pytest.raises(TrainingError, match="epoch 2, batch 2"):
        trainer.fit(resume=False)
    assert Run(tmp_path / "run").read_state("state.pt")["epoch"] == 1
    assert not Run(tmp_path / "run").finished


def test_resuming_on_changed_data_or_settings_is_refused(tiny_birds, tiny_config, tiny_run, tmp_path):
    with pytest.raises(CheckpointError, match="other settings"):
        make_trainer(tiny_run, tiny_birds, replace(tiny_config, epochs=4)).fit(resume=True)
    shutil.copytree(tiny_birds, tmp_path / "birds")
    boxes = (tmp_path / "birds" / "bounding_boxes.txt").read_text().splitlines()
    boxes[0] = "1 0.0 0.0 20.0 20.0"
    (tmp_path / "birds" / "bounding_boxes.txt").write_text("\n".join(boxes) + "\n")
    with pytest.raises(CheckpointError, match="other data"):
        make_trainer(tiny_run, tmp_path / "birds", tiny_config).fit(resume=True)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch size"),
        ({"image_size": 8}, "image size 8"),
        ({"adversarial": "slow"}, "none, fast"),
        ({"adversarial_eps": 1.5}, "eps 1.5"),
        ({"schedule": "random"}, "step, cosine"),
        ({"warmup_epochs": 99}, "warm-up"),
        ({"backbone": "vgg17"}, "resnet34"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings_are_one_sentence(tiny_config, change, message):
    with pytest.raises(OptionError, match=message):
        replace(tiny_config, **change)


def test_presets_exist_for_every_backbone_of_the_paper_and_unknown_ones_list_them():
    for name in PRESETS:
        assert preset(name).preset == name
    assert preset("vgg16").image_size == 224
    with pytest.raises(OptionError, match="vgg19-fast"):
        preset("vgg")
