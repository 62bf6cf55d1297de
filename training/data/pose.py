"""How one bird sits on one picture: everything that varies from picture to picture and says nothing of the species."""

import colorsys
import math
from dataclasses import dataclass

import numpy as np

from training.data.canvas import Colour, Frame, Points

# Farthest points of a bird, in the frame named: what must fit on the picture. The beak's tip is added by its shape.
_BODY_EXTENT = ((0.60, 0.22), (0.40, 0.37), (0.05, 0.41), (-0.42, -0.33), (-0.02, -0.45), (0.34, -0.41), (0.66, 0.02),
                (-1.12, -0.12))  # fmt: skip
_HEAD_EXTENT = ((0.06, 0.29), (-0.14, 0.26), (0.30, 0.02), (-0.30, -0.10))
_TAIL_EXTENT = ((-0.72, 0.11), (-0.72, -0.11))


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where the bird is, how it holds itself, its light and the tint of its plumage."""

    canvas: tuple[int, int]  # width, height of the picture in pixels
    scale: float  # pixels a body unit
    body: Frame
    head: Frame
    tail: Frame
    feet: Points  # (2, 2): near foot, far foot, in pixels
    hips: Points  # (2, 2): where each leg leaves the body
    faces_right: bool
    light: tuple[float, float]  # direction to the light, x right, y down, length 1
    back: Colour
    belly: Colour
    wing: Colour
    tint: float  # -1..1: how much this bird's marks are lighter or darker than usual


def strike_pose(*, size: int, beak_tip: tuple[float, float], rng: np.random.Generator) -> Pose:
    """Draw a pose so that the longer side of the bird's box measures about `size` pixels."""
    upright, nod, wag, lean = (float(rng.uniform(low, high)) for low, high in ((14, 46), (-12, 16), (-14, 10), (-6, 6)))
    stout, head_size = float(rng.uniform(0.92, 1.08)), float(rng.uniform(0.94, 1.08))
    leg, stance, width = float(rng.uniform(0.17, 0.25)), float(rng.uniform(-0.06, 0.06)), float(rng.uniform(0.10, 0.16))
    faces_right = bool(rng.integers(2))

    def place(x: float, y: float, scale: float) -> tuple[Frame, Frame, Frame, Points, Points]:
        world = Frame.upright(x=x, y=y, scale=scale, mirrored=not faces_right)
        body = world.child(0, 0, upright + lean, (1.0, stout))
        neck = body(0.56, 0.36)
        head = Frame(neck, world.child(0, 0, nod + lean, (head_size, head_size)).axes)
        tail = body.child(-0.74, 0.03, wag)
        hips = body.place([(0.0 + stance, -0.36), (0.12 + stance, -0.34)])
        ground = max(body(-0.05, -0.45)[1], body(0.1, -0.45)[1]) + leg * scale
        near, far = ((point[0] + shift * scale * (1 if faces_right else -1), ground) for point, shift in
                     zip(hips, (-0.02, width), strict=True))  # fmt: skip
        return body, head, tail, np.array([near, far]), hips

    body, head, tail, feet, _ = place(0.0, 0.0, 1.0)
    every = np.concatenate(
        [body.place(_BODY_EXTENT), head.place([*_HEAD_EXTENT, beak_tip]), tail.place(_TAIL_EXTENT), feet]
    )
    low, high = every.min(axis=0), every.max(axis=0)
    scale = size * float(rng.uniform(0.9, 1.05)) / float((high - low).max())
    landscape = rng.random() < 0.75
    canvas = (round(size * 1.6), round(size * 1.3)) if landscape else (round(size * 1.3), round(size * 1.6))
    room = np.array(canvas) - (high - low) * scale
    corner = room * rng.uniform(0.12, 0.88, size=2) - low * scale
    body, head, tail, feet, hips = place(float(corner[0]), float(corner[1]), scale)

    # Muted plumage: browns, olives and greys. The marks' strong colours are never in its range.
    hue, saturation, value = (
        float(rng.uniform(0.05, 0.19)),
        float(rng.uniform(0.08, 0.42)),
        float(rng.uniform(0.40, 0.60)),
    )
    pale = float(rng.uniform(0.76, 0.86))
    side = float(rng.uniform(-1.0, 1.0))
    return Pose(
        canvas=canvas,
        scale=scale,
        body=body,
        head=head,
        tail=tail,
        feet=feet,
        hips=hips,
        faces_right=faces_right,
        light=(math.sin(side), -math.cos(side)),
        back=_rgb(hue, saturation, value),
        belly=_rgb(hue + 0.02, saturation * 0.42, pale),
        wing=_rgb(hue - 0.01, saturation * 1.05, value * 0.72),
        tint=float(rng.uniform(-1.0, 1.0)),
    )


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(saturation, 1.0), min(value, 1.0))
    return round(red * 255), round(green * 255), round(blue * 255)
