"""Light and lens: flat paint becomes a rounded, lit thing in a scene, and a scene becomes a photograph."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from training.data.canvas import Canvas, Pixels

_RELIEF_SIDE = 96  # light changes slowly, so it is computed at this many pixels along the longer side


def lay(
    picture: Pixels,
    canvas: Canvas,
    *,
    light: tuple[float, float],
    scale: float,
    raised: Image.Image | None = None,
    texture: npt.NDArray[np.float32] | None = None,
) -> Pixels:
    """Round and light what is on the canvas and lay it over the picture.

    `light` points to the light (x right, y down), `scale` is pixels a body unit, and `raised` is the stencil of a part
    that stands out from the rest, such as a wing. `texture` (h, w) multiplies the brightness.
    """
    colour, coverage = canvas.finish()
    lit = _relief(coverage, light, 0.17 * scale) * 0.8
    if raised is not None:
        lit = lit + _relief(raised.reduce(canvas.factor), light, 0.06 * scale) * 0.16
    if texture is not None:
        colour = colour * texture[..., None]
    bright = colour * (1 + lit[..., None]) + np.clip(lit[..., None], 0, None) * 36
    cover = np.asarray(coverage, dtype=np.float32)[..., None] / 255
    laid: Pixels = picture + (bright - picture) * cover
    return laid


def photograph(picture: Pixels, *, size: int, rng: np.random.Generator) -> Image.Image:
    """Exposure, white balance, focus and sensor noise; `size` sets how many pixels a blur is wide."""
    exposure, warmth = rng.uniform(0.86, 1.1), rng.uniform(-0.05, 0.05)
    focus, grain = rng.uniform(0.0, 0.5) * size / 64, rng.uniform(0.5, 3.5)
    picture = picture * (exposure * np.array([1 + warmth, 1.0, 1 - warmth])).astype(np.float32)
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(grain)
    if focus > 0.25:
        image = Image.fromarray(np.clip(picture + 0.5, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(focus))
        picture = np.asarray(image, dtype=np.float32)
    return Image.fromarray(np.clip(picture + noise + 0.5, 0, 255).astype(np.uint8))


def _relief(coverage: Image.Image, light: tuple[float, float], radius: float) -> npt.NDArray[np.float32]:
    """Treat a silhouette as a rounded body and say how much each pixel is lit: about -0.4..0.4, (h, w)."""
    width, height = coverage.size
    shrink = max(1.0, max(width, height) / _RELIEF_SIDE)
    small = coverage.resize((max(2, round(width / shrink)), max(2, round(height / shrink))), Image.Resampling.BOX)
    radius /= shrink
    heights = np.asarray(small.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255
    down, right = np.gradient(heights)
    lit = Image.fromarray((-(right * light[0] + down * light[1]) * radius).astype(np.float32))
    return np.asarray(lit.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
