"""Random views of whole batches, on the images' device: small maps, crops and light. The authors' offline set is among
them (`skew`, `one_of`), drawn anew each time.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Half-ranges of uniform draws.

    Rotation and shear are in degrees, scale is a fraction, skew the share of the side by which the corners of one edge
    move apart; light (brightness, contrast, saturation, color) is in natural logarithms of factors.
    """

    rotate: float = 15.0
    shear: float = 10.0
    skew: float = 0.0  # one side of the image comes nearer, the other goes farther
    one_of: bool = False  # each image is rotated, sheared or skewed, not all of them
    scale: float = 0.1
    crop: float = 1.0  # least share of a side that is seen, anywhere in the image
    flip: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    color: float = 0.0  # of each channel by itself

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise OptionError(f"augmentation {name} must be in {low:g}..{high:g}, not {getattr(self, name):g}")


_RANGES = {
    "rotate": (0.0, 180.0),
    "shear": (0.0, 80.0),
    "skew": (0.0, 0.45),
    "scale": (0.0, 0.9),
    "crop": (0.1, 1.0),
    "brightness": (0.0, 2.0),
    "contrast": (0.0, 2.0),
    "saturation": (0.0, 2.0),
    "color": (0.0, 2.0),
}


class _Draws:
    """Uniform draws for `count` images, each [count], from one CPU generator."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self.generator = count, generator

    def share(self) -> Tensor:
        """In [0, 1)."""
        return torch.rand(self.count, generator=self.generator)

    def within(self, half_range: float) -> Tensor:
        """In [-half_range, half_range)."""
        return (2 * self.share() - 1) * half_range


def augment(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """images : [B, 3, H, W] in [0, 1] -> the same shape; every image gets draws of its own from a CPU `generator`."""
    draws = _Draws(len(images), generator)
    angle = draws.within(math.radians(settings.rotate))
    shear = torch.tan(draws.within(math.radians(settings.shear)))
    zoom, brightness = 1 + draws.within(settings.scale), draws.within(settings.brightness)
    mirror = torch.where(draws.share() < 0.5, -1.0, 1.0) if settings.flip else torch.ones(len(images))
    skew = torch.zeros(len(images), 2)  # along x, along y
    if settings.skew:
        along = F.one_hot((draws.share() < 0.5).long(), 2)
        skew = draws.within(settings.skew)[:, None] * along
    if settings.one_of:
        chosen = (3 * draws.share()).long()
        angle, shear, skew = angle * (chosen == 0), shear * (chosen == 1), skew * (chosen == 2)[:, None]
    shift = torch.zeros(len(images), 2)
    if settings.crop < 1:
        seen = settings.crop ** draws.share()  # as likely to halve the side as to halve it again
        zoom = zoom * seen
        shift = torch.stack([draws.within(1.0), draws.within(1.0)], 1) * (1 - seen)[:, None]
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [torch.stack([cosine * mirror, -sine + cosine * shear, shift[:, 0]], 1)]
    rows.append(torch.stack([sine * mirror, cosine + sine * shear, shift[:, 1]], 1))
    grid = F.affine_grid(torch.stack(rows, 1).to(images.device), list(images.shape), align_corners=False)
    if settings.skew:
        grid = _skewed(grid, skew.to(images.device))
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if settings.brightness == settings.contrast == settings.saturation == settings.color == 0:
        return moved
    return _lit(moved, settings, brightness, draws)


def _skewed(grid: Tensor, skew: Tensor) -> Tensor:
    """grid : [B, H, W, 2] in perspective: along x or y, by skew [B, 2], one edge is 1 + 2 |skew| times the other's
    length.
    """
    slope = skew / (1 + skew.abs())
    return grid / (1 + (slope[:, None, None] * grid).sum(dim=3, keepdim=True))


def _lit(images: Tensor, settings: Augmentation, brightness: Tensor, draws: _Draws) -> Tensor:
    """[B, 3, H, W] under another light."""

    def each(factors: Tensor) -> Tensor:
        return torch.exp(factors).to(images.device).view(len(images), -1, 1, 1)

    lit = images * each(brightness)
    if settings.contrast:
        mean = lit.mean(dim=(1, 2, 3), keepdim=True)
        lit = mean + (lit - mean) * each(draws.within(settings.contrast))
    if settings.saturation:
        grey = lit.mean(dim=1, keepdim=True)
        lit = grey + (lit - grey) * each(draws.within(settings.saturation))
    if settings.color:
        lit = lit * each(torch.stack([draws.within(settings.color) for _ in range(3)], 1))
    return lit.clamp(0, 1)
