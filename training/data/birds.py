"""One bird on one picture: the species' field marks painted on a bird in some pose, and its true part locations.

Pose, body colour, light and background come from one distribution for all species (`pose.py`, `scenery.py`); only the
field marks come from the species (`species.py`). The bird is seen from the side, so its far eye and wing are hidden.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.data.canvas import Canvas, Colour, Points, ellipse, mixed, shaded, smooth, stripe
from training.data.light import lay, photograph
from training.data.pose import Pose, strike_pose
from training.data.scenery import perch, scene
from training.data.species import Species

MIN_SIZE, MAX_SIZE = 32, 1024

# fmt: off
# CUB's fifteen parts, in CUB's order.
PARTS = (
    "back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape", "right eye",
    "right leg", "right wing", "tail", "throat",
)

INKS: dict[str, Colour] = {
    "black": (26, 24, 28), "white": (246, 245, 238), "red": (208, 36, 38), "ruby": (186, 20, 62),
    "golden": (248, 192, 36), "blue": (38, 96, 212), "rufous": (192, 90, 38), "slate": (54, 56, 64),
    "orange": (240, 126, 30), "ivory": (240, 228, 190), "umber": (60, 42, 32),
}
_SHADOW: Colour = (18, 14, 12)

# Outlines in body units, x forward and y up; `smooth` makes closed curves of them.
_BODY = ((0.60, 0.22), (0.40, 0.37), (0.05, 0.41), (-0.36, 0.30), (-0.76, 0.10), (-0.86, -0.02), (-0.74, -0.13),
         (-0.42, -0.33), (-0.02, -0.45), (0.34, -0.41), (0.58, -0.22), (0.66, 0.02))
_HEAD = ((0.30, 0.02), (0.24, 0.18), (0.06, 0.29), (-0.14, 0.26), (-0.28, 0.10), (-0.30, -0.10), (-0.14, -0.27),
         (0.10, -0.25), (0.25, -0.12))
_WING = ((0.36, 0.10), (0.24, 0.27), (-0.06, 0.30), (-0.44, 0.20), (-0.84, 0.02), (-1.12, -0.12), (-0.86, -0.14),
         (-0.48, -0.16), (-0.10, -0.20), (0.20, -0.12))
_COVERTS = ((0.40, 0.12), (0.24, 0.30), (-0.06, 0.33), (-0.20, 0.22), (-0.24, 0.02), (-0.14, -0.22), (0.2, -0.14))
_SCALLOPS = (  # columns of wing coverts, back to front: each column lies over the one behind it
    ((-0.07, 0.22), (-0.07, 0.11), (-0.07, -0.01), (-0.07, -0.13)), ((0.03, 0.17), (0.03, 0.05), (0.03, -0.07)),
    ((0.13, 0.22), (0.14, 0.11), (0.13, -0.01)), ((0.24, 0.17), (0.25, 0.05)),
)
_TAIL = ((0.10, 0.08), (-0.40, 0.10), (-0.72, 0.11), (-0.69, 0.0), (-0.72, -0.11), (-0.40, -0.10), (0.10, -0.08))
_TAIL_TIP = ((-0.48, 0.2), (-0.54, 0.0), (-0.48, -0.2), (-0.9, -0.2), (-0.9, 0.2))
_CROWN = ((0.36, 0.06), (0.20, 0.115), (0.04, 0.115), (-0.12, 0.06), (-0.24, -0.05), (-0.36, -0.14), (-0.46, 0.10),
          (-0.30, 0.40), (0.10, 0.46), (0.40, 0.30))
_MASK = ((0.30, 0.0), (0.16, 0.085), (0.0, 0.09), (-0.24, 0.0), (-0.27, -0.09), (0.0, -0.07), (0.18, -0.06))
_BROW = ((0.28, 0.07), (0.06, 0.125), (-0.16, 0.07), (-0.29, -0.05))
_RUFOUS_BREAST = ((0.70, 0.04), (0.42, -0.02), (0.10, -0.16), (-0.06, -0.32), (0.02, -0.52), (0.42, -0.50),
                  (0.72, -0.24))
_BREAST_BAND = ((0.36, 0.10), (0.48, 0.04), (0.47, -0.20), (0.36, -0.50), (0.20, -0.50), (0.30, -0.18))
_WING_PATCH = ((-0.22, 0.10), (-0.30, -0.22), (-0.62, -0.20), (-0.66, -0.06), (-0.46, 0.06))
_WING_BARS = (((-0.26, 0.28), (-0.25, 0.05), (-0.14, -0.24)), ((0.02, 0.34), (0.04, 0.10), (0.13, -0.22)))
_BEAKS: dict[str, tuple[tuple[float, float], ...]] = {
    "cone": ((0.20, 0.10), (0.32, 0.075), (0.50, -0.05), (0.34, -0.12), (0.20, -0.13)),
    "needle": ((0.22, 0.055), (0.40, 0.025), (0.70, -0.03), (0.40, -0.055), (0.22, -0.075)),
    "sickle": ((0.22, 0.075), (0.40, 0.065), (0.56, -0.02), (0.645, -0.19), (0.51, -0.095), (0.38, -0.04),
               (0.22, -0.08)),
}
_EYE = (0.08, 0.025)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A finished picture and what is true about it; pixels from the top left corner."""

    image: Image.Image
    box: tuple[int, int, int, int]  # left, top, width, height: the bird with a small margin
    parts: dict[str, tuple[int, int]]  # visible parts only: name -> x, y


def draw_bird(species: Species, *, size: int, rng: np.random.Generator) -> Picture:
    """Draw one bird whose box measures about `size` pixels along its longer side."""
    factor = 3 if size <= 320 else 2
    pose = strike_pose(size=size, beak_tip=max(_BEAKS[species.beak]), rng=rng)
    picture = scene(rng, *pose.canvas)
    branch = Canvas(pose.canvas, factor=factor, ground=(104, 84, 66))
    perch(rng, pose.feet, pose.scale, branch)
    picture = lay(picture, branch, light=pose.light, scale=pose.scale * 0.5)
    bird = _Painter(species, pose, factor)
    bird.paint(rng)
    picture = lay(
        picture, bird.canvas, light=pose.light, scale=pose.scale, raised=bird.wing_stencil, texture=bird.texture()
    )
    box = _box(bird.canvas, size, rng)
    return Picture(image=photograph(picture, size=size, rng=rng), box=box, parts=_parts(pose, species.beak))


class _Painter:
    """Paints one bird, back to front, on a canvas of its own."""

    def __init__(self, species: Species, pose: Pose, factor: int) -> None:
        width, height = pose.canvas
        self.species, self.pose = species, pose
        self.plumage = _plumage(pose).resize((width * factor, height * factor), Image.Resampling.BILINEAR)
        self.canvas = Canvas(pose.canvas, factor=factor, ground=self.plumage)
        self.inks = {name: shaded(ink, 1 + 0.06 * pose.tint) for name, ink in INKS.items()}
        self.wing_outline = pose.body.place(smooth(_WING))
        self.wing_stencil = self.canvas.stencil(self.wing_outline)
        self.torso = [pose.body.place(smooth(_BODY)), pose.head.place(smooth(_HEAD))]
        self.beak = pose.head.place(smooth(_BEAKS[species.beak]))

    def paint(self, rng: np.random.Generator) -> None:
        self._legs()
        self._tail()
        self.canvas.paint(self.torso, self.plumage)
        self._underparts(self.canvas.stencil(self.torso), rng)
        self._wing()
        self._head(self.canvas.stencil(self.torso[1]))

    def texture(self) -> npt.NDArray[np.float32]:
        """Feathers as a factor on brightness, (h, w); 1 on the wing (its feathers are painted) and off the torso."""
        where = self.canvas.stencil(self.torso)
        where.paste(0, (0, 0), self.wing_stencil)
        where.paste(0, (0, 0), self.canvas.stencil(self.beak))
        share = np.asarray(where.reduce(self.canvas.factor), dtype=np.float32) / np.float32(255)
        factor: npt.NDArray[np.float32] = 1 + (_feathers(self.pose) - 1) * share
        return factor

    def _legs(self) -> None:
        pose, ink = self.pose, self.inks[self.species.legs]
        unit = np.array([pose.scale if pose.faces_right else -pose.scale, pose.scale])
        for hip, foot, colour in (
            (pose.hips[1], pose.feet[1], shaded(ink, 0.78)),
            (pose.hips[0], pose.feet[0], ink),
        ):
            knee = hip * 0.45 + foot * 0.55 + unit * (-0.05, 0)
            self.canvas.paint(stripe([hip, knee, foot], np.array([0.085, 0.062, 0.062]) * pose.scale), colour)
            for reach, drop in ((0.15, 0.035), (0.10, 0.06), (-0.10, 0.04)):
                toe = [
                    foot + unit * (0, -0.01),
                    foot + unit * (reach / 2, drop / 2 - 0.02),
                    foot + unit * (reach, drop),
                ]
                self.canvas.paint(stripe(toe, np.array([0.055, 0.05, 0.035]) * pose.scale), colour)

    def _tail(self) -> None:
        place, mark = self.pose.tail.place, self.species.tail
        outline = place(smooth(_TAIL))
        self.canvas.paint(outline, self.inks["rufous"] if mark == "rufous" else self.pose.wing)
        clip = self.canvas.stencil(outline)
        if mark == "white_tip":
            self.canvas.paint(place(smooth(_TAIL_TIP)), self.inks["white"], clip=clip, mark=True)
        elif mark == "black_band":
            for start, end, ink in ((-0.28, -0.8, self.pose.belly), (-0.40, -0.60, self.inks["black"])):
                band = [(start, 0.2), (start, -0.2), (end, -0.2), (end, 0.2)]
                self.canvas.paint(place(band), ink, clip=clip, mark=True)
        shafts = [stripe([(0.0, y * 0.6), (-0.4, y), (-0.72, y)], 0.012) for y in (-0.055, 0.0, 0.055)]
        self.canvas.paint([place(shaft) for shaft in shafts], _SHADOW, clip=clip, opacity=0.25, mark=True)

    def _underparts(self, torso: Image.Image, rng: np.random.Generator) -> None:
        place, mark = self.pose.body.place, self.species.breast
        wobble = rng.uniform(-0.02, 0.02, (24, 2))  # drawn for every species: a mark must not shift later draws
        if mark == "rufous":
            self.canvas.paint(place(smooth(_RUFOUS_BREAST)), self.inks["rufous"], clip=torso, mark=True)
        elif mark == "band":
            self.canvas.paint(place(smooth(_BREAST_BAND)), self.inks["black"], clip=torso, mark=True)
        elif mark in ("spots", "streaks"):
            rows, columns = (-0.10, -0.20, -0.30, -0.39), (-0.24, -0.08, 0.08, 0.24, 0.40, 0.54)
            centres = np.array([(x + row % 2 * 0.075, y) for row, y in enumerate(rows) for x in columns]) + wobble
            spot = ellipse(0, 0, 0.045, 0.042, steps=12)
            if mark == "streaks":
                spot = stripe([(0.09, 0.0), (0.0, 0.005), (-0.09, -0.01)], [0.02, 0.05, 0.012])
            self.canvas.paint([place(spot + centre) for centre in centres], self.inks["umber"], clip=torso, mark=True)
        if self.species.throat != "plain":
            throat = self.pose.head.place(ellipse(0.10, -0.25, 0.215, 0.15, -24))
            self.canvas.paint(throat, self.inks[self.species.throat], clip=torso, mark=True)

    def _wing(self) -> None:
        place, mark, pose, clip = self.pose.body.place, self.species.wing, self.pose, self.wing_stencil
        drop = place(smooth(np.array(_WING) - (0.02, 0.05)))
        self.canvas.paint(drop, _SHADOW, clip=self.canvas.coverage.copy(), opacity=0.22, mark=True)
        self.canvas.paint(self.wing_outline, pose.wing)
        # Coverts are a little lighter than the flight feathers, whose edges show as fine lines toward the tip.
        covert = mixed(pose.wing, pose.back, 0.55)
        self.canvas.paint(place(smooth(_COVERTS)), covert, clip=clip, mark=True)
        edges = [
            stripe([(-0.22, top), (-0.60, top * 0.62 - 0.035), (-1.10, -0.11 + top * 0.06)], [0.012, 0.014, 0.008])
            for top in (0.20, 0.13, 0.06, -0.01, -0.08, -0.14)
        ]
        pale = shaded(pose.wing, 1.45)
        self.canvas.paint([place(edge) for edge in edges], pale, clip=clip, opacity=0.6, mark=True)
        self.canvas.paint([place(edge - (0, 0.016)) for edge in edges], _SHADOW, clip=clip, opacity=0.35, mark=True)
        for column in _SCALLOPS:
            rims = [place(ellipse(x, y, 0.076, 0.060)) for x, y in column]
            fills = [place(ellipse(x + 0.018, y, 0.075, 0.058)) for x, y in column]
            self.canvas.paint(rims, shaded(covert, 1.14), clip=clip, mark=True)
            self.canvas.paint(fills, covert, clip=clip, mark=True)
        if mark == "blue_patch":
            self.canvas.paint(place(smooth(_WING_PATCH)), self.inks["blue"], clip=clip, mark=True)
        elif mark != "plain":
            ink = self.inks["golden" if "golden" in mark else "white"]
            bars = [place(smooth(stripe(bar, [0.10, 0.12, 0.11]))) for bar in _WING_BARS]
            self.canvas.paint(bars if mark.startswith("two") else bars[:1], ink, clip=clip, mark=True)

    def _head(self, clip: Image.Image) -> None:
        place, species, canvas = self.pose.head.place, self.species, self.canvas
        outline, ink = _BEAKS[species.beak], self.inks[species.beak_colour]
        canvas.paint(self.beak, ink)
        root, tip = np.mean([outline[0], outline[-1]], axis=0), np.array(max(outline))
        gape = place(stripe([root, (root + tip) / 2 + (0.0, 0.012), tip], [0.018, 0.014, 0.004]))
        canvas.paint(gape, shaded(ink, 0.55), clip=canvas.stencil(self.beak), mark=True)
        if species.crown != "plain":
            canvas.paint(place(smooth(_CROWN)), self.inks[species.crown], clip=clip, mark=True)
        if species.eye == "mask":
            canvas.paint(place(smooth(_MASK)), self.inks["black"], clip=clip, mark=True)
        elif species.eye == "brow":
            brow = smooth(stripe(_BROW, [0.06, 0.085, 0.085, 0.05]))
            canvas.paint(place(brow), self.inks["white"], clip=clip, mark=True)
        elif species.eye == "ring":
            canvas.paint(place(ellipse(*_EYE, 0.115, 0.115)), self.inks["white"], clip=clip, mark=True)
        canvas.paint(place(ellipse(*_EYE, 0.066, 0.066)), (44, 26, 18), mark=True)
        canvas.paint(place(ellipse(*_EYE, 0.048, 0.048)), (10, 8, 10), mark=True)
        canvas.paint(place(ellipse(0.10, 0.05, 0.018, 0.018)), (255, 255, 255), mark=True)


def _plumage(pose: Pose) -> Image.Image:
    """The plain body's colour everywhere: dark above, pale below."""
    width, height = pose.canvas
    y, x = np.mgrid[0:height, 0:width].astype(np.float64) + 0.5
    along, up = pose.body.inverse(x, y)
    pale = np.clip((0.12 + 0.10 * np.clip(along, -0.6, 0.6) - up) / 0.24, 0, 1)
    pale = (pale * pale * (3 - 2 * pale))[..., None]
    colour = np.array(pose.back) * (1 - pale) + np.array(pose.belly) * pale
    return Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))


def _feathers(pose: Pose) -> npt.NDArray[np.float32]:
    """Rows of feather rims in the body's direction, as a factor on brightness, (h, w)."""
    width, height = pose.canvas
    y, x = np.mgrid[0:height, 0:width].astype(np.float64) + 0.5
    along, up = pose.body.inverse(x, y)
    row = along * 9.0
    across = (up * 8.0 + np.floor(row) % 2 * 0.5) % 1.0 - 0.5
    rim = np.hypot(row % 1.0 - 0.9, across * 1.5)
    depth = np.clip(pose.scale / 60, 0.4, 1.0) * 0.10
    return np.asarray(1 - depth * np.exp(-(((rim - 0.75) / 0.16) ** 2)), dtype=np.float32)


def _box(canvas: Canvas, size: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """The bird's box with the margin and the small inaccuracy of a person who draws it; within the picture."""
    width, height = canvas.coverage.width // canvas.factor, canvas.coverage.height // canvas.factor
    left, top, right, bottom = canvas.coverage.reduce(canvas.factor).getbbox() or (0, 0, width, height)
    margin = [round(float(share) * size) for share in rng.uniform(0.01, 0.06, 4)]
    left, top = max(0, left - margin[0]), max(0, top - margin[1])
    right, bottom = min(width, right + margin[2]), min(height, bottom + margin[3])
    return left, top, right - left, bottom - top


def _parts(pose: Pose, beak: str) -> dict[str, tuple[int, int]]:
    """Where the visible parts are. A bird that faces right shows its right eye and wing; both legs can be seen."""
    near, far = ("right", "left") if pose.faces_right else ("left", "right")
    tip_x, tip_y = max(_BEAKS[beak])
    places: dict[str, Points] = {
        "back": pose.body(0.02, 0.36),
        "beak": pose.head((0.24 + tip_x) / 2, (tip_y - 0.01) / 2),
        "belly": pose.body(-0.18, -0.34),
        "breast": pose.body(0.40, -0.20),
        "crown": pose.head(0.02, 0.22),
        "forehead": pose.head(0.22, 0.12),
        f"{near} eye": pose.head(*_EYE),
        f"{near} leg": pose.feet[0] * 0.6 + pose.hips[0] * 0.4,
        f"{far} leg": pose.feet[1] * 0.6 + pose.hips[1] * 0.4,
        f"{near} wing": pose.body(-0.20, 0.04),
        "nape": pose.head(-0.25, 0.04),
        "tail": pose.tail(-0.52, 0.0),
        "throat": pose.head(0.10, -0.22),
    }
    return {name: (int(places[name][0]), int(places[name][1])) for name in PARTS if name in places}
