"""demo.png: clean beside attacked images, where the network looked, what it said, and whether it was believed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.files import atomic_file
from serving.client.explain import overlay
from serving.client.prediction import Prediction

BESIDE = 2  # birds in a line
GOOD, BAD, QUIET = "#1b7837", "#b2182b", "#555555"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One image as the endpoint saw it. pixels : (H, W, 3) uint8, attention : (H, W) in [0, 1]."""

    pixels: npt.NDArray[np.uint8]
    attention: npt.NDArray[np.float32]
    prediction: Prediction


def draw(rows: Sequence[tuple[str, Sequence[tuple[str, Panel]]]], path: Path, note: str) -> None:
    """Each row: the true label and (condition, panel) pairs; every panel shows the image and its attention. `note` says
    what these few were taken from.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    width = 2 * len(rows[0][1])  # panels of one bird: image and attention for each condition
    lines = -(-len(rows) // BESIDE)
    figure, axes = pyplot.subplots(
        lines, BESIDE * width, figsize=(2.0 * BESIDE * width, 2.75 * lines + 0.4), squeeze=False, dpi=100
    )
    for axis in axes.flat:
        axis.axis("off")
    for place, (truth, panels) in enumerate(rows):
        line, offset = axes[place // BESIDE], place % BESIDE * width
        for index, (condition, panel) in enumerate(panels):
            _panel(line[offset + 2 * index], line[offset + 2 * index + 1], truth, condition, panel)
    figure.suptitle(
        "Clean and attacked images, the network's attention, and the endpoint's verdict", fontsize=13, weight="bold"
    )
    figure.text(
        0.5,
        0.945,
        f"{note}      ✓ ✗  the label is right or wrong      p  the verdict is right (green) or wrong (red)",
        ha="center",
        fontsize=9,
        color=QUIET,
    )
    figure.tight_layout(rect=(0, 0, 1, 0.96), h_pad=1.6, w_pad=0.6)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
    pyplot.close(figure)


def _panel(left: Any, right: Any, truth: str, condition: str, panel: Panel) -> None:
    answer = panel.prediction
    correct = answer.label == truth
    left.imshow(panel.pixels, interpolation="lanczos")
    left.set_title(f"{condition}\n{truth}", fontsize=8, color=QUIET)
    right.imshow(overlay(panel.pixels, panel.attention), interpolation="lanczos")
    right.set_title(
        f"{'✓' if correct else '✗'} {answer.label}\n{answer.probability:.0%}",
        fontsize=8,
        color=GOOD if correct else BAD,
    )
    verdict = "ADVERSARIAL" if answer.is_adversarial else "looks clean"
    expected = (condition == "clean") != answer.is_adversarial
    right.set_xlabel(f"p = {answer.p_value:.3f}: {verdict}", fontsize=8, color=GOOD if expected else BAD, weight="bold")
    for axis in (left, right):
        axis.axis("on")
        axis.set_xticks([])
        axis.set_yticks([])
