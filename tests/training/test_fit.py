"""Training end to end on a tiny set: what a run leaves behind, how it goes on, and how it fails."""

import json
import math
import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import training.fit
from bundle.errors import CheckpointError, OptionError, TrainingError
from bundle.image import ImageSpec
from training.attacks.losses import loss_of
from training.attacks.step import run_attack
from training.backbones import BACKBONES
from training.data import open_dataset
from training.data.loading import images_array
from training.fit import Trainer
from training.hardening import Hardening
from training.losses import sparsity
from training.networks import HEADS, NetworkConfig, PrototypeHead
from training.parallel import Devices
from training.pixels import from_bytes
from training.presets import preset
from training.run import Run, network_config
from training.systems import SYSTEMS

CLASSIFIER, PROTOTYPES = "prototype_head.classifier.weight", "prototype_head.prototypes"


def make_trainer(path, data, config, *, every=1):
    """`every` 4 trains on each fourth image, for tests that do not mind what is learnt."""
    dataset = open_dataset(data, seed=config.seed)
    dataset = replace(dataset, parts={**dataset.parts, "train": dataset.parts["train"][::every]})
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


def test_the_last_of_the_best_joint_epochs_is_the_one_that_is_projected(tiny_birds, tiny_config, tmp_path, monkeypatch):
    """Best is the highest sum of both heads' validation accuracies, the later epoch where two are equal."""
    trainer = make_trainer(tmp_path / "run", tiny_birds, replace(tiny_config, epochs=5, warmup_epochs=1), every=4)
    script = [(1.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.125), (0.125, 0.75)]  # the first is a warm-up epoch
    after, seen = [], []

    def state():
        return {key: value.clone() for key, value in trainer.network.state_dict().items()}

    def scripted(part):
        assert part == "validation"
        after.append(state())
        full, attention = script[len(after) - 1] if len(after) <= len(script) else (0.0, 0.0)
        return {"full": full, "attention": attention}

    def looks(*arguments):
        seen.append(state())
        return project(*arguments)

    project = training.fit.project
    monkeypatch.setattr(trainer, "accuracy", scripted)
    monkeypatch.setattr(training.fit, "project", looks)
    record = trainer.fit(resume=False)
    assert [(row["full"], row["attention"]) for row in record.results["history"]] == script
    assert not torch.equal(after[2][PROTOTYPES], after[4][PROTOTYPES])
    for best in (trainer.run.read_state("best.pt"), seen[0]):
        assert best.keys() == after[2].keys()
        assert all(torch.equal(best[key], value) for key, value in after[2].items())


def test_after_the_projection_only_the_last_layer_is_fitted(tiny_run, tiny_birds):
    """It starts at +1 / -0.5, and its own objective on the training part falls."""
    record, network = Run(tiny_run).load_network()
    best, done = Run(tiny_run).read_state("best.pt"), Run(tiny_run).read_state("model.pt")
    moved = {key for key in done if not torch.equal(best[key], done[key])}
    assert moved == {CLASSIFIER, PROTOTYPES}
    own = PrototypeHead.own_class(3, record.config.prototypes_per_class)
    assert torch.equal(best[CLASSIFIER], 1.5 * own - 0.5)
    images, labels = images_array(
        open_dataset(tiny_birds, seed=record.dataset.seed).parts["train"], ImageSpec(height=32, width=32)
    )
    with torch.no_grad():
        similarities = network(from_bytes(torch.from_numpy(images))).similarities

        def objective():
            logits = network.prototype_head.classifier(similarities)
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
            return (loss + record.config.loss.sparsity * sparsity(network.prototype_head)).item()

        fitted = objective()
        network.prototype_head.classifier.weight.copy_(best[CLASSIFIER])
        assert fitted < objective()


STEP = {0: 1, 49: 1, 54: 1, 55: 0.1, 99: 0.1, 104: 0.1, 105: 0.01}
COSINE = {0: 0.1, 4: 0.5, 9: 1, 10: 1, 40: 0.75, 55: 0.5, 70: 0.25, 99: (1 + math.cos(math.pi * 89 / 90)) / 2}


@pytest.mark.parametrize(("schedule", "factors"), [("step", STEP), ("cosine", COSINE)])
def test_learning_rates_at_chosen_steps(tiny_birds, tiny_config, tmp_path, schedule, factors):
    """Epochs of five steps. step: two to warm up, then a tenth before the tenth and twentieth joint epoch; cosine, of
    twenty epochs: ten steps up, then half a wave down.
    """
    rates = {"learning_rate_backbone": 1e-3, "learning_rate_heads": 5e-3}
    lengths = {"epochs": 31, "warmup_epochs": 2} if schedule == "step" else {"epochs": 20}
    config = replace(tiny_config, schedule=schedule, **lengths, **rates)
    trainer = make_trainer(tmp_path / "run", tiny_birds, config)
    trainer.steps_per_epoch = 5
    for step, factor in factors.items():
        trainer._set_rates(step)
        expected = [pytest.approx(base * factor, rel=1e-9) for base in (1e-3, 5e-3, 5e-3)]
        assert [group["lr"] for group in trainer.optimizer.param_groups] == expected, step


def test_rates_follow_the_step_of_the_whole_run(tiny_birds, tiny_config, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "run", tiny_birds, tiny_config, every=4)
    trainer.run.path.mkdir()
    steps = []
    monkeypatch.setattr(trainer, "_set_rates", steps.append)
    trainer._epoch(2, lambda: None)
    count = math.ceil(len(trainer.parts["train"]) / tiny_config.batch_size)
    assert steps == list(range(2 * count, 3 * count))


def test_every_parameter_has_its_rate_and_decay_and_the_last_layer_has_none(tiny_birds, tiny_config, tmp_path):
    rates = {"learning_rate_backbone": 1e-3, "learning_rate_heads": 5e-3, "weight_decay": 0.02}
    trainer = make_trainer(tmp_path / "run", tiny_birds, replace(tiny_config, **rates))
    found = [
        (id(parameter), group["lr"], group["base"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    ]
    expected = []
    for name, parameter in trainer.network.named_parameters():
        if name != CLASSIFIER:
            rate = 1e-3 if name.startswith("backbone.") else 5e-3
            expected.append((id(parameter), rate, rate, 0.0 if name == PROTOTYPES else 0.02))
    assert sorted(found) == sorted(expected)


def test_the_network_is_made_as_the_config_says(tiny_config):
    config = replace(tiny_config, prototypes_per_class=4, prototype_channels=7, attention_dropout=0.3)
    assert network_config(config, 5) == NetworkConfig(
        backbone="small", classes=5, prototypes_per_class=4, prototype_channels=7, attention_dropout=0.3
    )


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
        ({"epochs": 0}, "epochs must be in 1"),
        ({"batch_size": 0}, "batch size"),
        ({"image_size": 8}, "image size 8"),
        ({"adversarial": "slow"}, "none, fast"),
        ({"adversarial_climbs": "both"}, "sum, turns"),
        ({"adversarial_eps": 1.5}, "adversarial_eps must be in 0..1, not 1.5"),
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
    for backbone in BACKBONES:
        for system in SYSTEMS:
            config = preset(f"{system}-{backbone}")
            assert (config.system, config.backbone, config.adversarial) == (system, backbone, "none")
            fast = preset(f"{system}-{backbone}-fast")
            assert fast.adversarial == "fast"
            assert preset(fast.preset) == fast
            reference = preset(f"{system}-{backbone}-reference-fast")
            assert (reference.epochs, reference.copies, reference.adversarial_warmup) == (31, 30, True)
            assert preset(f"{system}-{backbone}-96").image_size == 96
            assert preset(f"{system}-{backbone}-96-fast").preset.endswith(f"{backbone}-96-fast")
        assert preset(backbone) == preset(f"maxsep-{backbone}") == preset(f"ap-{backbone}", system="maxsep")
    assert preset("vgg16").image_size == 224
    assert preset("vgg16-reference").loss.cluster == 100
    with pytest.raises(OptionError, match=r"BACKBONE\[-SIZE\]\[-reference\]\[-fast\], .*; systems: maxsep, ap,"):
        preset("vgg")
    with pytest.raises(OptionError, match=r"unknown system 'ours'.*protopnet"):
        preset("small", system="ours")


def test_any_setting_can_be_set_by_name():
    texts = ["loss.cluster=0", "loss.separation=0.5", "schedule=step", "ema=0.9", "augmentation.flip=false", "epochs=2"]
    config = preset("small", texts=texts)
    expected = replace(preset("small"), schedule="step", ema=0.9, epochs=2)
    expected = replace(expected, loss=replace(config.loss, cluster=0.0, separation=0.5))
    assert config == replace(expected, augmentation=replace(config.augmentation, flip=False))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cluster", "NAME=VALUE"),
        ("=3", "NAME=VALUE"),
        ("cluster=1", r"no setting 'cluster'.*loss\.cluster"),
        ("loss=1", "no setting 'loss'"),
        ("loss.x=1", r"no setting 'loss\.x'"),
        ("epochs.x=1", "no setting"),
        ("system=ap", "no setting 'system'"),
        ("epochs=many", "whole number"),
        ("loss.cluster=x", r"loss\.cluster is a number"),
        ("loss.cluster=-1", "at least 0"),
        ("augmentation.flip=1", "true or false"),
        ("ema=1", "ema must be in"),
    ],
)
def test_settings_that_are_none_are_one_sentence(text, message):
    with pytest.raises(OptionError, match=message):
        preset("small", texts=[text])


def of_another_system(state):
    return {**state, "learner": {}}


def of_another_kind(state):
    return {"epoch": 1}


@pytest.mark.parametrize("damage", [of_another_system, of_another_kind, lambda state: {}, lambda state: torch.ones(3)])
def test_a_state_of_another_run_is_one_sentence(tiny_birds, tiny_config, tiny_run, tmp_path, damage):
    shutil.copytree(tiny_run, tmp_path / "run")
    run = Run(tmp_path / "run")
    (run.path / "model.pt").unlink()
    run.write_state("state.pt", damage(run.read_state("state.pt")))
    with pytest.raises(CheckpointError, match=r"state\.pt is (not|no state) of (this|a) run"):
        make_trainer(run.path, tiny_birds, tiny_config).fit(resume=True)


def test_best_weights_of_another_network_are_one_sentence(tiny_birds, tiny_config, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    run = Run(tmp_path / "run")
    (run.path / "model.pt").unlink()
    run.write_state("best.pt", {"backbone": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"best\.pt is not of this run"):
        make_trainer(run.path, tiny_birds, tiny_config).fit(resume=True)


def test_weights_that_are_not_finite_are_never_written(tiny_birds, tiny_config, tmp_path):
    """One step of a whole epoch: the loss before it is fine, the weights after it are not."""
    config = replace(tiny_config, batch_size=4000, epochs=2)
    trainer = make_trainer(tmp_path / "run", tiny_birds, config)
    original = trainer._set_rates

    def poison(step):
        original(step)
        trainer.optimizer.param_groups[1]["lr"] = float("inf")

    trainer._set_rates = poison
    with pytest.raises(TrainingError, match=r"no longer finite after epoch 1.*learning rates"):
        trainer.fit(resume=False)
    assert not (tmp_path / "run" / "state.pt").exists()
    assert not (tmp_path / "run" / "best.pt").exists()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("attention_dropout=2", "attention_dropout"),
        ("attention_dropout=nan", "attention_dropout"),
        ("learning_rate_heads=-1", "learning_rate_heads"),
        ("learning_rate_last_layer=inf", "learning_rate_last_layer"),
        ("weight_decay=-1", "weight_decay"),
        ("adversarial_step=-1", "adversarial_step"),
        ("adversarial_full=-3", "adversarial_full"),
        ("adversarial_from=nan", "adversarial_from"),
        ("regularise_from=2", "regularise_from"),
        ("clip=-1", "clip"),
        ("copies=0", "copies"),
        ("warmup_steps=-1", "warmup_steps"),
        ("frozen_stages=-1", "frozen_stages"),
        ("max_pixels=0", "max_pixels"),
        ("augmentation.crop=0", "crop"),
        ("augmentation.skew=1", "skew"),
        ("last_layer_epochs=-3", "last_layer_epochs"),
        ("prototype_channels=1000000000000", "prototype channels"),
        ("augmentation.rotate=nan", "rotate"),
        ("augmentation.scale=5", "scale"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_with_their_range(text, name):
    with pytest.raises(OptionError, match=rf"{name} must be in \S+\.\.\S+, not"):
        preset("small", texts=[text])


def test_a_setting_is_set_once():
    with pytest.raises(OptionError, match=r"loss\.cluster is set twice"):
        preset("small", texts=["loss.cluster=1", "loss.cluster=2"])
    with pytest.raises(OptionError, match="epochs is set twice, by its own option"):
        preset("small", texts=["epochs=1"], epochs=3)
