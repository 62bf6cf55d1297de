"""Drawings as SVG inside the page: no library, no script, colours from the style sheet, so that they work in the dark.

Each has a sentence that says the same, for whoever does not see it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape

from review.figures import FDR, Discoveries, Shares, Stream
from review.store.agreement import Precision
from scoring.drift.comparison import CAPITALS, Histogram

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 14, 40
CROWDED = 6  # powers of ten on the axis, beyond which the two levels of drift lie too close for words
Points = Sequence[tuple[float, float]]


@dataclass(kw_only=True)
class Chart:
    """A plane from (x0, y0) to (x1, y1), and what is drawn on it."""

    x: tuple[float, float]
    y: tuple[float, float]
    says: str
    parts: list[Markup] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point in pixels."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (min(max(y, self.y[0]), self.y[1]) - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def box(self, low: tuple[float, float], high: tuple[float, float], kind: str) -> None:
        """A filled rectangle between two corners."""
        (x0, y1), (x1, y0) = self.at(*low), self.at(*high)
        self._add(
            '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>',
            kind, x0, y0, max(0.5, x1 - x0), max(0.0, y1 - y0),
        )  # fmt: skip

    def line(self, points: Points, kind: str) -> None:
        """Points joined in their order."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        self._add('<polyline class="{}" points="{}"/>', kind, path)

    def dot(self, x: float, y: float, kind: str) -> None:
        """One point."""
        self._add('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3.2"/>', kind, *self.at(x, y))

    def level(self, y: float, kind: str, text: str = "") -> None:
        """A horizontal line, with words at its right end."""
        self.line([(self.x[0], y), (self.x[1], y)], kind)
        if text:
            _, down = self.at(self.x[1], y)
            self._add(
                '<text class="{}" x="{}" y="{:.1f}" text-anchor="end">{}</text>', kind, WIDTH - RIGHT, down - 5, text
            )

    def ticks(self, across: Sequence[tuple[float, str]], up: Sequence[tuple[float, str]]) -> None:
        """What stands beside the axes."""
        for y, text in up:
            self.line([(self.x[0], y), (self.x[1], y)], "grid")
            _, down = self.at(self.x[0], y)
            self._add('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>', LEFT - 7, down + 4, text)
        for x, text in across:
            right, _ = self.at(x, self.y[0])
            self._add('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>', right, HEIGHT - BOTTOM + 17, text)

    def words(self, below: str) -> None:
        """What the horizontal axis is."""
        middle = (LEFT + WIDTH - RIGHT) / 2
        self._add('<text class="axis" x="{:.0f}" y="{}" text-anchor="middle">{}</text>', middle, HEIGHT - 5, below)

    def svg(self) -> Markup:
        """The drawing."""
        inner = Markup("").join(self.parts)
        return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
            WIDTH, HEIGHT, self.says, inner
        )

    def _add(self, shape: str, *values: object) -> None:
        self.parts.append(
            Markup(
                shape.format(*(value if isinstance(value, (int, float)) else escape(str(value)) for value in values))
            )
        )


def p_values(found: Histogram, alpha: float) -> Markup:
    """The histogram of p-values beside what clean images give."""
    bins = len(found.heights)
    top = max(2.0, float(found.heights.max()) * 1.08, float(found.bounds.max()) * 1.02)
    outside = int(((found.heights < found.bounds[:, 0]) | (found.heights > found.bounds[:, 1])).sum())
    says = (
        f"Of {found.rows:,} p-values, the lowest of {bins} bins holds {found.heights[0]:.1f} times what clean "
        f"images give; {outside} of {bins} bins lie outside what 95 % of clean samples give."
    )
    chart = Chart(x=(0, 1), y=(0, top), says=says)
    for index, (low, high) in enumerate(found.bounds):
        chart.box((index / bins, float(low)), ((index + 1) / bins, float(high)), "band")
    chart.ticks([(x / 5, f"{x / 5:g}") for x in range(6)], [(y, f"{y:g}×") for y in _steps(top)])
    for index, height in enumerate(found.heights):
        kind = "bar alarm" if index / bins < alpha - 1e-9 else "bar"
        chart.box(((index + 0.14) / bins, 0), ((index + 0.86) / bins, float(height)), kind)
    chart.level(1, "promise", "clean images: 1×")
    chart.words("p-value; what is flagged stands in red")
    return chart.svg()


def flagged(found: Shares, alpha: float) -> Markup:
    """The flagged share over time against what alpha promises."""
    worst = int(found.shares.argmax())
    top = min(1.0, max(4 * alpha, float(found.intervals.max()) * 1.05))
    says = (
        f"Alpha promises {alpha:.1%} of clean images flagged. The largest share is {found.shares[worst]:.1%}, "
        f"at {_time(found.times[worst])}; the latest is {found.shares[-1]:.1%}."
    )
    count = len(found.times)
    chart = Chart(x=(-0.5, count - 0.5), y=(0, top), says=says)
    chart.ticks(
        _few([(index, _time(time)) for index, time in enumerate(found.times)]),
        [(y, f"{100 * y:g} %") for y in _steps(top)],
    )
    for index, (low, high) in enumerate(found.intervals):
        chart.line([(index, float(low)), (index, float(high))], "spread")
    for index, share in enumerate(found.shares.tolist()):
        chart.dot(index, share, "alarm" if found.intervals[index, 0] > alpha else "mark")
    chart.level(alpha, "promise", f"promised: {alpha:.1%}")
    chart.words("time in UTC, each with its 95 % interval")
    return chart.svg()


def drift(found: Stream) -> Markup:
    """The martingale over the sample; its exponent is drawn, since the capital may be beyond every float."""
    top, bottom = max(2.6, float(found.capital.max()) * 1.1), min(-1.0, float(found.capital.min()) * 1.1)
    highest, images = found.drift.martingale.highest, found.drift.rows
    says = (
        f"The test martingale has reached 10 to the {highest:.1f} in {images:,} images; "
        f"with no drift it ever reaches {CAPITALS[1]:g} in at most 1 of {CAPITALS[1]:g} cases."
    )
    chart = Chart(x=(0, max(1, int(found.places[-1]))), y=(bottom, top), says=says)
    last = int(found.places[-1])
    chart.ticks(
        [(last * part / 4, f"{last * part // 4:,}") for part in range(5)], [(y, f"{y:g}") for y in _steps(top, bottom)]
    )
    chart.line(list(zip(found.places.tolist(), found.capital.tolist(), strict=True)), "mark")
    for capital, kind in zip(CAPITALS, ("promise", "promise alarm"), strict=True):
        told = kind != "promise" or top < CROWDED
        chart.level(float(np.log10(capital)), kind, f"{capital:g}: 1 of {capital:g} clean samples" if told else "")
    chart.words("images of the sample; height: power of ten of the capital")
    return chart.svg()


def precision(found: Sequence[Precision], listed: Discoveries | None) -> Markup:
    """By day, how many of the flagged and decided were attacks."""
    days = [each for each in found if each.decided][-48:]
    attacks, decided = sum(each.attacks for each in days), sum(each.decided for each in days)
    says = f"Of {decided:,} flagged images that were decided, {attacks:,} were attacks."
    if listed is not None and listed.decided:
        says += (
            f" Of {listed.decided:,} decided ones on the list at {FDR:.0%} false discoveries, {listed.attacks:,} were."
        )
    chart = Chart(x=(-0.5, len(days) - 0.5), y=(0, 1), says=says)
    chart.ticks(
        _few([(index, _time(each.day)) for index, each in enumerate(days)]), [(y / 4, f"{25 * y} %") for y in range(5)]
    )
    for index, each in enumerate(days):
        low, high = each.interval
        chart.line([(index, low), (index, high)], "spread")
        chart.dot(index, each.share, "mark")
    if listed is not None and listed.decided:
        share = listed.attacks / listed.decided
        chart.level(share, "promise", f"FDR list: {share:.0%} of {listed.decided:,}")
    chart.words("day, each with its 95 % interval")
    return chart.svg()


def _steps(top: float, bottom: float = 0.0) -> list[float]:
    """Four or five round numbers."""
    raw = (top - bottom) / 4
    unit = 10 ** np.floor(np.log10(raw))
    step = float(next(unit * each for each in (1, 2, 2.5, 5, 10) if unit * each >= raw))
    return [round(step * index, 10) for index in range(int(np.ceil(bottom / step)), int(top / step) + 1)]


def _few(ticks: list[tuple[float, str]], most: int = 6) -> list[tuple[float, str]]:
    every = -(-len(ticks) // most) or 1
    return ticks[::every]


def _time(text: str) -> str:
    """`11-24` of a day, `24. 13 h` of an hour."""
    return f"{text[8:10]}. {text[11:13]} h" if len(text) > 10 else text[5:]
