"""Fit a run's detector: Gaussians on the training part, weights on validation, p-values on calibration.

The parts never overlap, so the calibration part is exchangeable with what the endpoint will see and its p-values are
valid; see docs/decisions/003.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bundle.errors import DetectorError
from detector.combination import fit_combination, relative_combination
from detector.gaussian import ClassGaussians
from detector.model import Detector, layer_scores
from detector.moments import ClassMoments
from training.adversaries import CLEAN, NOISE, perturb
from training.attacks import from_bytes
from training.networks import Network, detector_features

BATCH = 64
MIN_IMAGES = 20  # fewer than this teach nothing stable
Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def fit_detector(
    network: Network,
    served: str,
    *,
    train: Iterable[Any],
    validation: tuple[Images, Labels],
    attacks: Sequence[str],
    calibration_n: int,
    alpha: float,
    seed: int,
    per_class: bool = False,
) -> Detector:
    """Everything but the p-values: the `calibration_n` scores are zeros until the graph itself has been calibrated.

    `train` is an image loader; its images are gone when their moments are taken, so any number of them will do.
    Attacked validation images teach the weights; without attacks, clean ones do.
    """
    gaussians = fit_layers(network, served, train)
    layers = tuple(gaussians)
    if attacks:
        combination = fit_combination(*teach(network, served, gaussians, validation, attacks, seed))
    else:
        measured, predicted = measure(network, served, validation[0])
        clean = layer_scores(layers, tuple(gaussians.values()), measured, predicted)
        combination = relative_combination(clean, len(layers))
    return Detector(
        layers=layers,
        gaussians=tuple(gaussians.values()),
        combination=combination,
        calibration=np.zeros(calibration_n, np.float32),
        calibration_classes=np.zeros(calibration_n, np.int64) if per_class else None,
        alpha=alpha,
    )


def teach(
    network: Network,
    served: str,
    gaussians: Mapping[str, ClassGaussians],
    validation: tuple[Images, Labels],
    attacks: Sequence[str],
    seed: int,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Layer scores of the negatives and of the positives that a detector learns from, (n, columns) and (m, columns).

    As Lee et al. (2018): positives are attacked images that the network now gets wrong, negatives the same images
    clean and noisy, and only images that it gets right both ways take part.
    """
    generator = torch.Generator().manual_seed(seed)

    def scores(images: Images) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        measured, predicted = measure(network, served, images)
        found = layer_scores(tuple(gaussians), tuple(gaussians.values()), measured, predicted)
        return found, predicted == validation[1]

    clean, clean_right = scores(validation[0])
    noisy, noisy_right = scores(attacked(NOISE, network, served, validation, generator))
    kept = clean_right & noisy_right
    if kept.sum() < MIN_IMAGES:  # a network that gets little right still needs a detector, of whatever it answers
        kept = np.ones_like(kept)
    fooled, every, changed = [], [], False
    for name in attacks:
        images = attacked(name, network, served, validation, generator)
        changed |= not np.array_equal(images, validation[0])
        adversarial, right = scores(images)
        fooled.append(adversarial[kept & ~right])
        every.append(adversarial[kept])
    if not changed:
        raise DetectorError(
            f"the attacks {', '.join(attacks)} change no image, so there is nothing to learn from",
            hint="Name others, or learn from clean images alone: --attacks none.",
        )
    # A network that no attack fools still has something to say of attacked images: then all of them are positives.
    positives = np.concatenate(fooled if sum(map(len, fooled)) >= MIN_IMAGES else every)
    return np.concatenate([clean[kept], noisy[kept]]), positives


def fit_layers(network: Network, served: str, batches: Iterable[Any]) -> dict[str, ClassGaussians]:
    """Class Gaussians of every layer, in one pass over batches (images uint8 [B, H, W, 3], labels [B], ...)."""
    moments: dict[str, ClassMoments] = {}
    for images, labels, *_ in batches:
        features, _ = _measure_batch(network, served, images)
        for layer, values in features.items():
            kept = moments.setdefault(layer, ClassMoments(network.config.classes, values.shape[1]))
            kept.add(values.numpy(), labels.numpy())
    return {layer: kept.gaussians(layer=layer) for layer, kept in moments.items()}


def measure(
    network: Network, served: str, images: Images
) -> tuple[dict[str, npt.NDArray[np.float32]], npt.NDArray[np.int64]]:
    """Detector features by layer, (n, D_layer) each, and predicted classes (n,)."""
    batches = [_measure_batch(network, served, batch) for batch in torch.from_numpy(images).split(BATCH)]
    layers = batches[0][0]
    predicted: npt.NDArray[np.int64] = torch.cat([answers for _, answers in batches]).numpy()
    return {layer: torch.cat([found[layer] for found, _ in batches]).numpy() for layer in layers}, predicted


@torch.no_grad()
def _measure_batch(network: Network, served: str, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    network.eval()
    forward = network(from_bytes(images.to(next(network.parameters()).device)), served)
    features = {layer: values.cpu() for layer, values in detector_features(forward).items()}
    return features, forward.logits[served].argmax(1).cpu()


def attacked(
    name: str, network: Network, served: str, part: tuple[Images, Labels], generator: torch.Generator
) -> Images:
    """The part's images after `name` (an attack, `noise` or `clean`), rounded to bytes like any file."""
    if name == CLEAN:
        return part[0]
    device = next(network.parameters()).device
    batches = zip(torch.from_numpy(part[0]).split(BATCH), torch.from_numpy(part[1]).split(BATCH), strict=True)
    return np.concatenate(
        [
            perturb(name, network, served, images.to(device), labels.to(device), generator).cpu().numpy()
            for images, labels in batches
        ]
    )
