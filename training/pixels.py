"""Images as files hold them and as networks take them.

Bytes are uint8 [B, H, W, 3], pixels are floats [B, 3, H, W] in [0, 1].
"""

import torch
from torch import Tensor


def from_bytes(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / 255


def round_to_bytes(images: Tensor) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> uint8 [B, H, W, 3], as an attacker's file would hold it."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def whole_levels(images: Tensor) -> Tensor:
    """The same rounding without leaving floats: [B, 3, H, W] in [0, 1] -> multiples of 1/255."""
    return (images * 255).round() / 255


def gaussian_noise(images: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Images plus normal noise of standard deviation `std` (pixel units), inside [0, 1]: no attack, a control."""
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    return (images + std * noise.to(images.device)).clamp(0, 1)
