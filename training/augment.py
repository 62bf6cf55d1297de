"""Random flips and small affine maps on whole batches, on the images' device: the reference's offline set, online."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Half-ranges of uniform draws; rotation and shear in degrees, scale as a fraction, brightness in [0, 1] units."""

    rotate: float = 15.0
    shear: float = 10.0
    scale: float = 0.1
    flip: bool = True
    brightness: float = 0.0

    def __post_init__(self) -> None:
        for name, high in (("rotate", 180.0), ("shear", 80.0), ("scale", 0.9), ("brightness", 1.0)):
            if not 0 <= getattr(self, name) <= high:
                raise OptionError(f"augmentation {name} must be in 0..{high:g}, not {getattr(self, name):g}")


def augment(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """images : [B, 3, H, W] in [0, 1] -> the same shape; every image gets its own draw from `generator` (a CPU one)."""
    count = len(images)

    def draw(half_range: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * half_range

    angle, shear = draw(math.radians(settings.rotate)), torch.tan(draw(math.radians(settings.shear)))
    zoom, light = 1 + draw(settings.scale), draw(settings.brightness)
    mirror = (
        torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0) if settings.flip else torch.ones(count)
    )
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    zero = torch.zeros(count)
    rows = [torch.stack([cosine * mirror, -sine + cosine * shear, zero], 1)]
    rows.append(torch.stack([sine * mirror, cosine + sine * shear, zero], 1))
    grid = F.affine_grid(torch.stack(rows, 1).to(images.device), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if settings.brightness == 0:
        return moved
    return (moved + light.to(images.device).view(-1, 1, 1, 1)).clamp(0, 1)
