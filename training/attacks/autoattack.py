"""AutoAttack (Croce & Hein 2020), the authority on whether robustness is real, through pyautoattack."""

import contextlib
import io
import logging

import torch
from torch import Tensor, nn

from bundle.errors import MissingExtra
from training.networks import Network

# What of the standard suite runs under a name: all of it, or its two gradient attacks.
PARTS: dict[str, tuple[str, ...]] = {
    "autoattack": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "apgd": ("apgd-ce", "apgd-t"),
}


class HeadLogits(nn.Module):
    """One head as other libraries want a model: images [B, 3, H, W] in [0, 1] -> logits [B, K]."""

    def __init__(self, network: Network, head: str) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images, self.head).logits[self.head]
        return logits


def auto_attack(
    network: Network, head: str, images: Tensor, labels: Tensor, *, eps: float, seed: int, name: str = "autoattack"
) -> Tensor:
    """Adversarial images of the standard suite: APGD-CE, APGD-T, FAB-T and Square, or of what `name` in PARTS says,
    each on what the ones before it left standing; `eps` in [0, 1] pixel units. Targeted attacks try at most nine
    classes, fewer where there are fewer.
    """
    try:
        from pyautoattack import AutoAttack
    except ImportError as problem:
        raise MissingExtra.named("attacks", "AutoAttack", problem) from None
    model = HeadLogits(network, head).eval()
    if eps == 0:
        return images
    suite = AutoAttack(model, eps=eps, version="standard", device=images.device, seed=seed)
    suite.attacks_to_run = list(PARTS[name])
    suite.verbose = False
    suite.logger.setLevel(logging.ERROR)
    targets = min(9, network.config.classes - 1)
    suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = targets
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        adversarial: Tensor = suite.run_standard_evaluation(
            images.contiguous(), labels, batch_size=min(64, len(images))
        )[0]
    # Its arithmetic may leave the ball by a rounding error; ours is exact.
    return torch.clamp(adversarial, (images - eps).clamp(0, 1), (images + eps).clamp(0, 1))
