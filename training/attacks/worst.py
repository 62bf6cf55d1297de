"""The worst case of an image: several losses and restarts on whatever is still answered rightly.

B images, [B, 3, H, W] in [0, 1]; labels [B].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.attacks.loop import Attack, Attempt, Judge, LossFunction, run_attack


@torch.no_grad()
def worst_case(
    attack: Attack,
    losses: Sequence[LossFunction],
    judge: Judge,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator | None = None,
) -> Attempt:
    """Every loss, every restart, on the images that are still answered rightly, as `judge` says; per image the first
    that fools stays.

    An image that nothing fools keeps the attempt with the highest first loss; one that is answered wrongly from the
    start is attacked all the same, once, so that it too is an attacked image.
    """
    best, fooled = images.clone(), torch.zeros(len(images), dtype=torch.bool, device=images.device)
    highest = torch.full((len(images),), -torch.inf, dtype=images.dtype, device=images.device)
    alone = attack.restarts * len(losses) == 1  # nothing to be compared with
    for _ in range(attack.restarts):
        for loss in losses:
            left = (~fooled).nonzero().flatten()
            if not len(left):
                return Attempt(best, fooled)
            attempt = run_attack(attack, loss, images[left], labels[left], generator)
            wrong = ~judge(attempt, labels[left])
            if alone:
                return Attempt(attempt, wrong)
            height = losses[0](attempt, labels[left])
            better = wrong | (height > highest[left])
            best[left[better]], highest[left[better]] = attempt[better], height[better]
            fooled[left[wrong]] = True
    return Attempt(best, fooled)
