"""Gradient attacks under an L-infinity bound, in pixel units: images in [0, 1], normalisation inside the model.

One loop; FGSM is one step of it, BIM has no random start, PGD has one, MIM accumulates momentum.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle import tensors
from bundle.errors import OptionError
from training.networks import Network

# [B, 3, H, W] images, [B] labels -> [B] loss that the attacker raises
LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """An attack's numbers; `eps` and `step` in [0, 1] pixel units."""

    name: str
    eps: float
    steps: int
    step: float
    random_start: bool = False
    momentum: float | None = None  # decay of MIM's accumulated gradient

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1:
            raise OptionError(f"attack {self.name}: eps {self.eps:g} is outside [0, 1]")
        if self.steps < 1:
            raise OptionError(f"attack {self.name}: {self.steps} steps are fewer than one")


_NAME = re.compile(r"(fgsm|bim|pgd|mim)(\d+)?-(\d+)")


def attack_named(name: str) -> Attack:
    """`fgsm-8`, `bim10-2`, `pgd10-8`, `mim10-8`: method, steps, eps in 1/255, with the paper's steps (Sec. 5.1)."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise OptionError(
            f"unknown attack {name!r}", hint="Attacks are named like fgsm-8, bim10-2, pgd10-8, mim10-8 (eps in 1/255)."
        )
    method, steps, eps = match[1], int(match[2] or (1 if match[1] == "fgsm" else 10)), int(match[3]) / 255
    if method == "fgsm":
        if steps != 1:
            raise OptionError(f"attack {name}: fgsm takes one step", hint=f"Use bim{steps}-{match[3]}.")
        return Attack(name=name, eps=eps, steps=1, step=eps)
    if method == "pgd":
        return Attack(name=name, eps=eps, steps=steps, step=(2 if eps > 4 / 255 else 1) / 255, random_start=True)
    return Attack(name=name, eps=eps, steps=steps, step=eps / max(steps, 1), momentum=1.0 if method == "mim" else None)


def run_attack(
    attack: Attack, loss: LossFunction, images: Tensor, labels: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Adversarial images [B, 3, H, W]: inside the eps ball and inside [0, 1]."""
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


def _gradient(loss: LossFunction, images: Tensor, labels: Tensor) -> Tensor:
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(images, labels).sum(), images)
    return gradient


def cross_entropy_of(network: Network, heads: tuple[str, ...]) -> LossFunction:
    """Sum of the cross-entropies of the named heads (`full`, `attention`); the paper attacks with both."""

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        if heads == (tensors.ATTENTION_ONLY,):
            return F.cross_entropy(network.attend(images)[1], labels, reduction="none")
        forward = network(images)
        return torch.stack([F.cross_entropy(forward.head(head), labels, reduction="none") for head in heads]).sum(0)

    return loss


def attack_network(
    attack: Attack,
    network: Network,
    served: str,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attack the served head, keeping the worst per image: for `full`, the loss of its own head and the joint loss of
    both heads are tried (the authors' code tries the joint one only), and the one with the higher own loss stays.
    """
    own = cross_entropy_of(network, (served,))
    best = run_attack(attack, own, images, labels, generator)
    if served == tensors.FULL:
        joint = cross_entropy_of(network, (tensors.FULL, tensors.ATTENTION_ONLY))
        other = run_attack(attack, joint, images, labels, generator)
        with torch.no_grad():
            worse = own(other, labels) > own(best, labels)
        best = torch.where(worse.view(-1, 1, 1, 1), other, best)
    return best


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
