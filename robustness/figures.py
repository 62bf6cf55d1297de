"""The report's figures as PNG bytes, after the paper's: what they show is in report.json or made from the network."""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from robustness.metrics import roc

INK, QUIET, GOOD, BAD = "#22262b", "#7a7e84", "#1b7837", "#b2182b"
COLOURS = ("#1b6ca8", "#d1700c", "#1b7837", "#7b3294", "#b2182b", "#0f8b8d", "#8c6d31", "#5a5a5a", "#c51b7d", "#4d9221")
MAPPED = 2000  # prototypes that t-SNE lays out
Pixels = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Looked:
    """One image, clean and attacked: pixels (H, W, 3), where the network looked (h, w), what it said."""

    pixels: tuple[Pixels, Pixels]
    maps: tuple[Maps, Maps]
    answers: tuple[str, str]
    label: str


@dataclass(frozen=True, kw_only=True)
class Prototype:
    """A prototype's training image (H, W, 3), the box of its patch (left, top, right, bottom) and its class."""

    pixels: Pixels
    box: tuple[int, int, int, int]
    label: str


def accuracy_against_eps(heads: Mapping[str, Any], classes: int) -> bytes:
    """Fig. 6: share answered rightly as PGD may do more, with 95 % intervals."""
    figure, (axis,) = _figure(6.4, 3.8, 1)
    for (head, measured), colour in zip(heads.items(), COLOURS, strict=False):
        eps = [255 * point["eps"] for point in measured["curve"]]
        shares = [point["right"]["share"] for point in measured["curve"]]
        low, high = zip(*(point["right"]["interval"] for point in measured["curve"]), strict=True)
        places = np.arange(len(eps))
        axis.plot(places, shares, "o-", color=colour, label=head)
        axis.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
    axis.axhline(1 / classes, color=QUIET, linestyle=":", label="chance")
    axis.set_xticks(places, [f"{value:g}" for value in eps])
    _label(axis, "perturbation, eps in 1/255", "answered rightly")
    axis.set_ylim(-0.02, 1.02)
    axis.legend(frameon=False)
    return _png(figure)


def roc_curves(heads: Mapping[str, Any]) -> bytes:
    """Fig. 7: how many attacks that fool the network are flagged, at what price in clean images."""
    figure, axes = _figure(5.4 * len(heads), 4.4, len(heads))
    for axis, (head, measured) in zip(axes, heads.items(), strict=True):
        clean = measured["answers"]["clean"]
        negatives = np.array(clean["score"])
        names = [name for name in measured["answers"] if name not in ("clean", "noise")]
        for name, colour in zip(names, (*COLOURS, *COLOURS), strict=False):
            answers = measured["answers"][name]
            fooled = [
                score
                for score, right, before in zip(answers["score"], answers["right"], clean["right"], strict=True)
                if before == "1" and right == "0"
            ]
            if len(fooled) < 2:
                continue
            false, true = roc(negatives, np.array(fooled))
            area = measured["detection"][name]["auroc"]
            axis.step(false, true, where="post", color=colour, linewidth=1.4, label=f"{name}  {area:.3f}")
        axis.plot([0, 1], [0, 1], color=QUIET, linestyle=":")
        _label(axis, "clean images flagged", "fooling attacks flagged")
        axis.set_title(head, fontsize=11, color=INK)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8, title="attack, AUROC", title_fontsize=8, loc="lower right")
    return _png(figure)


def system_view(heads: Mapping[str, Any]) -> bytes:
    """What gets through, answered wrongly and not flagged, as the operator lets more clean images be flagged."""
    figure, axes = _figure(5.4 * len(heads), 4.0, len(heads))
    levels = np.linspace(0, 0.25, 101)
    for axis, (head, measured) in zip(axes, heads.items(), strict=True):
        for (name, answers), colour in zip(measured["answers"].items(), (*COLOURS, *COLOURS), strict=False):
            wrong = np.array([each == "0" for each in answers["right"]])
            p_values = np.array(answers["p_value"])
            missed = [(wrong & (p_values > level)).mean() for level in levels]
            axis.plot(levels, missed, color=colour, label=name, linestyle="--" if name in ("clean", "noise") else "-")
        success = measured["adaptive"]["success"]
        if "any" in success:
            axis.plot(
                [measured["adaptive"]["alpha"]],
                [success["any"]["share"]],
                "X",
                color=BAD,
                markersize=9,
                label="adaptive, any",
            )
        _label(axis, "alpha: clean images flagged", "wrong and not flagged")
        axis.set_ylim(-0.02, 1.02)
        axis.set_title(head, fontsize=11, color=INK)
        axis.legend(frameon=False, fontsize=8, ncols=2)
    return _png(figure)


def reliability(heads: Mapping[str, Any]) -> bytes:
    """Whether a share alpha of clean test images has a p-value of at most alpha, with the band that n allows."""
    figure, (axis,) = _figure(4.8, 4.4, 1)
    for (head, measured), colour in zip(heads.items(), COLOURS, strict=False):
        values = np.sort(measured["clean"]["p_values"])
        axis.step(
            values,
            np.arange(1, len(values) + 1) / len(values),
            where="post",
            color=colour,
            label=head,
        )
    grid = np.linspace(0, 1, 101)
    count = len(values)
    variance = sum(images + images**2 / scores for images, scores in measured["clean"]["groups"]) / count**2
    band = 1.96 * np.sqrt(grid * (1 - grid) * variance)
    axis.fill_between(grid, grid - band, grid + band, color=QUIET, alpha=0.18, linewidth=0, label="95 % at each alpha")
    axis.plot([0, 1], [0, 1], color=QUIET, linestyle=":")
    _label(axis, "alpha", "clean images with p ≤ alpha")
    axis.legend(frameon=False, fontsize=9)
    return _png(figure)


def prototype_space(prototypes: npt.NDArray[np.float32], labels: Sequence[str], seed: int = 0) -> bytes:
    """Fig. 2: t-SNE of prototypes (m, D), m / K of each class in turn. Of more than MAPPED, whole classes at equal
    steps through the list, since its time grows faster than their number.
    """
    from sklearn.manifold import TSNE

    each, number = len(prototypes) // len(labels), len(labels)
    room = max(2, MAPPED // each)
    kept = np.unique(np.linspace(0, number - 1, min(number, room)).round().astype(int))
    prototypes = prototypes.reshape(number, each, -1)[kept].reshape(len(kept) * each, -1)
    labels = [labels[index] for index in kept]
    classes = np.repeat(np.arange(len(labels)), each)
    perplexity = min(30.0, max(2.0, (len(prototypes) - 1) / 4))
    flat = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(prototypes)
    figure, (axis,) = _figure(6.4, 5.2, 1)
    from matplotlib import colormaps

    colours = colormaps["nipy_spectral"](np.linspace(0.03, 0.97, len(labels)))
    for index, label in enumerate(labels):
        mine = flat[classes == index]
        shown = " " + _plain(label) if len(labels) <= 30 else None  # a legend leaves out what begins with "_"
        axis.scatter(mine[:, 0], mine[:, 1], s=16, color=colours[index], label=shown)
    axis.set_xticks([])
    axis.set_yticks([])
    if len(labels) < number:
        axis.set_xlabel(f"{len(labels)} of {number} classes")
    if len(labels) <= 30:
        axis.legend(frameon=False, fontsize=6.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return _png(figure)


def prototype_sheet(prototypes: Sequence[Sequence[Prototype]]) -> bytes:
    """Fig. 4: a row a class; each prototype's patch in the training image that it was projected onto."""
    from matplotlib.patches import Rectangle

    columns = max(map(len, prototypes))
    figure, axes = _grid(len(prototypes), columns, 1.15, left=1.6)
    for row, mine in zip(axes, prototypes, strict=True):
        for axis, prototype in zip(row, mine, strict=False):
            axis.imshow(prototype.pixels, interpolation="lanczos")
            left, top, right, bottom = prototype.box
            axis.add_patch(
                Rectangle(
                    (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="#ffd400", linewidth=1.6
                )
            )
        _name(row[0], mine[0].label)
    return _png(figure)


def activations(looked: Sequence[Looked]) -> bytes:
    """Fig. 5: where the network looked, clean and attacked, and what it said."""
    figure, axes = _grid(len(looked), 4, 1.5)
    for row, each in zip(axes, looked, strict=True):
        for place in range(2):
            image, seen = row[2 * place], row[2 * place + 1]
            height, width = each.pixels[place].shape[:2]
            image.imshow(each.pixels[place], interpolation="lanczos")
            seen.imshow(each.pixels[place], interpolation="lanczos")
            shown = np.clip(each.maps[place], 0, None)
            seen.imshow(
                shown,
                cmap="inferno",
                alpha=0.55,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                interpolation="bicubic",
            )
            good = each.answers[place] == each.label
            image.set_title(("clean", "attacked")[place], fontsize=7, color=QUIET)
            seen.set_title(_plain(each.answers[place], 26), fontsize=7, color=GOOD if good else BAD)
        _name(row[0], each.label)
    return _png(figure)


def _figure(width: float, height: float, columns: int) -> tuple[Any, list[Any]]:
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, columns, figsize=(width, height), squeeze=False, dpi=110)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9, colors=INK)
    return figure, list(axes.flat)


def _grid(rows: int, columns: int, side: float, left: float = 0.0) -> tuple[Any, Any]:
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(side * columns + left, (side + 0.18) * rows), squeeze=False, dpi=110
    )
    for axis in axes.flat:
        axis.axis("off")
    return figure, axes


def _name(axis: Any, label: str) -> None:
    """A row's class, left of its first picture."""
    axis.text(-0.08, 0.5, _plain(label), transform=axis.transAxes, ha="right", va="center", fontsize=8, color=INK)


def _plain(label: str, most: int = 40) -> str:
    """A class's name on a picture: "$" begins no formula, what is long is cut."""
    line = "".join(each if each.isprintable() else "?" for each in label)
    return (line if len(line) <= most else f"{line[: most - 1]}…").replace("$", r"\$")


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _label(axis: Any, x: str, y: str) -> None:
    axis.set_xlabel(x, fontsize=10, color=INK)
    axis.set_ylabel(y, fontsize=10, color=INK)


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph|Matplotlib currently does not support")
        figure.savefig(stream, format="png", bbox_inches="tight", metadata={"Software": None})
    _pyplot().close(figure)
    return stream.getvalue()
