"""The preset `reference`: the authors' released code line by line, as far as it is known, in numbers."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from bundle.errors import OptionError
from training.attacks.loop import Attack
from training.attacks.names import attack_named
from training.augment import Augmentation, augment
from training.hardening import Hardening
from training.networks import Network, NetworkConfig
from training.presets import preset

CUB_TRAINING_IMAGES = 5994


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
