"""The one loop of all gradient attacks: under an L-infinity bound, in pixel units, normalisation inside the model.

FGSM is one step of it, BIM has no random start, PGD has one, MIM accumulates momentum. What an attacker is
after is a goal: as a rule to raise a loss of the network's heads (`training.attacks.losses`); of one who knows the
detector too, to get past both, where an image's attack ends (`robustness.adaptive`).

B images, [B, 3, H, W] in [0, 1]; labels [B].
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bundle.errors import OptionError

# images, labels -> [B], a loss that the attacker raises
LossFunction = Callable[[Tensor, Tensor], Tensor]
# images, labels -> [B, 3, H, W], of which the next step takes the signs
Direction = Callable[[Tensor, Tensor], Tensor]
# images, labels -> [B] bool
Judge = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """An attack's numbers; `eps` and `step` in [0, 1] pixel units."""

    name: str
    eps: float
    steps: int
    step: float
    random_start: bool = False
    momentum: float | None = None  # decay of MIM's accumulated gradient
    restarts: int = 1
    shrink: float = 0.0  # share of `step` that is lost on the way, evenly

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1:
            raise OptionError(f"attack {self.name}: eps {self.eps:g} is outside [0, 1]")
        if self.steps < 1:
            raise OptionError(f"attack {self.name}: {self.steps} steps are fewer than one")
        if self.restarts < 1:
            raise OptionError(f"attack {self.name}: {self.restarts} restarts are fewer than one")
        if self.restarts > 1 and not self.random_start:
            raise OptionError(f"attack {self.name}: restarts without a random start repeat themselves")

    def step_at(self, index: int) -> float:
        """Of the step with this index, the first being 0."""
        return self.step * (1 - self.shrink * index / self.steps)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What an attacker is after: `uphill` says where the next step goes; `reached` ends the attack on the images for
    which it is true, without it all take every step.
    """

    uphill: Direction
    reached: Judge | None = None


class Attempt(NamedTuple):
    """What an attack made of `images` [B, 3, H, W] and, per image, whether it is what was wanted, `fooled` [B] bool."""

    images: Tensor
    fooled: Tensor


def climb(
    attack: Attack, goal: Goal, images: Tensor, labels: Tensor, generator: torch.Generator | None = None
) -> Attempt:
    """One pass of the attack, restarts left aside: images inside the eps ball and inside [0, 1]; fooled is what reached
    the goal's end, and nothing where it has none.
    """
    low, high = (images - attack.eps).clamp(0, 1), (images + attack.eps).clamp(0, 1)
    found, velocity = images.clone(), torch.zeros_like(images)
    if attack.random_start:
        found = torch.clamp(images + attack.eps * _uniform(images, generator), low, high)
    left = torch.arange(len(images), device=images.device)
    at: slice | Tensor = slice(None)  # where nothing has an end, nothing is picked out
    for index in range(attack.steps + 1):
        if goal.reached is not None:
            at = left = left[~goal.reached(found[left], labels[left])]
        if index == attack.steps or not len(left):
            break
        gradient = goal.uphill(found[at], labels[at])
        if attack.momentum is not None:
            mean = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
            velocity[at] = gradient = attack.momentum * velocity[at] + gradient / mean
        found[at] = torch.clamp(found[at] + attack.step_at(index) * gradient.sign(), low[at], high[at])
    fooled = torch.full((len(images),), goal.reached is not None, device=images.device)
    fooled[left] = False
    return Attempt(found, fooled)


def run_attack(
    attack: Attack, loss: LossFunction, images: Tensor, labels: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """The same up a loss: adversarial images [B, 3, H, W]."""
    return climb(attack, Goal(uphill=partial(gradient_of, loss)), images, labels, generator).images


def noisy_step(
    eps: float,
    step: float,
    loss: LossFunction,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """N-FGSM (de Jorge et al. 2022), for training only: one signed step from uniform noise of twice `eps`, and no
    projection back onto the eps ball.
    """
    noisy = images + 2 * eps * _uniform(images, generator)
    return (noisy + step * gradient_of(loss, noisy, labels).sign()).clamp(0, 1)


def gradient_of(loss: LossFunction, images: Tensor, labels: Tensor) -> Tensor:
    """Of each image's loss by the image, [B, 3, H, W]."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(images, labels).sum(), images)
    return gradient


def _uniform(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Noise in -1..1, drawn on the CPU so that every device gets the same: [B, 3, H, W]."""
    noise = torch.rand(images.shape, generator=generator, dtype=images.dtype, device="cpu").to(images.device)
    return 2 * noise - 1
