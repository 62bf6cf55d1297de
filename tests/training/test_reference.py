"""The preset `reference`: the authors' released code line by line, as far as it is known, in numbers."""

import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from bundle.errors import CheckpointError, OptionError
from training.attacks.names import attack_named
from training.attacks.step import Attack
from training.augment import Augmentation, augment
from training.data import open_dataset
from training.fit import Trainer
from training.hardening import Hardening
from training.networks import Network, NetworkConfig
from training.optimiser import rate_factor
from training.parallel import Devices
from training.presets import preset
from training.run import Run

CUB_TRAINING_IMAGES = 5994


def trainer_of(path, data, config):
    return Trainer(Run(path), open_dataset(data, seed=3), config, Devices(accelerator="cpu"), Console(quiet=True))


def test_numbers_of_the_recipe():
    config = preset("vgg16-reference")
    assert (config.epochs, config.warmup_epochs, config.batch_size, config.image_size) == (31, 5, 80, 224)
    assert (config.learning_rate_backbone, config.learning_rate_heads) == (1e-4, 3e-3)
    assert (config.learning_rate_last_layer, config.last_layer_epochs) == (1e-4, 20)
    assert (config.weight_decay, config.attention_dropout, config.prototypes_per_class) == (1e-3, 0.8, 10)
    assert (config.loss.cluster, config.loss.separation, config.loss.sparsity) == (100, 0.08, 1e-4)
    assert config.weights == "imagenet"


def test_fewer_epochs_than_its_warm_up_name_the_setting_that_helps():
    with pytest.raises(OptionError, match="5 warm-up epochs do not fit into 2 epochs") as caught:
        preset("resnet34-reference", epochs=2)
    assert "warmup_epochs=0" in caught.value.hint
    assert preset("resnet34", epochs=2).epochs == 2  # our recipe warms up in steps


def test_an_epoch_is_thirty_augmented_copies():
    """About 2,250 steps of 80 on CUB, so 11,000 of warm-up."""
    config = preset("vgg16-reference")
    steps = math.ceil(CUB_TRAINING_IMAGES * config.copies / config.batch_size)
    assert steps == 2248
    assert 11_000 <= config.warmup_epochs * steps <= 11_300


def test_every_image_comes_once_for_each_copy(tiny_birds, tiny_config, tmp_path):
    trainer = trainer_of(tmp_path / "run", tiny_birds, replace(tiny_config, copies=3))
    positions = torch.cat([found for _, _, found in trainer._batches("train", 0)])
    images = len(trainer.parts["train"])
    assert trainer.steps_per_epoch == math.ceil(3 * images / tiny_config.batch_size)
    assert torch.bincount(positions).tolist() == [3] * images
    again = torch.cat([found for _, _, found in trainer._batches("train", None)])
    assert again.tolist() == list(range(images))  # what is measured or projected comes once


def test_rates_fall_before_the_tenth_and_twentieth_joint_epoch():
    config = preset("vgg16-reference")
    factors = [rate_factor(config, epoch * 7, 7) for epoch in range(config.epochs)]
    assert factors == pytest.approx([1] * (5 + 9) + [0.1] * 10 + [0.01] * 7)


def test_each_copy_is_rotated_or_skewed_or_sheared_and_flipped_or_not():
    settings = preset("vgg16-reference").augmentation
    assert settings == Augmentation(rotate=15, shear=10, skew=0.2, scale=0, one_of=True, flip=True)


def lengths(image):
    """Of the left and right, top and bottom edges of a white square on black, in pixels."""
    mask = image[0] > 0.5
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    vertical = mask[:, torch.stack([columns.min() + 1, columns.max() - 1])].sum(0)
    horizontal = mask[torch.stack([rows.min() + 1, rows.max() - 1])].sum(1)
    return vertical.tolist(), horizontal.tolist()


def test_a_skew_draws_one_edge_longer_by_at_most_twice_its_share():
    square = torch.zeros(64, 3, 200, 200)
    square[:, :, 50:150, 50:150] = 1
    still = Augmentation(rotate=0, shear=0, skew=0.2, scale=0, flip=False)
    ratios = []
    for image in augment(square, still, torch.Generator().manual_seed(0)):
        vertical, horizontal = lengths(image)
        along = [max(pair) / min(pair) for pair in (vertical, horizontal)]
        ratios.append(max(along))
    # the square is half as wide as the image: its edges lie at half the depth of the image's own
    slope = 0.2 / 1.2
    bound = (1 + slope / 2) / (1 - slope / 2)
    assert max(ratios) <= bound + 0.03
    assert max(ratios) > 1 + 0.7 * (bound - 1)


def test_the_add_on_begins_normal_by_fan_out_without_biases():
    torch.manual_seed(0)
    config = NetworkConfig(backbone="small", classes=4, add_on_start=preset("vgg16-reference").add_on_start)
    convolutions = [layer for layer in Network(config).prototype_head.add_on if isinstance(layer, torch.nn.Conv2d)]
    for layer in convolutions:
        assert not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / layer.out_channels), rel=0.05)
    uniform = Network(replace(config, add_on_start="uniform")).prototype_head.add_on[0]
    assert uniform.weight.abs().max() <= 1 / math.sqrt(uniform.in_channels)


def test_their_fgsm_starts_at_random_and_takes_one_step_of_eps():
    for eps in (2, 8):
        expected = Attack(name=f"rfgsm-{eps}", eps=eps / 255, steps=1, step=eps / 255, random_start=True)
        assert attack_named(f"rfgsm-{eps}") == expected


def test_adversarial_training_takes_their_single_step_from_the_first_epoch():
    config = preset("vgg16-reference-fast")
    attack = config.training_attack(0.0)
    assert (attack.eps, attack.step, attack.steps, attack.random_start) == (8 / 255, 10 / 255, 1, True)
    assert (config.adversarial_warmup, config.adversarial_dropout, config.adversarial_climbs) == (True, True, "sum")
    assert (config.last_layer_epochs, config.last_layer_drop, config.last_layer_attacked) == (21, 7, True)


@pytest.mark.parametrize("dropout", [True, False])
def test_the_attacker_meets_the_network_as_it_trains_where_the_recipe_says_so(tiny_config, dropout):
    config = replace(tiny_config, adversarial="fast", adversarial_dropout=dropout)
    network = Network(NetworkConfig(backbone="small", classes=3))
    network.train()
    network.backbone.train(False)
    seen = []
    network.attention_head.dropout.register_forward_hook(lambda module, *_: seen.append(module.training))
    images, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    attacked = Hardening(config, nullcontext).attacked(network, images, labels, 1.0, torch.Generator().manual_seed(0))
    assert not torch.equal(attacked, images)
    assert seen == [dropout]
    assert network.attention_head.dropout.training  # everything is as it was
    assert not network.backbone.training


def test_warm_up_is_attacked_where_the_recipe_says_so(tiny_birds, tiny_config, tmp_path, monkeypatch):
    for warm_up, expected in ((True, [0, 1]), (False, [1])):
        config = replace(tiny_config, adversarial="fast", warmup_epochs=1, epochs=2, adversarial_warmup=warm_up)
        trainer = trainer_of(tmp_path / str(warm_up), tiny_birds, config)
        epochs = set()

        def attacked(network, images, labels, progress, generator, epochs=epochs):
            epochs.add(int(progress * 2))
            return images

        monkeypatch.setattr(trainer.hardening, "attacked", attacked)
        trainer.run.path.mkdir()
        for epoch in range(2):
            trainer._epoch(epoch, lambda: None)
        assert sorted(epochs) == expected


def test_a_run_starts_from_a_finished_one(tiny_birds, tiny_config, tiny_run, tmp_path):
    trainer = trainer_of(tmp_path / "run", tiny_birds, replace(tiny_config, start=str(tiny_run)))
    finished = Run(tiny_run).read_state("model.pt")
    assert all(torch.equal(value, finished[key]) for key, value in trainer.network.state_dict().items())
    with pytest.raises(CheckpointError, match="cannot be started from"):
        trainer_of(tmp_path / "other", tiny_birds, replace(tiny_config, start=str(tiny_run), prototype_channels=8))
    with pytest.raises(CheckpointError, match="no training run at"):
        trainer_of(tmp_path / "none", tiny_birds, replace(tiny_config, start=str(tmp_path / "nothing")))


def test_the_last_layer_is_fitted_on_attacked_images_at_a_rate_that_drops(
    tiny_birds, tiny_config, tmp_path, monkeypatch
):
    import training.projection as projection

    config = replace(
        tiny_config,
        epochs=1,
        adversarial="fast",
        last_layer_attacked=True,
        last_layer_epochs=4,
        last_layer_drop=2,
        batch_size=4000,
    )
    trainer = trainer_of(tmp_path / "run", tiny_birds, config)
    rates, attacks = [], []
    step = torch.optim.Adam.step

    def watched(optimizer, *args, **kwargs):
        if any(
            trainer.network.prototype_head.classifier.weight is each for each in optimizer.param_groups[0]["params"]
        ):
            rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    similarities = projection._similarities

    def counted(network, batches, attacked):
        attacks.append(attacked is not None)
        return similarities(network, batches, attacked)

    monkeypatch.setattr(projection, "_similarities", counted)
    trainer.fit(resume=False)
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])  # one batch a pass
    assert attacks == [True] * 4  # anew in every pass


def test_clean_runs_look_at_their_images_once_for_the_last_layer(tiny_run, tiny_config, tiny_birds, monkeypatch):
    import training.projection as projection

    _, network = Run(tiny_run).load_network()
    network.prototype_head.classifier.requires_grad_(True)
    walks = []

    def batches():
        walks.append(1)
        generator = np.random.default_rng(0)
        images = torch.from_numpy(generator.integers(0, 256, (6, 32, 32, 3), np.uint8))
        return [(images, torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6))]

    projection.fit_last_layer(network, batches, replace(tiny_config, last_layer_epochs=5))
    assert len(walks) == 1
