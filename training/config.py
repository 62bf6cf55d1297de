"""What a training run is made of: one frozen record, and presets that are functions returning one."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from bundle.errors import OptionError
from training.attacks import Attack
from training.augment import Augmentation
from training.backbones import BACKBONES
from training.losses import LossWeights


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Every number of a run. Sizes in pixels, rates per step, eps and step in [0, 1] pixel units."""

    preset: str
    backbone: str
    image_size: int
    epochs: int  # warm-up included
    batch_size: int
    warmup_epochs: int = 0  # heads only, backbone frozen, regulariser off
    last_layer_epochs: int = 3  # after the projection, only the last layer
    prototypes_per_class: int = 10
    prototype_channels: int = 128
    attention_dropout: float = 0.8
    learning_rate_backbone: float = 1e-4
    learning_rate_heads: float = 3e-3
    learning_rate_last_layer: float = 1e-4
    weight_decay: float = 1e-3  # on everything but the prototypes
    schedule: str = "step"  # "step": a tenth every 10 epochs; "cosine": one cycle with a linear start
    loss: LossWeights = field(default_factory=LossWeights)
    augmentation: Augmentation = field(default_factory=Augmentation)
    adversarial: str = "none"  # "fast": single-step adversarial training from a random start (Wong et al. 2020)
    adversarial_eps: float = 8 / 255
    adversarial_step: float = 10 / 255
    weights: str | None = None  # "imagenet", a file in torchvision's names, or none: random
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("epochs", "batch_size", "prototypes_per_class", "prototype_channels")
        if self.batch_size == 1:
            raise OptionError("a batch of one image has no statistics to normalise by", hint="Choose at least 2.")
        for name in positive:
            if getattr(self, name) < 1:
                raise OptionError(f"{name.replace('_', ' ')} must be at least 1, not {getattr(self, name)}")
        if not 32 <= self.image_size <= 1024:
            raise OptionError(f"image size {self.image_size} is outside 32..1024 pixels")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise OptionError(f"{self.warmup_epochs} warm-up epochs do not fit into {self.epochs} epochs")
        if self.schedule not in ("step", "cosine"):
            raise OptionError(f"unknown schedule {self.schedule!r}", hint="Choose one of: step, cosine.")
        if self.adversarial not in ("none", "fast"):
            raise OptionError(f"unknown adversarial training {self.adversarial!r}", hint="Choose one of: none, fast.")
        if self.backbone not in BACKBONES:
            raise OptionError(f"unknown backbone {self.backbone!r}", hint=f"Choose one of: {', '.join(BACKBONES)}.")
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"seed {self.seed} is outside 0..{2**32 - 1}")
        self.training_attack()

    def training_attack(self) -> Attack:
        """The single step of fast adversarial training."""
        return Attack(name="training", eps=self.adversarial_eps, steps=1, step=self.adversarial_step, random_start=True)


def small() -> TrainingConfig:
    """The built-in birds at 64 px on a CPU, in about four minutes on two cores."""
    return TrainingConfig(
        preset="small",
        backbone="small",
        image_size=64,
        epochs=16,
        batch_size=64,
        learning_rate_backbone=3e-3,
        learning_rate_heads=3e-3,
        weight_decay=1e-4,
        schedule="cosine",
        attention_dropout=0.2,
        last_layer_epochs=20,
        learning_rate_last_layer=1e-3,
        loss=LossWeights(cluster=1.0),
    )


def small_fast() -> TrainingConfig:
    """`small` with fast adversarial training, gentler than the reference so that it does not collapse from scratch."""
    return replace(small(), preset="small-fast", epochs=24, adversarial="fast", adversarial_step=8 / 255)


def _paper(backbone: str) -> TrainingConfig:
    return TrainingConfig(
        preset=backbone,
        backbone=backbone,
        image_size=224,
        epochs=31,
        warmup_epochs=5,
        last_layer_epochs=20,
        batch_size=80,
        weights="imagenet",
    )


PRESETS: dict[str, Callable[[], TrainingConfig]] = {
    "small": small,
    "small-fast": small_fast,
    "vgg16": lambda: _paper("vgg16"),
    "vgg19": lambda: _paper("vgg19"),
    "resnet34": lambda: _paper("resnet34"),
    "vgg16-fast": lambda: replace(_paper("vgg16"), preset="vgg16-fast", adversarial="fast"),
    "vgg19-fast": lambda: replace(_paper("vgg19"), preset="vgg19-fast", adversarial="fast"),
    "resnet34-fast": lambda: replace(_paper("resnet34"), preset="resnet34-fast", adversarial="fast"),
}


def preset(name: str, **changes: Any) -> TrainingConfig:
    """The named preset with `changes` that are not None; raises OptionError that lists the presets."""
    if name not in PRESETS:
        raise OptionError(f"unknown preset {name!r}", hint=f"Choose one of: {', '.join(PRESETS)}.")
    return replace(PRESETS[name](), **{key: value for key, value in changes.items() if value is not None})
