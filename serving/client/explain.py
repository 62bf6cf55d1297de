"""The picture behind an answer: what was sent, where the network looked, which training patches it was reminded of.

One row an image: input, attention over it, for the full network the most similar prototypes ("this looks like that").
"""

import io
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bundle.errors import MissingExtra
from bundle.files import atomic_file
from serving.client.classify import Answer
from serving.client.prediction import Prediction
from serving.gateway.generated import fieldmark_pb2 as v1

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL, GAP, MARGIN = 2.0, 0.16, 0.3  # inches
HEADER, CAPTION = 0.62, 0.58
LINE = 27  # characters before a line under a panel is broken; what is still too wide is cut
DPI = 130
INK, SOFT, CLEAN, ALARM, BOX = "#1b1f24", "#6a737d", "#1a7f37", "#cf222e", "#ffd33d"
MAX_ROWS = 24

Pixels = npt.NDArray[np.uint8]


def draw_explanations(path: Path, answers: Sequence[Answer], names: Sequence[str], alpha: float) -> None:
    """Write the picture of `answers` that are explained to `path` as PNG; `names` are the files' names to show."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as problem:
        raise MissingExtra.named("figures", "classify --explain", problem) from None

    with warnings.catch_warnings(), atomic_file(path) as temporary:
        warnings.filterwarnings("ignore", message="Glyph")  # a label in a script that the font lacks is still drawn
        shown = max(len(answer.explanation.prototypes) if answer.explanation else 0 for answer in answers)
        width = 2 * MARGIN + (2 + shown) * PANEL + (1 + shown) * GAP
        row_height = HEADER + PANEL + CAPTION
        height = len(answers) * row_height + MARGIN
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        for row, (answer, name) in enumerate(zip(answers, names, strict=True)):
            _Row(figure, width, height, top=height - MARGIN / 2 - row * row_height).draw(answer, name, alpha)
        figure.savefig(temporary, format="png")


class _Row:
    """One image's panels; positions in inches from the figure's lower left corner."""

    def __init__(self, figure: "Figure", width: float, height: float, *, top: float) -> None:
        self.figure, self.width, self.height, self.top = figure, width, height, top

    def draw(self, answer: Answer, name: str, alpha: float) -> None:
        if answer.prediction is None or answer.image is None or answer.explanation is None:
            raise ValueError("an answer without a prediction and an explanation has no picture")
        self._header(answer.prediction, alpha)
        self._panel(0, answer.image, "input", name)
        attention = _pixels(answer.explanation.attention_png).astype(np.float32) / np.float32(255)
        self._panel(1, overlay(answer.image, attention), "where it looked")
        # Projection can put several prototypes on the same patch; the patch is shown once, and how many they are.
        patches: dict[tuple[Any, ...], list[v1.Prototype]] = {}
        for prototype in answer.explanation.prototypes:
            patches.setdefault((prototype.label, prototype.png, *_corners(prototype.box)), []).append(prototype)
        for column, alike in enumerate(patches.values(), start=2):
            first = alike[0]
            count = f", {len(alike)} prototypes" if len(alike) > 1 else ""
            image = _pixels(first.png) if first.png else None
            axes = self._panel(column, image, f"looks like {first.label}", f"similarity {first.similarity:.2f}{count}")
            if image is None:
                axes.text(0.5, 0.5, "no image here\n(see --bundle)", ha="center", va="center", color=SOFT, fontsize=8)
            else:
                _box(axes, _corners(first.box))

    def _header(self, prediction: Prediction, alpha: float) -> None:
        room, title = self.width - 2 * MARGIN, {"fontsize": 12, "color": INK, "weight": "bold"}
        label = self._text(MARGIN, 0.2, prediction.label, room - 0.8, **title)
        self._text(MARGIN + self._width(label) + 0.12, 0.2, f"{prediction.probability:.1%}", room, **title)
        flagged = prediction.is_adversarial
        verdict, sign = ("LOOKS ADVERSARIAL", "≤") if flagged else ("looks clean", ">")
        line = f"{verdict}   p = {prediction.p_value:.3g} {sign} alpha {alpha:g}"
        self._text(MARGIN, 0.44, line, room, fontsize=9.5, color=ALARM if flagged else CLEAN, weight="bold")

    def _panel(self, column: int, image: Pixels | None, caption: str, note: str = "") -> Any:
        left = MARGIN + column * (PANEL + GAP)
        bottom = self.top - HEADER - PANEL
        axes = self.figure.add_axes(
            (left / self.width, bottom / self.height, PANEL / self.width, PANEL / self.height), facecolor="#f3f4f6"
        )
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        if image is not None:
            axes.imshow(image, interpolation="nearest" if min(image.shape[:2]) < 64 else "antialiased", aspect="auto")
        lines = [*textwrap.wrap(caption, LINE, max_lines=2, placeholder=" …"), *([note] if note else [])]
        below = HEADER + PANEL + 0.13
        for number, line in enumerate(lines):
            colour = SOFT if line == note else INK
            self._text(left + PANEL / 2, below + 0.15 * number, line, PANEL, fontsize=8, color=colour, ha="center")
        return axes

    def _text(self, x: float, down: float, text: str, room: float, **style: Any) -> Any:
        """One line of text, its middle left out until it fits into `room` inches."""
        # A label is a name, not mathematics: "$" in it must not start a formula.
        y = (self.top - down) / self.height
        drawn = self.figure.text(x / self.width, y, shorten(text, 200), va="center", parse_math=False, **style)
        while (width := self._width(drawn)) > room and len(drawn.get_text()) > 5:
            drawn.set_text(shorten(text, min(len(drawn.get_text()) - 1, int(len(drawn.get_text()) * room / width))))
        return drawn

    def _width(self, drawn: Any) -> float:
        return float(drawn.get_window_extent().width) / DPI


def overlay(image: Pixels, attention: npt.NDArray[np.float32]) -> Pixels:
    """The image, grey and dim where `attention` : (h, w) in 0..1 is low and lit where it is high : uint8 RGB."""
    from matplotlib import colormaps

    coarse = max(1, round(256 / min(image.shape[:2])))  # a small image gets more pixels, for a smooth glow
    image = image.repeat(coarse, axis=0).repeat(coarse, axis=1)
    height, width = image.shape[:2]
    peak = np.nan_to_num(attention.astype(np.float32)).clip(0, 1)
    smooth = Image.fromarray(peak).resize((width, height), Image.Resampling.BICUBIC)
    weight = np.asarray(smooth).clip(0, 1)[..., None]  # (H, W, 1)
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    heat = 255 * colormaps["inferno"](weight[..., 0])[..., :3]
    lit = 0.55 * (weight * image + (1 - weight) * grey) + 0.45 * heat
    return np.asarray(lit.round(), dtype=np.uint8)


def shorten(text: str, most: int) -> str:
    """At most `most` characters of one line, the middle left out: the end of a file's name tells most."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    most = max(most, 5)
    if len(line) <= most:
        return line
    tail = (most - 1) // 2
    return f"{line[: most - 1 - tail]}…{line[-tail:]}"


def _pixels(png: bytes) -> Pixels:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image)


def _corners(box: v1.Box) -> tuple[int, int, int, int]:
    return box.left, box.top, box.right, box.bottom


def _box(axes: Any, box: Sequence[int]) -> None:
    from matplotlib.patches import Rectangle

    left, top, right, bottom = box
    for colour, width in ((INK, 3.2), (BOX, 1.8)):  # dark under bright, to be seen on any plumage
        corner = (left - 0.5, top - 0.5)
        axes.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=colour, linewidth=width))
