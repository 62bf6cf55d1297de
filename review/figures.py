"""The numbers behind the figures: what came in beside what clean images would give, and what became of the flags.

A source keeps every flagged image and a share of the others, so each of these stands for 1 / share. Where nobody says
that share, only what was flagged can be counted. Tests of drift read a thinned stream: of flagged and others the same
share, in the order in which they came, which is exchangeable with the calibration as the whole is.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle import Bundle
from review.store.database import Database
from review.store.item import FLAGGED, chance
from review.store.verdicts import ATTACK, CLEAN, FAULT
from scoring.drift.comparison import KolmogorovSmirnov, kolmogorov_smirnov, online_p_values, wilson
from scoring.drift.scored import read_calibration
from serving.martingale import simple_jumper

BINS, MOST_TIMES, MOST_POINTS = 20, 48, 400
FDR = 0.1
MOST_DRIFT = 50_000  # latest images of the thinned stream that drift is measured on
Z95 = 1.96
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """p-values in BINS equal bins: heights : (BINS,), images as a share of what uniform ones would give; each between
    bounds : (BINS, 2) in 95 % of clean sources. `images` is how many came in, about; NaN where only flags are known.
    """

    heights: Float64
    bounds: Float64
    images: float


@dataclass(frozen=True, kw_only=True)
class Shares:
    """By time, oldest first: the flagged share of all images : (t,), its intervals of 95 % : (t, 2)."""

    times: tuple[str, ...]
    flagged: tuple[int, ...]
    shares: Float64
    intervals: Float64


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Drift of the thinned stream: log10 of the martingale's capital at `places` : (k,), and Kolmogorov-Smirnov."""

    images: int
    places: npt.NDArray[np.int64]
    capital: Float64
    highest: float
    ks: KolmogorovSmirnov


@dataclass(frozen=True, kw_only=True)
class Discoveries:
    """Benjamini and Hochberg's (1995) list at FDR among `images` p-values, the largest p-value on it; of its `listed`,
    how many were decided, and were attacks. `smallest` is the smallest p-value that the calibration can give.
    """

    images: float
    listed: int
    most: float
    decided: int
    attacks: int
    smallest: float

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, of 95 %, for the precision of the list."""
        return wilson(self.attacks, self.decided) if self.decided else (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Everything of one network's items that figures need, oldest first: (n,) each."""

    keys: tuple[str, ...]
    received: tuple[str, ...]
    p_values: Float64
    scores: Float64
    flags: npt.NDArray[np.bool_]
    weights: Float64  # NaN for an unflagged item of unknown share
    states: tuple[str, ...]

    @property
    def known(self) -> bool:
        """Whether every item stands for a known number of images, and not all of them are flagged ones."""
        return bool(np.isfinite(self.weights).all()) and not bool(self.flags.all())


def rows(database: Database, bundle: Bundle, network: str) -> _Rows:
    """What the bundle's network has answered."""
    with database.reading() as connection:
        found = connection.execute(
            "SELECT key, received, p_value, score, reason, share, state FROM items WHERE network = ? AND bundle_id = ?"
            " ORDER BY received, id",
            [network, bundle.bundle_id],
        ).fetchall()
    flags = np.array([row["reason"] == FLAGGED for row in found], bool)
    shares = np.array([np.nan if row["share"] is None else row["share"] for row in found], float)
    return _Rows(
        keys=tuple(row["key"] for row in found),
        received=tuple(row["received"] for row in found),
        p_values=np.array([row["p_value"] for row in found], float),
        scores=np.array([row["score"] for row in found], float),
        flags=flags,
        weights=np.where(flags, 1.0, 1 / shares),
        states=tuple(row["state"] for row in found),
    )


def histogram(found: _Rows) -> Histogram | None:
    """p-values against uniform; None where nothing is known of the unflagged."""
    if not found.known:
        return None
    place = np.minimum((np.ceil(found.p_values * BINS) - 1).astype(np.int64).clip(0), BINS - 1)
    images = float(found.weights.sum())
    expected = images / BINS
    heights = np.bincount(place, found.weights, BINS) / expected
    squares = np.bincount(place, found.weights**2, BINS)
    weight = np.where(heights > 0, squares / np.maximum(heights * expected, 1e-9), float(found.weights.max()))
    half = Z95 * np.sqrt(expected * weight) / expected
    return Histogram(heights=heights, bounds=np.stack([np.maximum(0, 1 - half), 1 + half], axis=1), images=images)


def shares(found: _Rows) -> Shares | None:
    """The flagged share by hour, or by day where there are many hours; None where nothing is known of the unflagged."""
    if not found.known:
        return None
    for digits in (13, 10):
        times = sorted({time[:digits] for time in found.received})
        if len(times) <= MOST_TIMES:
            break
    times = times[-MOST_TIMES:]
    index = {time: place for place, time in enumerate(times)}
    place = np.array([index.get(time[:digits], -1) for time in found.received])
    own = place >= 0
    flagged = np.bincount(place[own & found.flags], minlength=len(times))
    images = np.bincount(place[own], found.weights[own], len(times))
    intervals = [
        wilson(int(count), max(int(count), round(total))) for count, total in zip(flagged, images, strict=True)
    ]
    return Shares(
        times=tuple(times),
        flagged=tuple(flagged.tolist()),
        shares=flagged / images,
        intervals=np.array(intervals),
    )


def stream(found: _Rows, bundle: Bundle, network: str) -> Stream | None:
    """Drift against the calibration; None where nothing is known of the unflagged."""
    if not found.known:
        return None
    least = 1 / found.weights.max()
    drawn = [
        chance(key, "drift") < (least if flag else least * weight)
        for key, flag, weight in zip(found.keys, found.flags, found.weights, strict=True)
    ]
    scores = found.scores[np.array(drawn)][-MOST_DRIFT:].astype(np.float32)
    if not len(scores):
        return None
    calibration = read_calibration(bundle, network)
    path = np.cumsum(np.log10(simple_jumper(online_p_values(calibration.scores, scores, np.random.default_rng(0)))))
    places = np.unique(np.append(np.linspace(0, len(path) - 1, MOST_POINTS).astype(np.int64), path.argmax()))
    return Stream(
        images=len(scores),
        places=places,
        capital=path[places],
        highest=max(0.0, float(path.max())),
        ks=kolmogorov_smirnov(scores, calibration.scores),
    )


def discoveries(found: _Rows, bundle: Bundle, network: str) -> Discoveries | None:
    """The list whose false discoveries are at most FDR of it on average; None where nothing is known of the unflagged.

    What is on it is flagged, unless alpha is tiny: so it can be told from the flagged images alone and how many others
    there were.
    """
    if not found.known:
        return None
    images = float(found.weights.sum())
    p_values = np.sort(found.p_values[found.flags])
    holds = np.flatnonzero(p_values <= FDR * np.arange(1, len(p_values) + 1) / images)
    most = float(p_values[holds[-1]]) if len(holds) else 0.0
    listed = found.flags & (found.p_values <= most)
    states = [state for state, own in zip(found.states, listed, strict=True) if own]
    return Discoveries(
        images=images,
        listed=len(states),
        most=most,
        decided=sum(state in (ATTACK, CLEAN, FAULT) for state in states),
        attacks=states.count(ATTACK),
        smallest=1 / (bundle.manifest.networks[network].detector.calibration_n + 1),
    )
