"""What is behind and under a bird: an out-of-focus scene and a perch, drawn from one distribution for all species."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from training.data.canvas import Canvas, Colour, Pixels, Points, shaded, smooth, stripe


@dataclass(frozen=True)
class _Place:
    """A place out of focus: colours from top to bottom, and the blurred things in it."""

    gradient: tuple[Colour, Colour, Colour]
    things: tuple[Colour, ...]
    sharpness: float  # of a thing's rim: 2 is mist, 10 is a disc of bokeh
    flat: float = 1.0  # how much wider than high a thing is


# fmt: off
_PLACES = (
    _Place(  # sky
        ((96, 158, 214), (152, 196, 230), (206, 226, 236)),
        ((238, 243, 246), (220, 233, 242), (120, 170, 216)), 2.5, 2.2,
    ),
    _Place(  # sunlit foliage
        ((72, 112, 58), (94, 136, 68), (58, 92, 50)),
        ((134, 172, 84), (176, 198, 108), (46, 78, 44), (208, 216, 140)), 9.0,
    ),
    _Place(  # forest mist
        ((118, 150, 128), (88, 128, 98), (70, 100, 72)),
        ((160, 186, 150), (62, 94, 66), (190, 206, 172)), 4.0, 1.2,
    ),
    _Place(  # water
        ((96, 146, 160), (72, 122, 144), (54, 98, 120)),
        ((132, 176, 186), (164, 200, 204), (48, 86, 106)), 3.5, 5.0,
    ),
    _Place(  # autumn
        ((216, 168, 112), (196, 134, 82), (134, 88, 62)),
        ((236, 196, 130), (170, 104, 60), (246, 218, 168), (110, 74, 56)), 8.0,
    ),
    _Place(  # dusk
        ((196, 178, 190), (214, 188, 178), (176, 148, 140)),
        ((232, 206, 196), (156, 132, 140), (240, 222, 208)), 4.0, 1.6,
    ),
    _Place(  # overcast
        ((204, 210, 210), (190, 196, 194), (160, 166, 162)),
        ((224, 228, 228), (144, 150, 146), (176, 184, 182)), 3.0, 1.5,
    ),
)
# fmt: on
_BARKS: tuple[Colour, ...] = ((98, 76, 58), (122, 104, 86), (78, 62, 52), (132, 118, 104))
_LEAVES: tuple[Colour, ...] = ((88, 128, 52), (116, 150, 62), (70, 106, 54), (170, 128, 52))
_GRID = 40  # a scene is computed on this many cells along its longer side: it is out of focus anyway


def scene(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """A place out of focus, (height, width, 3)."""
    place = _PLACES[int(rng.integers(len(_PLACES)))]
    shrink = _GRID / max(width, height)
    columns, rows = max(2, round(width * shrink)), max(2, round(height * shrink))
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32) / _GRID
    stops = np.array(place.gradient, dtype=np.float32)
    depth = np.clip(y / y.max() + rng.uniform(-0.2, 0.2), 0, 1)[..., None]
    pixels = np.where(
        depth < 0.5, stops[0] + (stops[1] - stops[0]) * depth * 2, stops[1] + (stops[2] - stops[1]) * (depth * 2 - 1)
    ).astype(np.float32)
    count = int(rng.integers(9, 20))
    centres, radii = rng.uniform(-0.05, 1.05, (count, 2)), rng.uniform(0.04, 0.19, count)
    inks = np.array(place.things, dtype=np.float32)[rng.integers(len(place.things), size=count)]
    opacity = rng.uniform(0.25, 0.75, count)
    for (cx, cy), radius, ink, strength in zip(centres, radii, inks, opacity, strict=True):
        distance = np.hypot((x - cx) / place.flat**0.5, (y - cy) * place.flat**0.5) / radius
        cover = strength / (1 + np.exp(np.clip((distance - 1) * place.sharpness, -30, 30)))
        pixels += (ink - pixels) * cover[..., None].astype(np.float32)
    pixels *= np.float32(rng.uniform(0.82, 1.1))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)


def perch(rng: np.random.Generator, feet: Points, scale: float, canvas: Canvas) -> None:
    """Paint a branch that runs under both feet, with twigs and leaves, over the whole width of the canvas."""
    width = canvas.size[0] / canvas.factor
    x0, y0 = feet.mean(axis=0)
    slope, bend = rng.uniform(-0.16, 0.16), rng.uniform(-0.10, 0.10)
    thick = scale * rng.uniform(0.13, 0.20)
    taper = rng.uniform(-0.35, 0.35)
    bark = _BARKS[int(rng.integers(len(_BARKS)))]
    xs = np.linspace(-0.05 * width, 1.05 * width, 15)
    away = (xs - x0) / width
    ys = y0 + thick * 0.42 + slope * (xs - x0) + bend * width * away**2 + rng.uniform(-0.02, 0.02, 15) * scale
    widths = thick * (1 + taper * away)
    # Leaves and twigs grow from the branch away from the bird, so that they never hide a field mark.
    for _ in range(int(rng.integers(0, 4))):
        at = int(rng.integers(0, 15))
        reach, down = scale * rng.uniform(0.3, 0.6) * rng.choice((-1.0, 1.0)), scale * rng.uniform(0.15, 0.45)
        start, end = np.array([xs[at], ys[at]]), np.array([xs[at] + reach, ys[at] + down])
        canvas.paint(stripe([start, (start + end) / 2 + (0, 0.05 * scale), end], [thick * 0.4, thick * 0.3, 1.0]), bark)
        ink = _LEAVES[int(rng.integers(len(_LEAVES)))]
        for along in (0.55, 0.8, 1.0):
            base, turn = start + (end - start) * along, rng.uniform(0.3, 2.8)
            tip = base + scale * rng.uniform(0.18, 0.3) * np.array([np.cos(turn) * np.sign(reach), np.sin(turn)])
            side = np.array([-(tip - base)[1], (tip - base)[0]]) * 0.28
            middle = base * 0.55 + tip * 0.45
            canvas.paint(smooth(np.stack([base, middle + side, tip, middle - side])), ink)
    line = np.stack([xs, ys], axis=1)
    canvas.paint(stripe(line, widths), bark)
    below, above = np.stack([0 * xs, widths * 0.33], axis=1), np.stack([0 * xs, -widths * 0.3], axis=1)
    canvas.paint(stripe(line + below, widths * 0.34), shaded(bark, 0.68), mark=True)
    canvas.paint(stripe(line + above, widths * 0.2), shaded(bark, 1.22), mark=True)
