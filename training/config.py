"""What a training run is made of: one frozen record, made from a preset and changed by options.

A preset is named [SYSTEM-]BACKBONE[-fast]: the objective and heads of a system, the recipe of a backbone, and fast
adversarial training if asked for. `small`, `ap-vgg16`, `protopnet-resnet34-fast`, `gap-densenet121`.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from bundle.errors import OptionError
from training.attacks import Attack
from training.augment import Augmentation
from training.backbones import BACKBONES
from training.losses import LossWeights
from training.systems import DEFAULT, SYSTEMS

ADVERSARIAL = ("none", "fast", "n-fgsm")
CLIMBS = ("sum", "turns")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Every number of a run. Sizes in pixels, rates per step, eps and step in [0, 1] pixel units."""

    preset: str
    system: str  # a name in training.systems.SYSTEMS
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
    ema: float = 0.0  # decay of an average over the weights, which is then what is validated and kept; 0: none
    # "fast": single-step adversarial training from a random start (Wong et al. 2020); "n-fgsm": from noise of twice
    # eps, unclipped (de Jorge et al. 2022)
    adversarial: str = "none"
    adversarial_eps: float = 8 / 255
    adversarial_step: float = 10 / 255
    # whose loss that step climbs: the "sum" of all heads', as in the authors' code, or in "turns" one head's, drawn for
    # each batch
    adversarial_climbs: str = "sum"
    adversarial_rise: int = 0  # epochs over which eps and step rise to their full size
    weights: str | None = None  # "imagenet", a file in torchvision's names, or none: random
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("epochs", "batch_size", "prototypes_per_class", "prototype_channels")
        if self.batch_size == 1:
            raise OptionError("a batch of one image has no statistics to normalise by", hint="Choose at least 2.")
        for name in positive:
            if not 1 <= getattr(self, name) <= LARGEST:
                raise OptionError(f"{name.replace('_', ' ')} must be in 1..{LARGEST}, not {getattr(self, name)}")
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:  # false for what is not a number, too
                raise OptionError(f"{name} must be in {low:g}..{high:g}, not {getattr(self, name):g}")
        if not 32 <= self.image_size <= 1024:
            raise OptionError(f"image size {self.image_size} is outside 32..1024 pixels")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise OptionError(f"{self.warmup_epochs} warm-up epochs do not fit into {self.epochs} epochs")
        if self.schedule not in ("step", "cosine"):
            raise OptionError(f"unknown schedule {self.schedule!r}", hint="Choose one of: step, cosine.")
        if self.adversarial not in ADVERSARIAL:
            raise OptionError(
                f"unknown adversarial training {self.adversarial!r}", hint=f"Choose one of: {', '.join(ADVERSARIAL)}."
            )
        if self.adversarial_climbs not in CLIMBS:
            raise OptionError(
                f"adversarial training cannot climb {self.adversarial_climbs!r}",
                hint=f"Choose one of: {', '.join(CLIMBS)}.",
            )
        if self.system not in SYSTEMS:
            raise OptionError(f"unknown system {self.system!r}", hint=f"Choose one of: {', '.join(SYSTEMS)}.")
        if self.backbone not in BACKBONES:
            raise OptionError(f"unknown backbone {self.backbone!r}", hint=f"Choose one of: {', '.join(BACKBONES)}.")
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"seed {self.seed} is outside 0..{2**32 - 1}")
        self.training_attack()

    def training_attack(self, epoch: int = 10**6, caution: float = 1.0) -> Attack:
        """The single step of adversarial training in an epoch; `caution` is a factor on the step, not on eps."""
        rise = min(1.0, (epoch + 1 - self.warmup_epochs) / self.adversarial_rise) if self.adversarial_rise else 1.0
        return Attack(
            name="training",
            eps=self.adversarial_eps * rise,
            steps=1,
            step=self.adversarial_step * rise * caution,
            random_start=True,
        )


LARGEST = 100_000
_RANGES: dict[str, tuple[float, float]] = {
    "attention_dropout": (0, 0.99),
    "learning_rate_backbone": (0, 100),
    "learning_rate_heads": (0, 100),
    "learning_rate_last_layer": (0, 100),
    "weight_decay": (0, 100),
    "last_layer_epochs": (0, LARGEST),
    "ema": (0, 0.999999),
    "adversarial_eps": (0, 1),
    "adversarial_step": (0, 1),
    "adversarial_rise": (0, LARGEST),
}


def small(system: str) -> TrainingConfig:
    """The built-in birds at 64 px on a CPU, in about four minutes on two cores."""
    loss = SYSTEMS[system].loss
    return TrainingConfig(
        preset="",
        system=system,
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
        # A network from scratch: the weights for ImageNet features would hold every image to one point before it can
        # tell birds apart.
        loss=replace(
            loss, cluster=min(loss.cluster, 1.0), proximity=loss.proximity / 100, contrast=loss.contrast / 100
        ),
    )


def paper(system: str, backbone: str) -> TrainingConfig:
    """The reference's recipe at 224 px, from ImageNet weights."""
    return TrainingConfig(
        preset="",
        system=system,
        backbone=backbone,
        image_size=224,
        epochs=31,
        warmup_epochs=5,
        last_layer_epochs=20,
        batch_size=80,
        weights="imagenet",
        loss=SYSTEMS[system].loss,
    )


def _fast(config: TrainingConfig) -> TrainingConfig:
    if config.backbone != "small":
        return replace(config, adversarial="fast")
    # Gentler than the reference, so that it does not collapse from scratch; a tenth of the regulariser leaves room for
    # robustness, and a step that climbs one head's loss is a stronger attack on it (docs/results.md has both ablated).
    loss = replace(config.loss, cluster=config.loss.cluster / 10, separation=config.loss.separation / 10)
    return replace(
        config, epochs=24, adversarial="fast", adversarial_step=8 / 255, adversarial_climbs="turns", loss=loss
    )


_PRESET = re.compile(rf"(?:({'|'.join(SYSTEMS)})-)?({'|'.join(BACKBONES)})(-fast)?")


def preset(name: str, *, system: str | None = None, texts: Iterable[str] = (), **changes: Any) -> TrainingConfig:
    """The named preset, of another `system` if one is given, with `changes` that are not None and with settings by
    NAME=VALUE `texts`; a dotted name reaches into a part (`loss.cluster=0`). OptionError says how both are named.
    """
    match = _PRESET.fullmatch(name)
    if match is None:
        raise OptionError(
            f"unknown preset {name!r}",
            hint=f"Presets are named [SYSTEM-]BACKBONE[-fast]; systems: {', '.join(SYSTEMS)}; "
            f"backbones: {', '.join(BACKBONES)}.",
        )
    chosen, backbone, fast = system or match[1] or DEFAULT, match[2], match[3] or ""
    if chosen not in SYSTEMS:
        raise OptionError(f"unknown system {chosen!r}", hint=f"Choose one of: {', '.join(SYSTEMS)}.")
    config = small(chosen) if backbone == "small" else paper(chosen, backbone)
    config = _fast(config) if fast else config
    canonical = f"{'' if chosen == DEFAULT else chosen + '-'}{backbone}{fast}"
    given = {key: value for key, value in changes.items() if value is not None}
    pairs = _pairs(texts)
    if twice := sorted(set(given) & set(pairs)):
        raise OptionError(f"{twice[0]} is set twice, by its own option and by --set")
    return replace(config, preset=canonical, **{**given, **_values(config, pairs)})


def _pairs(texts: Iterable[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise OptionError(f"{text!r} is not NAME=VALUE", hint="For example: --set loss.cluster=0")
        if name.strip() in found:
            raise OptionError(f"{name.strip()} is set twice")
        found[name.strip()] = value.strip()
    return found


def _values(record: Any, values: dict[str, str], prefix: str = "") -> dict[str, Any]:
    """Fields of a config by dotted name, each read from its text as the field's type."""
    names = {each.name: getattr(record, each.name) for each in fields(record) if each.name not in ("preset", "system")}
    own: dict[str, Any] = {}
    for name, text in values.items():
        head, dot, rest = name.partition(".")
        if head not in names or bool(dot) != is_dataclass(names[head]):
            raise OptionError(f"there is no setting {prefix + name!r}", hint=f"Settings: {', '.join(_leaves(record))}.")
        if dot:
            part = own.get(head, names[head])
            own[head] = replace(part, **_values(part, {rest: text}, f"{prefix}{head}."))
        else:
            own[head] = _read(names[head], text, prefix + name)
    return own


def _leaves(record: Any, prefix: str = "") -> list[str]:
    found = []
    for each in fields(record):
        value = getattr(record, each.name)
        if is_dataclass(value):
            found += _leaves(value, f"{prefix}{each.name}.")
        elif each.name not in ("preset", "system"):
            found.append(prefix + each.name)
    return found


_READERS: dict[type, tuple[Callable[[str], Any], str]] = {
    bool: ({"true": True, "false": False}.__getitem__, "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
}


def _read(current: Any, text: str, name: str) -> Any:
    reader, kind = _READERS.get(type(current), (str, "text"))
    try:
        return reader(text)
    except (ValueError, KeyError):
        raise OptionError(f"setting {name} is {kind}, not {text!r}") from None
