"""A supersampled canvas for smooth shapes: points in, anti-aliased colour and coverage out."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw

Points = npt.NDArray[np.float64]
"""(n, 2) x, y in pixels of the finished picture, or in the units of a `Frame`."""

Outline = Points | Sequence[tuple[float, float]] | Sequence[Points]
"""Anything that numpy turns into Points."""

Pixels = npt.NDArray[np.float32]
"""(h, w, 3) float32, 0..255."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Frame:
    """A coordinate system on the picture: x forward, y up, one unit is the length of a body."""

    origin: Points  # (2,) pixels
    axes: Points  # (2, 2): rows are the frame's x and y axes, in pixels a unit

    @classmethod
    def upright(cls, *, x: float, y: float, scale: float, mirrored: bool = False) -> "Frame":
        """A frame at pixel (x, y) whose y axis points up on the picture and whose x axis points right, or left."""
        return cls(np.array([x, y]), np.array([[-scale if mirrored else scale, 0.0], [0.0, -scale]]))

    def child(self, x: float, y: float, degrees: float, scale: tuple[float, float] = (1.0, 1.0)) -> "Frame":
        """A frame inside this one: its origin at (x, y), turned anticlockwise (as seen with y up), stretched."""
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        turn = np.array([[cosine * scale[0], sine * scale[0]], [-sine * scale[1], cosine * scale[1]]])
        return Frame(self(x, y), turn @ self.axes)

    def __call__(self, x: float, y: float) -> Points:
        """One point in pixels."""
        point: Points = self.place([(x, y)])[0]
        return point

    def place(self, points: Outline) -> Points:
        """Points of this frame in pixels."""
        pixels: Points = np.asarray(points, dtype=np.float64) @ self.axes + self.origin
        return pixels

    def inverse(self, x: Points, y: Points) -> tuple[Points, Points]:
        """Pixels to coordinates of this frame, for whole grids."""
        back = np.linalg.inv(self.axes)
        x, y = x - self.origin[0], y - self.origin[1]
        return x * back[0, 0] + y * back[1, 0], x * back[0, 1] + y * back[1, 1]


def smooth(points: Outline, steps: int = 7) -> Points:
    """A closed Catmull-Rom curve through the points: (n, 2) -> (n * steps, 2)."""
    knots = np.asarray(points, dtype=np.float64)
    curve: Points = _closed_curve(len(knots), steps) @ knots
    return curve


def ellipse(x: float, y: float, across: float, up: float, degrees: float = 0.0, steps: int = 24) -> Points:
    """An ellipse with half axes `across` and `up`, turned anticlockwise."""
    circle, turn = _circle(steps), math.radians(degrees)
    cosine, sine = math.cos(turn), math.sin(turn)
    outline: Points = (circle * (across, up)) @ np.array([[cosine, sine], [-sine, cosine]]) + (x, y)
    return outline


def stripe(points: Outline, widths: npt.ArrayLike) -> Points:
    """A polyline with a width (one, or one a point) as a polygon; in a frame, before it is placed."""
    line = np.asarray(points, dtype=np.float64)
    along = np.gradient(line, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
    half = normal * (np.broadcast_to(np.asarray(widths, dtype=np.float64), len(line))[:, None] / 2)
    return np.concatenate([line + half, (line - half)[::-1]])


def shaded(colour: Colour, factor: float) -> Colour:
    """A colour made darker (below 1) or lighter."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    """`one` with a share of `other` in it, 0..1."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


class Canvas:
    """Colour and coverage at `factor` times the resolution of the finished picture."""

    def __init__(self, size: tuple[int, int], *, factor: int, ground: Image.Image | Colour) -> None:
        """`ground` is the colour before any paint; it mixes with the paint at the rim of a shape, so take a kin one."""
        self.factor = factor
        self.size = (size[0] * factor, size[1] * factor)
        self.colour = ground.copy() if isinstance(ground, Image.Image) else Image.new("RGB", self.size, ground)
        self.coverage = Image.new("L", self.size)

    def paint(
        self,
        shapes: Points | list[Points],
        ink: Colour | Image.Image,
        *,
        clip: Image.Image | None = None,
        opacity: float = 1.0,
        mark: bool = False,
    ) -> None:
        """Fill polygons with a colour, or with the same region of a picture of the canvas' size.

        A `mark` colours what is there already and adds no coverage; `clip` is a `stencil` to stay within.
        """
        shapes = [shape * self.factor for shape in (shapes if isinstance(shapes, list) else [shapes])]
        every = shapes[0] if len(shapes) == 1 else np.concatenate(shapes)
        left, top = (max(0, math.floor(value)) for value in every.min(axis=0))
        right, bottom = (
            min(end, math.ceil(value) + 1) for end, value in zip(self.size, every.max(axis=0), strict=True)
        )
        if left >= right or top >= bottom:
            return
        box = (left, top, right, bottom)
        stencil = Image.new("L", (right - left, bottom - top))
        draw = ImageDraw.Draw(stencil)
        for shape in shapes:
            draw.polygon((shape - (left, top)).ravel().tolist(), fill=round(255 * opacity))
        if clip is not None:
            stencil = ImageChops.multiply(stencil, clip.crop(box))
        self.colour.paste(ink.crop(box) if isinstance(ink, Image.Image) else ink, box, stencil)
        if not mark:
            self.coverage.paste(255, box, stencil)

    def stencil(self, shapes: Points | list[Points]) -> Image.Image:
        """The polygons as a mask of the canvas' size, to clip with."""
        mask = Image.new("L", self.size)
        draw = ImageDraw.Draw(mask)
        for shape in shapes if isinstance(shapes, list) else [shapes]:
            draw.polygon((shape * self.factor).ravel().tolist(), fill=255)
        return mask

    def finish(self) -> tuple[Pixels, Image.Image]:
        """Colour (h, w, 3) float32 0..255 and coverage ('L'), both at the resolution of the finished picture."""
        colour = np.asarray(self.colour.reduce(self.factor), dtype=np.float32)
        return colour, self.coverage.reduce(self.factor)


@functools.cache
def _closed_curve(count: int, steps: int) -> Points:
    """Rows of Catmull-Rom weights: (count * steps, count)."""
    t = np.arange(steps) / steps
    cubes = np.stack([-(t**3) + 2 * t**2 - t, 3 * t**3 - 5 * t**2 + 2, -3 * t**3 + 4 * t**2 + t, t**3 - t**2], 1) / 2
    weights = np.zeros((count, steps, count))
    for knot in range(count):
        for place in range(4):
            weights[knot, :, (knot + place - 1) % count] += cubes[:, place]
    return weights.reshape(count * steps, count)


@functools.cache
def _circle(steps: int) -> Points:
    angles = np.arange(steps) * (2 * math.pi / steps)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)
