"""Attacks on classifier and detector together: an image must be answered wrongly and must not be flagged.

The attacker knows weights, detector and threshold (Tramer et al. 2020). His loop is that of every attack
(`training.attacks.loop`); what is his own is the goal: whatever step first does both ends an image's attack, and only
the others go on. L-infinity bound; images [B, 3, H, W] in [0, 1], labels [B], eps in [0, 1] pixel units.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bundle.errors import OptionError
from robustness.defended import Defended, DefendedForward
from training.attacks.loop import Attack, Attempt, Direction, Goal, climb, gradient_of
from training.attacks.losses import LogitLoss, margin
from training.pixels import whole_levels

CONFIDENT = 1.0  # difference of logits that is enough for the joint loss
SHRINK = 0.9  # of a step's length on the way, evenly


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
        _ = self.numbers  # they refuse what means nothing

    @property
    def numbers(self) -> Attack:
        """What the one loop of all attacks reads."""
        step = self.first_step * self.eps
        return Attack(name=self.name, eps=self.eps, steps=self.steps, step=step, shrink=SHRINK, random_start=True)


def attack_both(
    attack: AdaptiveAttack, defended: Defended, images: Tensor, labels: Tensor, generator: torch.Generator
) -> Attempt:
    """Images inside the eps ball and, per image, whether one step of the attack was answered wrongly and not flagged.

    Judged after rounding to 8 bits, as a file would hold them: the attacker must send something.
    """
    found = climb(attack.numbers, goal_of(attack, defended), images, labels, generator)
    return Attempt(whole_levels(found.images), found.fooled)


def goal_of(attack: AdaptiveAttack, defended: Defended) -> Goal:
    """To get past both: the attack's method says which way, and an image that has got past is left alone."""

    def reached(images: Tensor, labels: Tensor) -> Tensor:
        return succeeds(defended, images, labels, attack.alpha)

    return Goal(uphill=METHODS[attack.method](attack, defended), reached=reached)


@torch.no_grad()
def succeeds(defended: Defended, images: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Which images, rounded to 8 bits, are answered wrongly and not flagged at `alpha`: [B] bool."""
    answer: DefendedForward = defended(whole_levels(images))
    return (answer.logits.argmax(1) != labels) & ~defended.flags(answer, alpha)


def joint(attack: AdaptiveAttack, defended: Defended) -> Direction:
    """Up the margins, as far as CONFIDENT, minus the weight times the score (Carlini & Wagner 2017). Beyond that an
    image is fooled enough: an unbounded loss would go on pushing, away from what passes.
    """

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        answer: DefendedForward = defended(images)
        return _confusion(answer, labels, attack, _enough) - attack.weight * answer.score

    return partial(gradient_of, loss)


def _enough(logits: Tensor, labels: Tensor) -> Tensor:
    return margin(logits, labels).clamp_max(CONFIDENT)


def selective(attack: AdaptiveAttack, defended: Defended) -> Direction:
    """Until an image is answered wrongly the classifier's gradient, from then on the detector's (Bryniarski et al.
    2021, Selective PGD).
    """

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        answer: DefendedForward = defended(images)
        wrong = answer.logits.argmax(1) != labels
        return torch.where(wrong, -answer.score, _confusion(answer, labels, attack, margin))

    return partial(gradient_of, loss)


def orthogonal(attack: AdaptiveAttack, defended: Defended) -> Direction:
    """The same, without the part of it that would undo what the other has reached (Orthogonal PGD, ibid.)."""

    def uphill(images: Tensor, labels: Tensor) -> Tensor:
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            answer: DefendedForward = defended(images)
            confusion = _confusion(answer, labels, attack, margin).sum()
            (fooling,) = torch.autograd.grad(confusion, images, retain_graph=True)
            (hiding,) = torch.autograd.grad(-answer.score.sum(), images)
        wrong = (answer.logits.argmax(1) != labels)[:, None, None, None]
        chosen = torch.where(wrong, hiding, fooling).flatten(1)
        other = torch.where(wrong, fooling, hiding).flatten(1)
        share = (chosen * other).sum(1) / other.square().sum(1).clamp_min(1e-20)
        return (chosen - share[:, None] * other).view_as(images)

    return uphill


def _confusion(answer: DefendedForward, labels: Tensor, attack: AdaptiveAttack, loss: LogitLoss) -> Tensor:
    heads = (answer.logits,) if attack.own else answer.heads
    return torch.stack([loss(logits, labels) for logits in heads]).sum(0)


METHODS: dict[str, Callable[[AdaptiveAttack, Defended], Direction]] = {
    "joint": joint,
    "selective": selective,
    "orthogonal": orthogonal,
}
