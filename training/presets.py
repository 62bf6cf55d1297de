"""The configs to start from. A preset is named [SYSTEM-]BACKBONE[-SIZE][-reference][-fast].

That is the objective and heads of a system, a backbone with the recipe that suits it, the input side in pixels, the
recipe of the authors' code instead of ours, and adversarial training. `small`, `vgg16`, `ap-vgg16-96`,
`protopnet-resnet34-fast`, `vgg16-reference`.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from bundle.errors import OptionError
from training.augment import Augmentation
from training.backbones import BACKBONES
from training.config import TrainingConfig, changed
from training.systems import DEFAULT, SYSTEMS

PUBLISHED_SIZE = 224  # pixels, of the weights that the large backbones start from
MIN_CELLS = 6  # a side of the map that the heads read; the paper has 7

_PRESET = re.compile(
    rf"(?:({'|'.join(SYSTEMS)})-)?({'|'.join(BACKBONES)})(?:-([1-9][0-9]{{1,3}}))?(-reference)?(-fast)?"
)


def preset(name: str, *, system: str | None = None, texts: Iterable[str] = (), **changes: Any) -> TrainingConfig:
    """The named preset, of another `system` if one is given, with `changes` that are not None and with settings by
    NAME=VALUE `texts`; a dotted name reaches into a part (`loss.cluster=0`). OptionError says how both are named. An
    `image_size` among the changes stands for the size in the name, since a recipe may depend on it.
    """
    match = _PRESET.fullmatch(name)
    if match is None:
        raise OptionError(
            f"unknown preset {name!r}",
            hint=f"Presets are named [SYSTEM-]BACKBONE[-SIZE][-reference][-fast], SIZE in pixels; systems: "
            f"{', '.join(SYSTEMS)}; backbones: {', '.join(BACKBONES)}.",
        )
    chosen, backbone = system or match[1] or DEFAULT, match[2]
    size = changes.get("image_size") or (int(match[3]) if match[3] else None)
    reference, fast = bool(match[4]), bool(match[5])
    if chosen not in SYSTEMS:
        raise OptionError(f"unknown system {chosen!r}", hint=f"Choose one of: {', '.join(SYSTEMS)}.")
    config = _recipe(chosen, backbone, size, reference, fast)
    words = (
        "" if chosen == DEFAULT else f"{chosen}-",
        backbone,
        f"-{match[3]}" if match[3] else "",
        match[4],
        match[5],
    )
    return changed(replace(config, preset="".join(word or "" for word in words)), texts, changes)


def _recipe(system: str, backbone: str, size: int | None, reference: bool, fast: bool) -> TrainingConfig:
    if reference:
        config = reference_recipe(system, backbone, size or PUBLISHED_SIZE)
        return reference_fast(config) if fast else config
    if backbone == "small":
        config = small(system, size or 64)
        return small_fast(config) if fast else config
    config = photographs(system, backbone, size or PUBLISHED_SIZE)
    return photographs_fast(config) if fast else config


def small(system: str, size: int) -> TrainingConfig:
    """The built-in birds on a CPU, at 64 px in about four minutes on two cores."""
    loss = SYSTEMS[system].loss
    return TrainingConfig(
        preset="",
        system=system,
        backbone="small",
        image_size=size,
        epochs=16,
        batch_size=64,
        learning_rate_backbone=3e-3,
        learning_rate_heads=3e-3,
        weight_decay=1e-4,
        schedule="cosine",
        attention_dropout=0.2,
        last_layer_epochs=20,
        learning_rate_last_layer=1e-3,
        # A network from scratch: the weights for ImageNet features would hold every image to one point before it can
        # tell birds apart.
        loss=replace(
            loss, cluster=min(loss.cluster, 1.0), proximity=loss.proximity / 100, contrast=loss.contrast / 100
        ),
    )


def small_fast(config: TrainingConfig) -> TrainingConfig:
    """Gentler than the reference, so that it does not collapse from scratch; a tenth of the regulariser leaves room for
    robustness, and a step that climbs one head's loss is a stronger attack on it (docs/results.md has both ablated).
    """
    loss = replace(config.loss, cluster=config.loss.cluster / 10, separation=config.loss.separation / 10)
    return replace(
        config, epochs=24, adversarial="fast", adversarial_step=8 / 255, adversarial_climbs="turns", loss=loss
    )


def photographs(system: str, backbone: str, size: int) -> TrainingConfig:
    """A few thousand photographs and ImageNet weights: at 96 px in half an hour on two cores. What differs from the
    authors' code, and what each difference is worth, stands in docs/results.md.
    """
    published, *finer = BACKBONES[backbone].strides
    stride = next((each for each in (published, *finer) if size // each >= MIN_CELLS), (published, *finer)[-1])
    loss = SYSTEMS[system].loss
    return TrainingConfig(
        preset="",
        system=system,
        backbone=backbone,
        image_size=size,
        output_stride=stride,
        epochs=10,
        warmup_steps=1000,
        warmup_copies=2,
        last_layer_epochs=20,
        learning_rate_last_layer=1e-3,
        batch_size=32,
        attention_dropout=0.2,
        frozen_stages=2,
        learning_rate_backbone=1e-4,
        learning_rate_heads=1e-3,
        schedule="cosine",
        clip=1.0,
        augmentation=Augmentation(crop=0.6, scale=0.05, brightness=0.3, contrast=0.3, saturation=0.3, color=0.1),
        weights="imagenet",
        # PCL's proximity is a sum over 512 channels: at its published weight 500 times cross-entropy after the warm-up,
        # and all photographs became one point.
        loss=replace(
            loss,
            cluster=min(loss.cluster, 1.0),
            proximity=loss.proximity / 1000,
            contrast=loss.contrast / 1000,
            label_smoothing=0.1,
        ),
    )


def photographs_fast(config: TrainingConfig) -> TrainingConfig:
    """Clean images for a quarter of the epochs, then a step that rises until three quarters (arXiv 2509.23325)."""
    return replace(
        config,
        adversarial="fast",
        frozen_stages=0,
        adversarial_step=8 / 255,
        adversarial_from=0.25,
        adversarial_full=0.75,
    )


def reference_recipe(system: str, backbone: str, size: int) -> TrainingConfig:
    """The authors' released code step for step, but for selection, which there looks at the test part: 31 epochs over
    thirty augmented copies of every image, five of them with the backbone frozen and the regulariser off.
    """
    return TrainingConfig(
        preset="",
        system=system,
        backbone=backbone,
        image_size=size,
        epochs=31,
        warmup_epochs=5,
        copies=30,
        last_layer_epochs=20,
        batch_size=80,
        add_on_start="kaiming",
        augmentation=Augmentation(rotate=15.0, shear=10.0, skew=0.2, scale=0.0, one_of=True),
        weights=None if backbone == "small" else "imagenet",
        loss=SYSTEMS[system].loss,
    )


def reference_fast(config: TrainingConfig) -> TrainingConfig:
    """The same schedule again, from the finished clean model (`--set start=RUN`): every epoch attacked, by a network
    that trains, and then 21 passes of the last layer over attacked images.
    """
    return replace(
        config,
        adversarial="fast",
        adversarial_dropout=True,
        adversarial_warmup=True,
        last_layer_epochs=21,
        last_layer_drop=7,
        last_layer_attacked=True,
    )
