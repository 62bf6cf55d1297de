"""Scores of adversarial images that others make from the images themselves: feature squeezing, input preprocessing."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch

from detector.gaussian import ClassGaussians
from robustness.detector_module import Gaussians
from robustness.fitting import BATCH
from training.networks import Network, detector_features
from training.pixels import from_bytes

Array = npt.NDArray[Any]
BITS = 5  # colour depth after squeezing (Xu et al. 2018)
NUDGE = 0.002  # step of the input preprocessing, pixels in [0, 1] (Lee et al. 2018)


@torch.no_grad()
def squeeze(network: Network, head: str, images: Array) -> Array:
    """Feature squeezing: the larger L1 distance between the answers to an image and to it with fewer colours or after a
    2x2 median, (n, 1).
    """

    def answer(pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = network(pixels, head).logits[head]
        return logits.softmax(1)

    found = []
    for batch in torch.from_numpy(images).split(BATCH):
        pixels = from_bytes(batch)
        steps = 2**BITS - 1
        padded = torch.nn.functional.pad(pixels, (1, 0, 1, 0), mode="reflect")
        four = torch.stack(
            [padded[..., y : y + pixels.shape[2], x : x + pixels.shape[3]] for y in (0, 1) for x in (0, 1)]
        )
        ordered = four.sort(dim=0).values
        squeezed = (pixels * steps).round() / steps, (ordered[1] + ordered[2]) / 2
        asked = answer(pixels)
        found.append(torch.stack([(answer(each) - asked).abs().sum(1) for each in squeezed]).amax(0))
    return torch.cat(found)[:, None].numpy()


def nudge(network: Network, head: str, images: Array, gaussians: Mapping[str, ClassGaussians]) -> Array:
    """Squared distance to the nearest class in each layer, after a step on the image that lowers it: (n, layers)."""
    parts = {layer: Gaussians(fitted) for layer, fitted in gaussians.items()}

    def nearest(pixels: torch.Tensor, layer: str) -> torch.Tensor:
        features = detector_features(network(pixels, head))[layer]
        norm, bracket, *_ = parts[layer](features, torch.zeros(len(features), 1, dtype=torch.int64))
        distances: torch.Tensor = norm + bracket
        return distances[:, 0].clamp_min(0)

    rows = []
    for batch in torch.from_numpy(images).split(BATCH):
        columns = []
        for layer in gaussians:
            pixels = from_bytes(batch).requires_grad_(True)
            (gradient,) = torch.autograd.grad(nearest(pixels, layer).sum(), pixels)
            with torch.no_grad():
                columns.append(nearest((pixels - NUDGE * gradient.sign()).clamp(0, 1), layer))
        rows.append(torch.stack(columns, dim=1))
    return torch.cat(rows).numpy()
