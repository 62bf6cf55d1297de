"""The numbers behind the figures: what came in beside what clean images would give, and what became of the flags.

A source keeps what was flagged, and a random sample of everything, flagged or not. Whatever is said of all that came in
is said of that sample; of the flags, all are counted.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle import Bundle
from bundle.false_alarms import smallest_p_value, wilson
from review.store.database import Database
from review.store.decisions import ATTACK, CLEAN, FAULT
from scoring.drift import comparison
from scoring.drift.comparison import Drift, Histogram
from scoring.drift.scored import ScoredSet, read_calibration
from serving.quarantine.entry import FLAGGED

MOST_TIMES, MOST_POINTS = 48, 400
FDR = 0.1
MOST_DRIFT = 50_000  # latest images of the sample that drift is measured on
FEWEST_DRAWN = 10  # flagged images of the sample from which it is told how many came in
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """By time, oldest first: the flagged share of the sample : (t,), its intervals of 95 % : (t, 2)."""

    times: tuple[str, ...]
    shares: Float64
    intervals: Float64


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What `fieldmark drift` says of the sample; log10 of the martingale's capital at `places` : (k,)."""

    drift: Drift
    places: npt.NDArray[np.int64]

    @property
    def capital(self) -> npt.NDArray[np.floating]:
        """log10 at the places : (k,)."""
        return self.drift.martingale.path[self.places]


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
        return wilson(self.attacks, self.decided)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Everything of one network's items that figures need, oldest first : (n,) each; `total` images were answered in
    all, where that is known.

    `flags` are those of whoever answered, who may have been asked for any alpha: all of them are here. `alarms` are at
    the bundle's alpha, which is what is promised.
    """

    received: tuple[str, ...]
    labels: tuple[str, ...]
    p_values: Float64
    scores: Float64
    flags: npt.NDArray[np.bool_]
    alarms: npt.NDArray[np.bool_]
    drawn: npt.NDArray[np.bool_]
    states: tuple[str, ...]
    total: int | None

    @property
    def images(self) -> float | None:
        """About how many came in: of the flagged, all are here, and as large a part is drawn as of all."""
        if self.total is not None:
            return float(self.total)
        both = int((self.flags & self.drawn).sum())
        return float(self.drawn.sum() * self.flags.sum() / both) if both >= FEWEST_DRAWN else None


def rows(database: Database, bundle: Bundle, network: str, total: int | None = None) -> Rows:
    """What the bundle's network has answered."""
    with database.reading() as connection:
        found = connection.execute(
            "SELECT received, label, p_value, score, reason, drawn, state FROM items"
            " WHERE network = ? AND bundle_id = ? AND told ORDER BY received, id",
            [network, bundle.bundle_id],
        ).fetchall()
    p_values = np.array([row["p_value"] for row in found], float)
    alpha = np.float32(bundle.manifest.networks[network].detector.alpha)
    return Rows(
        received=tuple(row["received"] for row in found),
        labels=tuple(row["label"] for row in found),
        p_values=p_values,
        scores=np.array([row["score"] for row in found], float),
        flags=np.array([row["reason"] == FLAGGED for row in found], bool),
        alarms=p_values.astype(np.float32) <= alpha,  # as the graph compares them
        drawn=np.array([row["drawn"] for row in found], bool),
        states=tuple(row["state"] for row in found),
        total=total,
    )


def histogram(found: Rows, bundle: Bundle, network: str) -> Histogram | None:
    """p-values of the sample beside those of clean images; None where there is none."""
    sample = _sample(found, bundle, network)
    return None if sample is None else comparison.histogram(sample, read_calibration(bundle, network))


def shares(found: Rows) -> Shares | None:
    """The flagged share of the sample by hour, or by day where there are many hours; None where there is none."""
    drawn = np.flatnonzero(found.drawn)
    if not len(drawn):
        return None
    for digits in (13, 10):
        named = [found.received[index][:digits] for index in drawn]
        times = sorted(set(named))
        if len(times) <= MOST_TIMES:
            break
    times = times[-MOST_TIMES:]
    index = {time: place for place, time in enumerate(times)}
    place = np.array([index.get(time, -1) for time in named])
    own = place >= 0
    flagged = np.bincount(place[own & found.alarms[drawn]], minlength=len(times))
    images = np.bincount(place[own], minlength=len(times))
    intervals = [wilson(int(count), int(total)) for count, total in zip(flagged, images, strict=True)]
    return Shares(times=tuple(times), shares=flagged / images, intervals=np.array(intervals))


def stream(found: Rows, bundle: Bundle, network: str) -> Stream | None:
    """Drift of the sample against the calibration, in the order in which it came; None where there is none."""
    sample = _sample(found, bundle, network, most=MOST_DRIFT)
    if sample is None:
        return None
    drift = comparison.measure(sample, read_calibration(bundle, network))
    path = drift.martingale.path
    places = np.unique(np.append(np.linspace(0, len(path) - 1, MOST_POINTS).astype(np.int64), path.argmax()))
    return Stream(drift=drift, places=places)


def discoveries(found: Rows, bundle: Bundle, network: str) -> Discoveries | None:
    """The list whose false discoveries are at most FDR of it on average; None where nobody knows how many came in.

    What is on it is flagged, unless alpha is tiny: so it can be told from the flagged images and how many others there
    were.
    """
    images = found.images
    if images is None:
        return None
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
        smallest=smallest_p_value(bundle.manifest.networks[network].detector.calibration_n),
    )


def _sample(found: Rows, bundle: Bundle, network: str, most: int = 0) -> ScoredSet | None:
    """The sample as a scored set, or the latest `most` of it where that is not 0, in the order in which it came."""
    drawn = np.flatnonzero(found.drawn)[-most:]
    if not len(drawn):
        return None
    named = [found.labels[index] for index in drawn]
    labels = [*bundle.manifest.labels, *sorted(set(named) - set(bundle.manifest.labels))]  # whatever a record says
    place_of = {label: labels.index(label) for label in set(named)}
    return ScoredSet(
        scores=found.scores[drawn].astype(np.float32),
        flags=found.alarms[drawn],
        classes=np.array([place_of[label] for label in named]),
        positions=drawn,
        paths=named,
        labels=labels,
        network=network,
        alpha=bundle.manifest.networks[network].detector.alpha,
        total=len(drawn),
    )
