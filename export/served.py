"""The graph we serve, as a PyTorch module: uint8 image -> network -> detector, in one piece.

N images, K classes, n calibration scores, t prototypes shown. Detector arithmetic stays in float32.
"""

import torch
from torch import Tensor, nn

from bundle import tensors
from detector.model import Detector
from robustness.detector_module import DetectorModule
from training.networks import Forward, Network, detector_features, read_heads

PROTOTYPES_SHOWN = 5


class ServedNetwork(nn.Module):
    """One network with its detector; outputs in the order of bundle.tensors.OUTPUTS[head]."""

    scale: Tensor
    shift: Tensor
    calibration: Tensor  # [1, n]
    calibration_classes: Tensor | None  # [1, n], for p-values per predicted class

    def __init__(self, network: Network, head: str, detector: Detector) -> None:
        super().__init__()
        self.head = head
        self.backbone, self.attention_head = network.backbone, network.attention_head
        self.prototype_head = network.prototype_head if head == tensors.FULL else None
        self.alpha = detector.alpha
        prototypes = 0 if self.prototype_head is None else len(self.prototype_head.prototypes)
        self.shown = min(PROTOTYPES_SHOWN, prototypes)
        # The image stays in 0..255 until here: (x / 255 - mean) / std as one multiply and one add.
        self.register_buffer("scale", 1 / (255 * network.std))
        self.register_buffer("shift", -network.mean / network.std)
        self.scoring = DetectorModule(detector)
        self.register_buffer("calibration", None)
        self.register_buffer("calibration_classes", None)
        self.calibrate(detector)

    def calibrate(self, detector: Detector) -> None:
        """Compare scores with this detector's from now on."""
        for name, value in detector.calibration_rows.items():
            setattr(self, name, torch.from_numpy(value).clone())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """image : uint8 [N, H, W, 3], RGB."""
        forward = self._forward(image)
        logits, features = forward.logits[self.head], detector_features(forward)
        explanation: tuple[Tensor, ...] = ()
        if forward.similarities is not None:
            strongest = forward.similarities.topk(self.shown, dim=1)
            explanation = (strongest.indices, strongest.values)
        predicted = logits.argmax(1, keepdim=True)
        layer_scores, score = self.scoring(features, predicted)
        at_least = self.calibration >= score[:, None]
        if self.calibration_classes is None:
            p_value = (1 + at_least.to(torch.float32).sum(1)) / (self.calibration.shape[1] + 1)
        else:  # the class as a client reads it, and as the calibration images were counted
            own = self.calibration_classes == logits.softmax(1).argmax(1, keepdim=True)
            p_value = (1 + (at_least & own).to(torch.float32).sum(1)) / (own.to(torch.float32).sum(1) + 1)
        attention = forward.attention
        if attention is None:  # a network without attention looks everywhere alike
            attention = torch.ones_like(forward.stages[-1][:, 0])
        return logits.softmax(1), score, p_value, p_value <= self.alpha, layer_scores, attention, *explanation

    def similarities(self, image: Tensor) -> Tensor:
        """How similar every prototype is, [N, m], of which `forward` shows the strongest; the full network only."""
        similarities = self._forward(image).similarities
        if similarities is None:
            raise ValueError(f"the network {self.head!r} has no prototypes")
        return similarities

    def _forward(self, image: Tensor) -> Forward:
        stages: list[Tensor] = self.backbone(image.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.shift)
        return read_heads(stages, self.attention_head, self.prototype_head)
