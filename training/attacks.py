"""Gradient attacks under an L-infinity bound, in pixel units: images in [0, 1], normalisation inside the model.

One loop; FGSM is one step of it, BIM has no random start, PGD has one, MIM accumulates momentum. What the attacker
raises is a loss of its own (`training.attack_losses`); `worst_case` tries several losses and restarts on whatever
images are still answered rightly.

B images, [B, 3, H, W] in [0, 1]; labels [B].
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bundle.errors import OptionError

# images, labels -> [B], a loss that the attacker raises
LossFunction = Callable[[Tensor, Tensor], Tensor]
# images, labels -> [B] bool, whether the network's answer is still right
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

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1:
            raise OptionError(f"attack {self.name}: eps {self.eps:g} is outside [0, 1]")
        if self.steps < 1:
            raise OptionError(f"attack {self.name}: {self.steps} steps are fewer than one")
        if self.restarts < 1:
            raise OptionError(f"attack {self.name}: {self.restarts} restarts are fewer than one")
        if self.restarts > 1 and not self.random_start:
            raise OptionError(f"attack {self.name}: restarts without a random start repeat themselves")


_NAME = re.compile(r"(fgsm|rfgsm|bim|pgd|mim)([1-9][0-9]{0,5}|0)?(?:x([1-9][0-9]{0,3}|0))?-([1-9][0-9]{0,2}|0)")
_FORM = "Attacks are named METHOD[STEPS][xRESTARTS]-EPS: fgsm-8, rfgsm-8, bim10-2, pgd10-8, pgd100x10-8, mim10-8."


def attack_named(name: str) -> Attack:
    """An attack by name, eps in 1/255, with the paper's step sizes (Sec. 5.1): PGD 1/255 at eps 2 and 2/255 at eps 8,
    the others eps / steps. `rfgsm` is the FGSM of the authors' columns: a random start, then one step of eps.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise OptionError(f"unknown attack {name!r}", hint=_FORM)
    method, single = match[1], match[1] in ("fgsm", "rfgsm")
    steps, restarts, eps = int(match[2] or (1 if single else 10)), int(match[3] or 1), int(match[4]) / 255
    if single and steps != 1:
        raise OptionError(f"attack {name}: {method} takes one step", hint=f"Use bim{steps}-{match[4]}.")
    step = (2 if eps > 4 / 255 else 1) / 255 if method == "pgd" else eps / max(steps, 1)
    return Attack(
        name=name,
        eps=eps,
        steps=steps,
        step=step,
        random_start=method in ("rfgsm", "pgd"),
        momentum=1.0 if method == "mim" else None,
        restarts=restarts,
    )


def run_attack(
    attack: Attack, loss: LossFunction, images: Tensor, labels: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """One pass of the attack, restarts left aside: adversarial images inside the eps ball and inside [0, 1]."""
    low, high = (images - attack.eps).clamp(0, 1), (images + attack.eps).clamp(0, 1)
    adversarial = images
    if attack.random_start:
        noise = torch.rand(images.shape, generator=generator, dtype=images.dtype, device="cpu").to(images.device)
        adversarial = torch.clamp(images + attack.eps * (2 * noise - 1), low, high)
    velocity = torch.zeros_like(images)
    for _ in range(attack.steps):
        gradient = _gradient(loss, adversarial, labels)
        if attack.momentum is not None:
            mean = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
            velocity = gradient = attack.momentum * velocity + gradient / mean
        adversarial = torch.clamp(adversarial + attack.step * gradient.sign(), low, high)
    return adversarial


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
    noise = torch.rand(images.shape, generator=generator, dtype=images.dtype, device="cpu").to(images.device)
    noisy = images + 2 * eps * (2 * noise - 1)
    return (noisy + step * _gradient(loss, noisy, labels).sign()).clamp(0, 1)


class WorstCase(NamedTuple):
    """`images` [B, 3, H, W] and, per image, whether the attack `fooled` the network [B] bool."""

    images: Tensor
    fooled: Tensor


@torch.no_grad()
def worst_case(
    attack: Attack,
    losses: Sequence[LossFunction],
    judge: Judge,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator | None = None,
) -> WorstCase:
    """Every loss, every restart, on the images that are still answered rightly; per image the first that fools stays.

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
                return WorstCase(best, fooled)
            attempt = run_attack(attack, loss, images[left], labels[left], generator)
            wrong = ~judge(attempt, labels[left])
            if alone:
                return WorstCase(attempt, wrong)
            height = losses[0](attempt, labels[left])
            better = wrong | (height > highest[left])
            best[left[better]], highest[left[better]] = attempt[better], height[better]
            fooled[left[wrong]] = True
    return WorstCase(best, fooled)


def _gradient(loss: LossFunction, images: Tensor, labels: Tensor) -> Tensor:
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(images, labels).sum(), images)
    return gradient


def gaussian_noise(images: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Images plus normal noise of standard deviation `std` (pixel units), inside [0, 1]: no attack, a control."""
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    return (images + std * noise.to(images.device)).clamp(0, 1)


def round_to_bytes(images: Tensor) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> uint8 [B, H, W, 3], as an attacker's file would hold it."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_bytes(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / 255
