"""Fit a run's detector: Gaussians on the training part, weights on validation, p-values on calibration.

The parts never overlap, so the calibration part is exchangeable with what the endpoint will see and its p-values are
valid; see docs/decisions/003.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bundle.errors import BundleCorrupt, BundleUnsupported, DetectorError
from bundle.false_alarms import ALPHA
from bundle.folder import Bundle
from bundle.image import ImageSpec
from bundle.manifest import FETCH_AGAIN, MARGINAL, PER_CLASS
from bundle.progress import Work
from detector.combination import Combination, fit_combination, relative_combination
from detector.gaussian import ClassGaussians
from detector.model import Detector, layer_scores
from detector.moments import ClassMoments
from training.attacks.attacker import Attacker, Attackers
from training.attacks.names import CLEAN, NOISE
from training.data import Dataset
from training.data.choice import evenly, spread
from training.data.loading import ImageParts, image_loader, images_array, load_part
from training.networks import Network, detector_features
from training.pixels import from_bytes

BATCH = 64
VALIDATION_IMAGES = 300
WORKERS = 2  # processes that decode training images, where these do not fit into memory
MIN_IMAGES = 20  # fewer than this teach nothing stable
Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class DetectorSettings:
    """`attacks` on at most so many validation `images` teach the detector's combination; without any, clean images do.
    `alpha` is the default false-positive rate of `is_adversarial`: on the whole (`marginal`), or in every predicted
    class.
    """

    attacks: tuple[str, ...] = ("fgsm-8", "pgd10-2", "pgd10-8")
    alpha: float = ALPHA
    calibration: str = MARGINAL
    seed: int = 0
    images: int = VALIDATION_IMAGES


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The images that a detector is made of: training images on disk or in memory, the others (n, H, W, 3) and (n,)."""

    spec: ImageSpec
    train: ImageParts
    validation: tuple[Images, Labels]
    calibration: tuple[Images, Labels]

    @classmethod
    def of(cls, dataset: Dataset, spec: ImageSpec) -> "Parts":
        """Read a dataset's parts; of validation as many as it takes, since the combination has few parameters."""
        validation = spread(dataset.parts["validation"], VALIDATION_IMAGES)
        return cls(
            spec=spec,
            train=load_part(dataset.parts["train"], spec),
            validation=images_array(validation, spec),
            calibration=images_array(dataset.parts["calibration"], spec),
        )

    def training_batches(self) -> Iterable[Any]:
        """One after the other, so that any number of images will do; mixed, as the shrinkage's estimate wants them."""
        return image_loader(self.train, self.spec, batch_size=BATCH, shuffle_seed=0, workers=WORKERS)


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """Layer scores of validation images, (n, columns) each: all clean ones, the negatives that take part, and by attack
    the positives: those that fool the network, and all. `available` images there would have been.
    """

    layers: int
    available: int
    clean: Float32
    negatives: Float32
    fooled: dict[str, Float32]
    every: dict[str, Float32]

    def combination(self, attacks: Sequence[str], *, more: Float32 | None = None) -> Combination:
        """What these attacks teach, and `more` positives (m, columns) of others; without any, what clean images do."""
        if not attacks and more is None:
            return relative_combination(self.clean, self.layers)
        # A network that no attack fools still has something to say of attacked images: then all of them are positives.
        enough = sum(len(self.fooled[name]) for name in attacks) >= MIN_IMAGES
        positives = [(self.fooled if enough else self.every)[name] for name in attacks]
        return fit_combination(self.negatives, np.concatenate(positives if more is None else [*positives, more]))


class Taught(NamedTuple):
    """A fitted detector, and what it was taught."""

    detector: Detector
    lessons: Lessons


def fit_detector(network: Network, head: str, parts: Parts, settings: DetectorSettings) -> Taught:
    """Everything but the p-values: calibration scores are zeros until what will be served has been calibrated; and what
    the combination was learnt from, to learn it again from less.
    """
    with Work(f"{head}: features of the training part", len(parts.train)) as work:
        gaussians = fit_layers(network, head, parts.training_batches(), work)
    lessons = teach(network, head, gaussians, parts.validation, settings)
    calibration_n = len(parts.calibration[0])
    detector = Detector(
        layers=tuple(gaussians),
        gaussians=tuple(gaussians.values()),
        combination=lessons.combination(settings.attacks),
        calibration=np.zeros(calibration_n, np.float32),
        calibration_classes=np.zeros(calibration_n, np.int64) if settings.calibration == PER_CLASS else None,
        alpha=settings.alpha,
    )
    return Taught(detector, lessons)


def fit_and_calibrate(
    network: Network, head: str, parts: Parts, settings: DetectorSettings, labels: Sequence[str]
) -> Taught:
    """The same, calibrated on PyTorch's own scores, for a run that is not exported."""
    detector, lessons = fit_detector(network, head, parts, settings)
    features, predicted = features_of(network, head, parts.calibration[0])
    return Taught(detector.calibrated(detector.score(features, predicted), predicted, settings.alpha, labels), lessons)


def detector_taught(
    bundle: Path | None, attackers: Attackers, head: str, parts: Parts, labels: Sequence[str]
) -> Taught:
    """A bundle's own detector, or one fitted as export would."""
    if bundle is not None:
        return lessons_of(bundle, attackers.network, head, parts)
    return fit_and_calibrate(attackers.network, head, parts, DetectorSettings(seed=attackers.seed), labels)


def lessons_of(bundle: Path, network: Network, head: str, parts: Parts) -> Taught:
    """A bundle's own detector, and what it was learnt from, made again from the settings in its manifest."""
    opened = Bundle.open(bundle)
    told = opened.manifest.training.get("detector")
    settings = _settings_in(told)
    if head not in opened.manifest.networks or settings is None:
        raise BundleUnsupported(
            f"{bundle} does not say how the detector of {head!r} was taught", hint="Export the run again."
        )
    info = opened.manifest.networks[head].detector
    detector = Detector.load(opened.file(info.file))
    if detector.columns != info.columns or len(detector.gaussians[0].means) != len(opened.manifest.labels):
        raise BundleCorrupt(f"{opened.path / info.file} is not the detector of {head!r}", hint=FETCH_AGAIN)
    gaussians = dict(zip(detector.layers, detector.gaussians, strict=True))
    return Taught(detector, teach(network, head, gaussians, parts.validation, settings))


def calibration_of(bundle: Path) -> dict[str, Any] | None:
    """What a bundle says of images that it was calibrated on after its export (`fieldmark calibrate`), if on any."""
    told = Bundle.open(bundle).manifest.training.get("calibration")
    return told if isinstance(told, dict) else None


def _settings_in(told: Any) -> DetectorSettings | None:
    """What a manifest, which holds whatever its maker wrote, says of a detector's lessons."""
    if not isinstance(told, dict) or not {"attacks", "seed"} <= set(told):
        return None
    attacks, images = told["attacks"], told.get("images", VALIDATION_IMAGES)  # older bundles: all that there were
    whole = isinstance(images, int) and images >= 1
    if not isinstance(attacks, list) or not isinstance(told["seed"], int) or not whole:
        return None
    return DetectorSettings(attacks=tuple(attacks), seed=told["seed"], images=images)


def teach(
    network: Network,
    head: str,
    gaussians: Mapping[str, ClassGaussians],
    validation: tuple[Images, Labels],
    settings: DetectorSettings,
) -> Lessons:
    """Layer scores to learn from, of as many validation images as the settings want, evenly spread.

    As Lee et al. (2018): positives are attacked images that the network now gets wrong, negatives the same images
    clean and noisy, and only images that it gets right both ways take part.
    """
    attacker = Attackers(network=network, seed=settings.seed).on(head)
    attacks = settings.attacks
    available = len(validation[1])
    validation = some(validation, settings.images)

    def scores(images: Images) -> tuple[Float32, npt.NDArray[np.bool_]]:
        measured, predicted = features_of(network, head, images)
        found = layer_scores(tuple(gaussians), tuple(gaussians.values()), measured, predicted)
        return found, predicted == validation[1]

    clean, clean_right = scores(validation[0])
    if not attacks:
        return Lessons(layers=len(gaussians), available=available, clean=clean, negatives=clean, fooled={}, every={})
    noisy, noisy_right = scores(attacked(NOISE, attacker, validation))
    kept = clean_right & noisy_right
    if kept.sum() < MIN_IMAGES:  # a network that gets little right still needs a detector, of whatever it answers
        kept = np.ones_like(kept)
    fooled, every, changed = {}, {}, False
    with Work(f"{head}: attacks for the detector's lessons", len(attacks) * len(validation[1])) as work:
        for name in attacks:
            images = attacked(name, attacker, validation, work=work)
            changed |= not np.array_equal(images, validation[0])
            adversarial, right = scores(images)
            fooled[name], every[name] = adversarial[kept & ~right], adversarial[kept]
    if not changed:
        raise DetectorError(
            f"the attacks {', '.join(attacks)} change no image, so there is nothing to learn from",
            hint="Name others, or learn from clean images alone: --attacks none.",
        )
    negatives = np.concatenate([clean[kept], noisy[kept]])
    return Lessons(
        layers=len(gaussians), available=available, clean=clean, negatives=negatives, fooled=fooled, every=every
    )


def some(part: tuple[Images, Labels], count: int) -> tuple[Images, Labels]:
    """At most `count` images of a part in memory, evenly over it."""
    if count >= len(part[1]):
        return part
    picked = evenly(len(part[1]), count)
    return part[0][picked], part[1][picked]


def fit_layers(
    network: Network, head: str, batches: Iterable[Any], work: Work | None = None
) -> dict[str, ClassGaussians]:
    """Class Gaussians of every layer, in one pass over batches (images uint8 [B, H, W, 3], labels [B], ...)."""
    moments: dict[str, ClassMoments] = {}
    for images, labels, *_ in batches:
        features, _ = _features_of_batch(network, head, images)
        for layer, values in features.items():
            kept = moments.setdefault(layer, ClassMoments(network.config.classes, values.shape[1]))
            kept.add(values.numpy(), labels.numpy())
        if work is not None:
            work.advance(len(labels))
    return {layer: kept.gaussians(layer=layer) for layer, kept in moments.items()}


def features_of(
    network: Network, head: str, images: Images
) -> tuple[dict[str, npt.NDArray[np.float32]], npt.NDArray[np.int64]]:
    """Detector features by layer, (n, D_layer) each, and predicted classes (n,)."""
    batches = [_features_of_batch(network, head, batch) for batch in torch.from_numpy(images).split(BATCH)]
    layers = batches[0][0]
    predicted: npt.NDArray[np.int64] = torch.cat([answers for _, answers in batches]).numpy()
    return {layer: torch.cat([found[layer] for found, _ in batches]).numpy() for layer in layers}, predicted


@torch.no_grad()
def _features_of_batch(network: Network, head: str, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    network.eval()
    forward = network(from_bytes(images.to(next(network.parameters()).device)), head)
    features = {layer: values.cpu() for layer, values in detector_features(forward).items()}
    return features, forward.logits[head].argmax(1).cpu()


def by_batch(images: Images, labels: Labels, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (n, H, W, 3) and their labels (n,) in batches on a device."""
    for batch, known in zip(torch.from_numpy(images).split(BATCH), torch.from_numpy(labels).split(BATCH), strict=True):
        yield batch.to(device), known.to(device)


def attacked(name: str, attacker: Attacker, part: tuple[Images, Labels], *, work: Work | None = None) -> Images:
    """The part's images after `name` (an attack, `noise` or `clean`), rounded to bytes like any file; `work` advances
    by every one of them.
    """
    found = [part[0]] if name == CLEAN else []
    if name != CLEAN:
        for images, labels in by_batch(*part, next(attacker.network.parameters()).device):
            found.append(attacker.attack_bytes(name, images, labels).cpu().numpy())
            if work is not None:
                work.advance(len(labels))
    return np.concatenate(found)
