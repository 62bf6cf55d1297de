"""Fit a run's detector: Gaussians on the training part, weights on validation, p-values on calibration.

The parts never overlap, so the calibration part is exchangeable with what the endpoint will see and its p-values are
valid; see docs/decisions/003.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detector.combination import fit_combination
from detector.model import Detector, fit_layers, layer_scores
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
    train: tuple[Images, Labels],
    validation: tuple[Images, Labels],
    attacks: Sequence[str],
    calibration_n: int,
    alpha: float,
    seed: int,
) -> Detector:
    """Everything but the p-values: the `calibration_n` scores are zeros until the graph itself has been calibrated.

    As Lee et al. (2018): positives are attacked images that the network now gets wrong, negatives the same images
    clean and noisy, and only images that it gets right both ways take part.
    """
    features, _ = measure(network, served, train[0])
    gaussians = fit_layers(features, train[1])
    layers = tuple(gaussians)
    generator = torch.Generator().manual_seed(seed)

    def scores(images: Images) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        measured, predicted = measure(network, served, images)
        return layer_scores(layers, tuple(gaussians.values()), measured, predicted), predicted == validation[1]

    clean, clean_right = scores(validation[0])
    noisy, noisy_right = scores(attacked(NOISE, network, served, validation, generator))
    kept = clean_right & noisy_right
    if kept.sum() < MIN_IMAGES:  # a network that gets little right still needs a detector, of whatever it answers
        kept = np.ones_like(kept)
    fooled, every = [], []
    for name in attacks:
        adversarial, right = scores(attacked(name, network, served, validation, generator))
        fooled.append(adversarial[kept & ~right])
        every.append(adversarial[kept])
    # A network that no attack fools still has something to say of attacked images: then all of them are positives.
    positives = np.concatenate(fooled if sum(map(len, fooled)) >= MIN_IMAGES else every)
    return Detector(
        layers=layers,
        gaussians=tuple(gaussians.values()),
        combination=fit_combination(np.concatenate([clean[kept], noisy[kept]]), positives),
        calibration=np.zeros(calibration_n, np.float32),
        alpha=alpha,
    )


@torch.no_grad()
def measure(
    network: Network, served: str, images: Images
) -> tuple[dict[str, npt.NDArray[np.float32]], npt.NDArray[np.int64]]:
    """Detector features by layer, (n, D_layer) each, and predicted classes (n,)."""
    network.eval()
    device = next(network.parameters()).device
    collected: dict[str, list[Tensor]] = {}
    predicted: list[Tensor] = []
    for batch in torch.from_numpy(images).split(BATCH):
        pixels = from_bytes(batch.to(device))
        forward = network(pixels, served)
        for layer, values in detector_features(forward).items():
            collected.setdefault(layer, []).append(values.cpu())
        predicted.append(forward.logits[served].argmax(1).cpu())
    return {layer: torch.cat(parts).numpy() for layer, parts in collected.items()}, torch.cat(predicted).numpy()


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
