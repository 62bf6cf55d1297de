"""The picture of a drift comparison: p-values beside what clean data give, the martingale, the flagged share."""

from pathlib import Path
from typing import Any

import numpy as np

from bundle.errors import MissingExtra
from bundle.files import atomic_file
from scoring.drift.comparison import CAPITALS, SEEN_DRAWS, Drift, clean_share, flagging_groups, histogram
from scoring.drift.scored import Calibration, ScoredSet
from serving.client.explain import ALARM, CLEAN, INK, SOFT

BAND, BAR = "#d8e6d9", "#5b7fa6"
BLOCKS, SMALLEST_BLOCK, POINTS = 40, 20, 4000
DPI = 130


def require() -> None:
    """Raise MissingExtra where nothing can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as problem:
        raise MissingExtra.named("figures", "drift --plot", problem) from None


def draw(path: Path, result: Drift, found: ScoredSet, calibration: Calibration, *, shuffled: bool) -> None:
    """Write the picture to `path` as PNG. Grey-green bands hold 95 % of clean sets, at each place by itself."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(11, 5.6), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplot_mosaic([["histogram", "martingale"], ["histogram", "share"]])
    verdict, colour = ("drift", ALARM) if result.reasons else ("no drift found", CLEAN)
    errors = found.total - result.rows
    figure.suptitle(
        f"{verdict}: {result.rows:,} rows{f' ({errors:,} not decoded)' if errors else ''}"
        f" against {len(calibration.scores):,} calibration scores",
        color=colour,
        weight="bold",
        x=0.01,
        ha="left",
    )
    for axes in panels.values():
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=8)
    _histogram(panels["histogram"], found, calibration)
    _martingale(panels["martingale"], result, shuffled)
    _share(panels["share"], found, calibration)
    for name in ("martingale", "share"):
        panels[name].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for axes in panels.values():
        axes.xaxis.label.set_fontsize(9)
        axes.yaxis.label.set_fontsize(9)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _histogram(axes: Any, found: ScoredSet, calibration: Calibration) -> None:
    """p-values in bins, each divided by the share that clean data put there on average."""
    binned = histogram(found, calibration)
    bins, bounds = len(binned.heights), binned.bounds
    middle, width = (np.arange(bins) + 0.5) / bins, 1 / bins
    axes.bar(middle, bounds[:, 1] - bounds[:, 0], width, bottom=bounds[:, 0], color=BAND, label="95 % of clean sets")
    axes.bar(middle, binned.heights, 0.72 * width, color=BAR, alpha=0.85, label="this set")
    axes.axhline(1, color=CLEAN, linewidth=1)
    axes.axvline(
        found.alpha, color=ALARM, linewidth=1, linestyle="--", label=f"alpha {found.alpha:g}: flagged from here down"
    )
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel="p-value", ylabel="share of rows / that of clean data")
    axes.set_title("p-values", loc="left", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=8, loc="upper right")


def _martingale(axes: Any, result: Drift, shuffled: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    # The exponent is drawn on a linear axis: the capital itself may be beyond every float.
    path = np.concatenate([[0.0], result.martingale.path])
    shown = np.unique(np.concatenate([np.linspace(0, len(path) - 1, POINTS).astype(np.int64), [path.argmax()]]))
    axes.plot(shown, path[shown], color=BAR, linewidth=1.3)
    for capital, colour, style in zip(CAPITALS, (SOFT, ALARM), (":", "--"), strict=True):
        label = f"{capital:g}: reached in at most {100 / capital:g} % of clean sets"
        axes.axhline(np.log10(capital), color=colour, linewidth=1, linestyle=style, label=label)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"$10^{{{value:.0f}}}$"))
    axes.set_ylim(min(-1.0, path.min() * 1.05), max(2.4, path.max() * 1.05))
    axes.set(xlim=(0, len(path) - 1), ylabel="capital", xlabel=f"rows read{', shuffled' if shuffled else ''}")
    axes.set_title("test martingale", loc="left", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=8, loc="best")


def _share(axes: Any, found: ScoredSet, calibration: Calibration) -> None:
    m = len(found.flags)
    parts = max(1, min(BLOCKS, m // SMALLEST_BLOCK))
    blocks = np.array_split(found.flags, parts)
    sizes = [len(block) for block in blocks]
    edges = np.concatenate([[0], np.cumsum(sizes)])
    classes = np.array_split(found.classes, parts)
    sources = [flagging_groups(each, calibration, found.alpha) for each in classes]
    bounds = {each: clean_share(each, SEEN_DRAWS) for each in set(sources)}
    low, high = (np.array([100 * bounds[each][side] for each in sources]) for side in (0, 1))
    axes.stairs(high, edges, baseline=low, fill=True, color=BAND)
    share = [100 * float(block.mean()) for block in blocks]
    axes.plot((edges[1:] + edges[:-1]) / 2, share, color=BAR, marker="o", markersize=3, linewidth=1)
    axes.axhline(100 * found.alpha, color=CLEAN, linewidth=1)
    axes.set(xlim=(0, m), ylim=(0, None), ylabel="flagged, %", xlabel="row of the set")
    axes.set_title(f"flagged share, {len(sizes)} block{'s' * (len(sizes) > 1)}", loc="left", fontsize=10, color=INK)
