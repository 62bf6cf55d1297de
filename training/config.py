"""What a training run is made of: one frozen record, and how its fields are set by name.

`training.presets` has the records to start from.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from bundle.errors import OptionError
from bundle.image import ImageSpec
from training.attacks.loop import Attack
from training.augment import Augmentation
from training.backbones import check_backbone
from training.losses import LossWeights
from training.networks import ADD_ON_STARTS
from training.systems import SYSTEMS

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
    output_stride: int = 0  # pixels per cell of the map that the heads read; 0: as the backbone was published
    max_pixels: int = ImageSpec.max_pixels  # of an image that is decoded, here and wherever the bundle is served
    copies: int = 1  # augmented copies of every training image in an epoch
    # Heads alone, before the first epoch: steps on features of this many augmented copies, which are computed once.
    warmup_steps: int = 0
    warmup_copies: int = 3
    learning_rate_warmup: float = 1e-3
    warmup_epochs: int = 0  # epochs of heads alone: backbone frozen, regulariser off
    last_layer_epochs: int = 3  # after the projection, only the last layer
    last_layer_drop: int = 0  # a tenth of its rate every so many of them; 0: never
    last_layer_attacked: bool = False  # fitted to attacked images, where the run trains on such
    prototypes_per_class: int = 10
    prototype_channels: int = 128
    attention_dropout: float = 0.8
    add_on_start: str = "uniform"  # of the add-on convolutions: "uniform", or "kaiming" as in the authors' code
    frozen_stages: int = 0  # of the backbone, from the image on, that keep the weights they came with
    learning_rate_backbone: float = 1e-4
    learning_rate_heads: float = 3e-3
    learning_rate_last_layer: float = 1e-4
    weight_decay: float = 1e-3  # on everything but the prototypes
    schedule: str = "step"  # "step": a tenth before joint epochs 10, 20, ...; "cosine": one cycle with a linear start
    clip: float = 0.0  # largest L2 norm of a step's gradient; 0: any
    regularise_from: float = 0.0  # share of all epochs after which the terms beside cross-entropy take part
    loss: LossWeights = field(default_factory=LossWeights)
    augmentation: Augmentation = field(default_factory=Augmentation)
    ema: float = 0.0  # decay of an average over the weights, which is then what is validated and kept; 0: none
    start: str | None = None  # a finished run whose weights this one begins with
    # "fast": single-step adversarial training from a random start (Wong et al. 2020); "n-fgsm": from noise of twice
    # eps, unclipped (de Jorge et al. 2022)
    adversarial: str = "none"
    adversarial_eps: float = 8 / 255
    adversarial_step: float = 10 / 255
    # whose loss that step climbs: the "sum" of all heads', as in the authors' code, or in "turns" one head's, drawn for
    # each batch
    adversarial_climbs: str = "sum"
    adversarial_dropout: bool = False  # the attacker meets the network as it trains, dropout and all
    adversarial_warmup: bool = False  # warm-up epochs are attacked too
    # Shares of all epochs: eps and step are 0 until the first and rise to their full size at the second.
    adversarial_from: float = 0.0
    adversarial_full: float = 0.0
    weights: str | None = None  # "imagenet", a file in torchvision's names, or none: random
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("epochs", "batch_size", "copies", "warmup_copies", "prototypes_per_class", "prototype_channels")
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
            raise OptionError(
                f"{self.warmup_epochs} warm-up epochs do not fit into {self.epochs} epoch{'s' * (self.epochs != 1)}",
                hint="Choose more epochs, or fewer of them: --set warmup_epochs=0",
            )
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
        if self.add_on_start not in ADD_ON_STARTS:
            raise OptionError(
                f"unknown start {self.add_on_start!r} of the add-on", hint=f"Choose one of: {', '.join(ADD_ON_STARTS)}."
            )
        if self.system not in SYSTEMS:
            raise OptionError(f"unknown system {self.system!r}", hint=f"Choose one of: {', '.join(SYSTEMS)}.")
        check_backbone(self.backbone, self.output_stride)
        if self.adversarial_full < self.adversarial_from:
            raise OptionError(
                f"adversarial_full {self.adversarial_full:g} comes before adversarial_from {self.adversarial_from:g}"
            )
        if self.adversarial != "none" and self.adversarial_full >= 1:
            raise OptionError(
                "adversarial_full 1 leaves no epoch in which the attacker is at full strength, and none to keep",
                hint="Choose less than 1.",
            )
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"seed {self.seed} is outside 0..{2**32 - 1}")
        self.training_attack()

    def training_attack(self, progress: float = 1.0, caution: float = 1.0) -> Attack:
        """The single step of adversarial training after a share `progress` of all epochs; `caution` is a factor on the
        step, not on eps.
        """
        low, high = self.adversarial_from, self.adversarial_full
        rise = min(1.0, max(0.0, (progress - low) / (high - low))) if high > low else float(progress >= low)
        return Attack(
            name="training",
            eps=self.adversarial_eps * rise,
            steps=1,
            step=self.adversarial_step * rise * caution,
            random_start=True,
        )


LARGEST = 100_000
_RANGES: dict[str, tuple[float, float]] = {
    "max_pixels": (1, 10**9),
    "warmup_steps": (0, LARGEST),
    "frozen_stages": (0, 100),
    "clip": (0, 1e6),
    "learning_rate_warmup": (0, 100),
    "attention_dropout": (0, 0.99),
    "learning_rate_backbone": (0, 100),
    "learning_rate_heads": (0, 100),
    "learning_rate_last_layer": (0, 100),
    "weight_decay": (0, 100),
    "last_layer_epochs": (0, LARGEST),
    "last_layer_drop": (0, LARGEST),
    "ema": (0, 0.999999),
    "adversarial_eps": (0, 1),
    "adversarial_step": (0, 1),
    "regularise_from": (0, 1),
    "adversarial_from": (0, 1),
    "adversarial_full": (0, 1),
}


def changed(config: TrainingConfig, texts: Iterable[str], changes: Mapping[str, Any]) -> TrainingConfig:
    """`config` with `changes` by field name, those that are not None, and with settings by NAME=VALUE `texts`; a dotted
    name reaches into a part (`loss.cluster=0`). OptionError says which names there are.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    pairs = _pairs(texts)
    if twice := sorted(set(given) & set(pairs)):
        raise OptionError(f"{twice[0]} is set twice, by its own option and by --set")
    return replace(config, **{**given, **_values(config, pairs)})


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
