"""The detector in PyTorch: what the served graph computes, and what an attack on it takes gradients of.

N images, D feature channels, K classes. Detector arithmetic stays in float32.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from detector.combination import FLOOR
from detector.gaussian import ClassGaussians
from detector.model import Detector


class Gaussians(nn.Module):
    """Squared Mahalanobis distances: detector.gaussian.ClassGaussians.evidence in as few operators as it takes, since a
    small network's time goes into operators. ||z - m_k||^2 = ||z||^2 + (||m_k||^2 - 2 z.m_k), the bracket as one Gemm.
    """

    whitening: Tensor
    overall: Tensor
    center: Tensor
    slopes: Tensor
    norms: Tensor

    def __init__(self, fitted: ClassGaussians) -> None:
        super().__init__()
        whitening, overall, center, means = (
            torch.from_numpy(array) for array in (fitted.whitening, fitted.overall, fitted.center, fitted.means)
        )
        self.register_buffer("whitening", whitening.T.contiguous())  # [D, D]
        self.register_buffer("overall", overall.T.contiguous())  # [D, D]
        self.register_buffer("center", center)  # [D]
        self.register_buffer("slopes", (-2 * means.T).contiguous())  # [D, K]
        self.register_buffer("norms", means.square().sum(1))  # [K]

    def forward(self, features: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[N, D] and the predicted classes [N, 1] -> ||z||^2, the bracket of the nearest and of the predicted class,
        and the squared distance to all images, [N, 1] each.
        """
        centred = features - self.center
        z, whole = centred @ self.whitening, centred @ self.overall
        brackets = torch.addmm(self.norms, z, self.slopes)
        squares = (z * z).sum(1, keepdim=True), (whole * whole).sum(1, keepdim=True)
        return squares[0], brackets.amin(1, keepdim=True), brackets.gather(1, predicted), squares[1]


class DetectorModule(nn.Module):
    """detector.model.Detector.layer_scores and .score, differentiable."""

    weights: Tensor
    bias: Tensor

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.layers = detector.layers
        self.gaussians = nn.ModuleList(Gaussians(fitted) for fitted in detector.gaussians)
        self.register_buffer("weights", torch.from_numpy(detector.combination.weights)[:, None])
        self.register_buffer("bias", torch.tensor(detector.combination.bias, dtype=torch.float32))

    def forward(self, features: Mapping[str, Tensor], predicted: Tensor) -> tuple[Tensor, Tensor]:
        """Features by layer [N, D_layer], the predicted classes [N, 1] -> layer scores [N, 3 * layers], score [N]."""
        found = [fit(features[layer], predicted) for layer, fit in zip(self.layers, self.gaussians, strict=True)]
        # Added and interleaved for all layers at once: [N, layers, 3] until the end.
        norms, nearest, own, whole = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        layer_scores = torch.stack([norms + nearest, norms + own, whole], dim=2).flatten(1).clamp_min(0)
        return layer_scores, (torch.log(layer_scores + FLOOR) @ self.weights).squeeze(1) + self.bias
