"""Settings: presets by name, fields by name, and what makes no sense."""

from dataclasses import replace

import pytest

from bundle.errors import OptionError
from training.backbones import BACKBONES
from training.presets import preset
from training.systems import SYSTEMS


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
