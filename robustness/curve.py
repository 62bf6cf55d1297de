"""Accuracy against eps (Fig. 6): PGD from a random start, steps of 2.5 eps / steps (Madry et al. 2018)."""

from typing import Any

import torch

from bundle.progress import shown
from robustness.fitting import Images, Labels, by_batch
from robustness.metrics import share
from robustness.suites import CURVE
from training.attacks.loop import Attack
from training.attacks.losses import judge_of, losses_against
from training.attacks.worst import worst_case
from training.networks import Network
from training.pixels import from_bytes, round_to_bytes


def accuracy_curve(
    network: Network, head: str, part: tuple[Images, Labels], steps: int, seed: int
) -> list[dict[str, Any]]:
    """At every eps of CURVE the share of images (n, H, W, 3) that is answered rightly; nothing without steps."""
    points: list[dict[str, Any]] = []
    if not steps:
        return points
    losses, judge = losses_against(network, head), judge_of(network, head)
    device = next(network.parameters()).device
    for level in shown(CURVE, f"{head}: accuracy against eps", unit="points"):
        eps, right = level / 255, 0
        attack = Attack(name="curve", eps=eps, steps=steps, step=2.5 * eps / steps, random_start=True)
        generator = torch.Generator().manual_seed(seed)
        for batch, known in by_batch(*part, device):
            made = worst_case(attack, losses, judge, from_bytes(batch), known, generator).images
            with torch.no_grad():
                right += int(judge(from_bytes(round_to_bytes(made)), known).sum())
        points.append({"eps": eps, "right": share(right, len(part[1]))})
    return points
