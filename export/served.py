"""The graph we serve, as a PyTorch module: uint8 image -> network -> detector, in one piece.

N images, K classes, n calibration scores, t prototypes shown. Detector arithmetic stays in float32.
"""

import torch
from torch import Tensor, nn

from bundle import tensors
from detector.combination import FLOOR
from detector.model import DISTANCES, Detector
from training.networks import Forward, Network, detector_features, read_heads

PROTOTYPES_SHOWN = 5


class Gaussians(nn.Module):
    """Squared Mahalanobis distances: detector.gaussian.ClassGaussians.evidence in as few operators as it takes, since a
    small network's time goes into operators. ||z - m_k||^2 = ||z||^2 + (||m_k||^2 - 2 z.m_k), the bracket as one Gemm.
    """

    whitening: Tensor
    center: Tensor
    slopes: Tensor
    norms: Tensor

    def __init__(self, whitening: Tensor, center: Tensor, means: Tensor) -> None:
        super().__init__()
        self.register_buffer("whitening", whitening.T.contiguous())  # [D, D]
        self.register_buffer("center", center)  # [D]
        self.register_buffer("slopes", (-2 * means.T).contiguous())  # [D, K]
        self.register_buffer("norms", means.square().sum(1))  # [K]

    def forward(self, features: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, D] and the predicted classes [N, 1] -> ||z||^2 and the bracket of the nearest and of the predicted class,
        [N, 1] each.
        """
        z = (features - self.center) @ self.whitening
        brackets = torch.addmm(self.norms, z, self.slopes)
        return (z * z).sum(1, keepdim=True), brackets.amin(1, keepdim=True), brackets.gather(1, predicted)


class ServedNetwork(nn.Module):
    """One network with its detector; outputs in the order of bundle.tensors.OUTPUTS[served]."""

    scale: Tensor
    shift: Tensor
    weights: Tensor
    bias: Tensor
    calibration: Tensor

    def __init__(self, network: Network, served: str, detector: Detector) -> None:
        super().__init__()
        self.served = served
        self.backbone, self.attention_head = network.backbone, network.attention_head
        self.prototype_head = network.prototype_head if served == tensors.FULL else None
        self.layers, self.alpha = detector.layers, detector.alpha
        prototypes = 0 if self.prototype_head is None else len(self.prototype_head.prototypes)
        self.shown = min(PROTOTYPES_SHOWN, prototypes)
        # The image stays in 0..255 until here: (x / 255 - mean) / std as one multiply and one add.
        self.register_buffer("scale", 1 / (255 * network.std))
        self.register_buffer("shift", -network.mean / network.std)
        self.gaussians = nn.ModuleList(
            Gaussians(*(torch.from_numpy(array) for array in (fitted.whitening, fitted.center, fitted.means)))
            for fitted in detector.gaussians
        )
        self.register_buffer("weights", torch.from_numpy(detector.combination.weights)[:, None])
        self.register_buffer("bias", torch.tensor(detector.combination.bias, dtype=torch.float32))
        self.register_buffer("calibration", torch.from_numpy(detector.calibration)[None, :].clone())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """image : uint8 [N, H, W, 3], RGB."""
        forward = self._forward(image)
        logits, features = forward.logits[self.served], detector_features(forward)
        explanation: tuple[Tensor, ...] = ()
        if forward.similarities is not None:
            strongest = forward.similarities.topk(self.shown, dim=1)
            explanation = (strongest.indices, strongest.values)
        predicted = logits.argmax(1, keepdim=True)
        found = [fit(features[layer], predicted) for layer, fit in zip(self.layers, self.gaussians, strict=True)]
        norms = torch.cat([norm for norm, _, _ in found for _ in DISTANCES], dim=1)
        layer_scores = (norms + torch.cat([bracket for _, *pair in found for bracket in pair], dim=1)).clamp_min(0)
        score = (torch.log(layer_scores + FLOOR) @ self.weights).squeeze(1) + self.bias
        at_least = (self.calibration >= score[:, None]).to(torch.float32).sum(1)
        p_value = (1 + at_least) / (self.calibration.shape[1] + 1)
        attention = forward.attention
        if attention is None:  # a network without attention looks everywhere alike
            attention = torch.ones_like(forward.stages[-1][:, 0])
        return logits.softmax(1), score, p_value, p_value <= self.alpha, layer_scores, attention, *explanation

    def similarities(self, image: Tensor) -> Tensor:
        """How similar every prototype is, [N, m], of which `forward` shows the strongest; the full network only."""
        similarities = self._forward(image).similarities
        if similarities is None:
            raise ValueError(f"the network {self.served!r} has no prototypes")
        return similarities

    def _forward(self, image: Tensor) -> Forward:
        stages: list[Tensor] = self.backbone(image.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.shift)
        return read_heads(stages, self.attention_head, self.prototype_head)
