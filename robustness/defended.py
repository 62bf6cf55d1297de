"""A network's head with its detector as one differentiable function: what is defended, and what is attacked by somebody
who knows all of it.

B images, [B, 3, H, W] in [0, 1]; K classes.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from detector.model import Detector
from robustness.detector_module import DetectorModule
from training.networks import Network, detector_features


class DefendedForward(NamedTuple):
    """What one pass computes: `logits` of the defended head [B, K], adversarial `score` [B] of the `evidence`
    [B, columns], and the logits of all `heads` that the answer was made from.
    """

    logits: Tensor
    score: Tensor
    evidence: Tensor
    heads: tuple[Tensor, ...]


class Defended(nn.Module):
    """The served arithmetic on float images, without the step from score to p-value."""

    def __init__(self, network: Network, head: str, detector: Detector) -> None:
        super().__init__()
        self.network, self.head, self.detector = network, head, detector
        self.scoring = DetectorModule(detector)

    def forward(self, images: Tensor) -> DefendedForward:
        """[B, 3, H, W] -> logits and score."""
        forward = self.network(images, self.head)
        logits = forward.logits[self.head]
        evidence, score = self.scoring(detector_features(forward), logits.argmax(1, keepdim=True))
        return DefendedForward(logits, score, evidence, tuple(forward.logits.values()))

    def flags(self, answer: DefendedForward, alpha: float) -> Tensor:
        """Which images a user would see flagged at `alpha`, [B] bool."""
        predicted = answer.logits.argmax(1).cpu().numpy()
        values = self.detector.p_values(answer.score.detach().cpu().numpy(), predicted)
        return torch.from_numpy(values <= np.float32(alpha)).to(answer.score.device)
