"""Attacks on classifier and detector together: an image must be answered wrongly and must not be flagged.

The attacker knows weights, detector and threshold (Tramer et al. 2020). Whatever step first does both ends an image's
attack; only the others go on. L-infinity bound; images [B, 3, H, W] in [0, 1], labels [B], eps in [0, 1] pixel units.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bundle.errors import OptionError
from robustness.defended import Answer, Defended
from training.attack_losses import margin
from training.attacks import WorstCase

CONFIDENT = 1.0  # difference of logits that is enough for the joint loss


@dataclass(frozen=True, kw_only=True)
class AdaptiveAttack:
    """`method` is one of METHODS; an image passes that is not flagged at `alpha`; `weight` is the detector's share of
    the joint loss. What is to be fooled are all heads that the answer was made from, or with `own` the answering one
    alone. Steps shrink linearly from `first_step` x eps to a tenth of it.
    """

    name: str
    method: str
    eps: float
    steps: int
    alpha: float
    weight: float = 1.0
    own: bool = False
    first_step: float = 0.25

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OptionError(f"unknown adaptive attack {self.method!r}", hint=f"Choose one of: {', '.join(METHODS)}.")
        if not 0 <= self.eps <= 1:
            raise OptionError(f"attack {self.name}: eps {self.eps:g} is outside [0, 1]")
        if self.steps < 1:
            raise OptionError(f"attack {self.name}: {self.steps} steps are fewer than one")


def attack_both(
    attack: AdaptiveAttack, defended: Defended, images: Tensor, labels: Tensor, generator: torch.Generator
) -> WorstCase:
    """Images inside the eps ball and, per image, whether one step of the attack was answered wrongly and not flagged.

    Judged after rounding to 8 bits, as a file would hold them: the attacker must send something.
    """
    low, high = (images - attack.eps).clamp(0, 1), (images + attack.eps).clamp(0, 1)
    noise = torch.rand(images.shape, generator=generator, dtype=images.dtype).to(images.device)
    found = torch.clamp(images + attack.eps * (2 * noise - 1), low, high)
    left = torch.arange(len(images), device=images.device)
    direction = METHODS[attack.method]
    for index in range(attack.steps + 1):
        done = succeeds(defended, found[left], labels[left], attack.alpha)
        left = left[~done]
        if not len(left) or index == attack.steps:
            break
        gradient = direction(defended, found[left], labels[left], attack)
        step = attack.first_step * attack.eps * (1 - 0.9 * index / attack.steps)
        found[left] = torch.clamp(found[left] + step * gradient.sign(), low[left], high[left])
    fooled = torch.ones(len(images), dtype=torch.bool, device=images.device)
    fooled[left] = False
    return WorstCase(_to_bytes(found), fooled)


@torch.no_grad()
def succeeds(defended: Defended, images: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Which images, rounded to 8 bits, are answered wrongly and not flagged at `alpha`: [B] bool."""
    answer: Answer = defended(_to_bytes(images))
    return (answer.logits.argmax(1) != labels) & ~defended.flags(answer, alpha)


def _to_bytes(images: Tensor) -> Tensor:
    return (images * 255).round() / 255


def _joint(defended: Defended, images: Tensor, labels: Tensor, attack: AdaptiveAttack) -> Tensor:
    """Gradient of the margins, as far as CONFIDENT, minus the weight times the score (Carlini & Wagner 2017). Beyond
    that an image is fooled enough: an unbounded loss would go on pushing, away from what passes.
    """

    def loss(answer: Answer) -> Tensor:
        return _confusion(answer, labels, attack, _enough) - attack.weight * answer.score

    return _gradients(defended, images, loss)[0]


def _enough(logits: Tensor, labels: Tensor) -> Tensor:
    return margin(logits, labels).clamp_max(CONFIDENT)


def _selective(defended: Defended, images: Tensor, labels: Tensor, attack: AdaptiveAttack) -> Tensor:
    """Until an image is answered wrongly the classifier's gradient, from then on the detector's (Bryniarski et al.
    2021, Selective PGD).
    """

    def loss(answer: Answer) -> Tensor:
        wrong = answer.logits.argmax(1) != labels
        return torch.where(wrong, -answer.score, _confusion(answer, labels, attack, margin))

    return _gradients(defended, images, loss)[0]


def _orthogonal(defended: Defended, images: Tensor, labels: Tensor, attack: AdaptiveAttack) -> Tensor:
    """The same, without the part of it that would undo what the other has reached (Orthogonal PGD, ibid.)."""
    wrong = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def fool(answer: Answer) -> Tensor:
        wrong.copy_(answer.logits.argmax(1) != labels)
        return _confusion(answer, labels, attack, margin)

    fooling, hiding = _gradients(defended, images, fool, lambda answer: -answer.score)
    chosen = torch.where(wrong[:, None, None, None], hiding, fooling).flatten(1)
    other = torch.where(wrong[:, None, None, None], fooling, hiding).flatten(1)
    share = (chosen * other).sum(1) / other.square().sum(1).clamp_min(1e-20)
    return (chosen - share[:, None] * other).view_as(images)


def _confusion(
    answer: Answer, labels: Tensor, attack: AdaptiveAttack, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    heads = (answer.logits,) if attack.own else answer.heads
    return torch.stack([loss(logits, labels) for logits in heads]).sum(0)


def _gradients(defended: Defended, images: Tensor, *losses: Callable[[Answer], Tensor]) -> list[Tensor]:
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        answer: Answer = defended(images)
        return [
            torch.autograd.grad(loss(answer).sum(), images, retain_graph=index + 1 < len(losses))[0]
            for index, loss in enumerate(losses)
        ]


METHODS: dict[str, Callable[[Defended, Tensor, Tensor, AdaptiveAttack], Tensor]] = {
    "joint": _joint,
    "selective": _selective,
    "orthogonal": _orthogonal,
}
