"""Whether a set's scores look like the calibration's: Kolmogorov-Smirnov, flagged shares, a test martingale.

The hypothesis of every test is that the n calibration scores and the m scores of the set are exchangeable, as clean
images of one source are. All m conformal p-values lean on the same n scores, so they are uniform only on average over
calibrations: held against the exact uniform distribution, ten million rows would reject the error of those n scores.
So the two samples are compared, and both their sizes count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.false_alarms import chances, flagging_ranks, quantiles, wilson
from scoring.drift.scored import Calibration, ScoredSet
from serving.martingale import CAPITAL, simple_jumper

# With no drift: an alarm in at most 0.001 of the sets by Kolmogorov-Smirnov, in at most 1/100 by the martingale.
KS_LEVEL = 0.001
CAPITALS = (20.0, CAPITAL)
KS_MULTIPLIER = 1.9494746  # where Kolmogorov's distribution leaves KS_LEVEL above it
DRAWS = 20_000  # of clean sets, where their flagged share has no simple distribution
BINS, SEEN_DRAWS = 20, 2000  # of a histogram; draws for each of the many bands that are seen and not read

Numbers = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class KolmogorovSmirnov:
    """Largest distance of the two distribution functions, its p-value, and the distance that would be drift.

    `higher` says that there the set's scores lie above the calibration's: it looks more adversarial.
    """

    distance: float
    p_value: float
    critical: float
    higher: bool


@dataclass(frozen=True, kw_only=True)
class ClassDrift:
    """The rows with one predicted label; `interval` is Wilson's, of 95 %, for the flagged share.

    Where the bundle has calibration scores by class, `distance` is from the n of this class, and `p_value` is Holm's;
    both are None where n is 0. Else it is from all n, for description only, without a p-value: classes differ from one
    another, and from the whole, without drift.
    """

    label: str
    rows: int
    flagged: int
    interval: tuple[float, float]
    calibration_n: int
    distance: float | None
    p_value: float | None


@dataclass(frozen=True, kw_only=True)
class Martingale:
    """log10 of the capital after each row : (m,), which began with 1; `order` : (m,) are the rows as they were read."""

    path: Numbers
    order: Integers

    @property
    def highest(self) -> float:
        """log10 of the largest capital."""
        return max(0.0, float(self.path.max()))

    def crossed(self, capital: float) -> int | None:
        """Index into `path` where the capital first reached this one."""
        reached = self.path >= np.log10(capital)
        return int(reached.argmax()) if reached.any() else None


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What was found. `clean_share` are the bounds of the flagged share in 95 % of clean sets of this size.

    Where the bundle has calibration scores by class: of clean sets with as many rows of each predicted class.
    """

    rows: int
    flagged: int
    clean_share: tuple[float, float]
    ks: KolmogorovSmirnov
    martingale: Martingale
    classes: tuple[ClassDrift, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why this is drift, one reason a test that says so; nothing where it is none."""
        found = []
        if self.ks.p_value < KS_LEVEL:
            found.append("the scores are not distributed as the calibration's")
        if self.martingale.crossed(CAPITAL) is not None:
            found.append("the rows are not exchangeable with the calibration's")
        changed = [each.label for each in self.classes if each.p_value is not None and each.p_value < KS_LEVEL]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            found.append(f"predicted classes changed: {', '.join(changed[:3])}{more}")
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """p-values of `rows` rows in b equal bins, heights : (b,) as multiples of what clean data put there on average.

    Each is between bounds : (b, 2) in 95 % of clean sets.
    """

    heights: Numbers
    bounds: Numbers
    rows: int


def measure(found: ScoredSet, calibration: Calibration, *, seed: int = 0, shuffle: bool = False) -> Drift:
    """Compare a set with the calibration; `shuffle` reads its rows in a random order."""
    random = np.random.default_rng(seed)
    rows = len(found.scores)
    order = random.permutation(rows) if shuffle else np.arange(rows)
    p_values = online_p_values(calibration.scores, found.scores[order], random)
    return Drift(
        rows=rows,
        flagged=int(found.flags.sum()),
        clean_share=clean_share(flagging_groups(found.classes, calibration, found.alpha)),
        ks=kolmogorov_smirnov(found.scores, calibration.scores),
        martingale=Martingale(path=np.cumsum(np.log10(simple_jumper(p_values))), order=order),
        classes=_classes(found, calibration),
    )


def kolmogorov_smirnov(scores: Numbers, calibration: Numbers) -> KolmogorovSmirnov:
    """Two-sample test of scores : (m,) against calibration : (n,) ascending, on n m / (n + m) effective scores.

    Between two calibration scores their distribution function is flat, so the distance is largest at one of them or
    just below it: without ties it is a function of the p-values alone. The p-value is Kolmogorov's asymptotic one with
    the finite-sample correction of Stephens (1970), which scipy's ks_2samp leaves out; its distance is the same.
    """
    from scipy import special

    scores, m, n = np.sort(scores), len(scores), len(calibration)
    gaps = np.concatenate(
        [
            np.searchsorted(calibration, calibration, side) / n - np.searchsorted(scores, calibration, side) / m
            for side in ("left", "right")
        ]
    )
    widest = int(np.abs(gaps).argmax())
    distance = float(abs(gaps[widest]))
    root = np.sqrt(n * m / (n + m))
    factor = float(root + 0.12 + 0.11 / root)
    return KolmogorovSmirnov(
        distance=distance,
        p_value=float(special.kolmogorov(factor * distance)),
        critical=KS_MULTIPLIER / factor,
        higher=bool(gaps[widest] > 0),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) correction: with none of them in force, any corrected one is below a with probability at most a.
    scipy has it not.
    """
    order = np.argsort(p_values)
    raised = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(raised), 1)
    return [float(value) for value in corrected]


def groups(classes: Integers, calibration: Calibration) -> list[tuple[Integers, Numbers]]:
    """Which rows get their p-values among which scores, for rows with these predicted classes : (m,).

    Positions of rows, and ascending scores: one pair, or, where p-values are per class, one for each class that has
    rows. A class may have no scores.
    """
    if calibration.classes is None:
        return [(np.arange(len(classes)), calibration.scores)]
    return [(rows, calibration.scores[calibration.classes == label]) for label, rows in _by_class(classes)]


def _by_class(classes: Integers) -> list[tuple[int, Integers]]:
    """Each class of classes : (m,) and the positions of its rows."""
    order = np.argsort(classes, kind="stable")
    labels, starts = np.unique(classes[order], return_index=True)
    return list(zip(labels.tolist(), np.split(order, starts[1:]), strict=True))


def flagging_groups(classes: Integers, calibration: Calibration, alpha: float) -> tuple[tuple[int, int, int], ...]:
    """What `clean_share` takes, for the flagged share of rows with these predicted classes : (m,)."""
    sizes = [(len(rows), len(own)) for rows, own in groups(classes, calibration)]
    return tuple((m, n, flagging_ranks(n, alpha)) for m, n in sizes)


def clean_share(parts: Sequence[tuple[int, int, int]], draws: int = DRAWS) -> tuple[float, float]:
    """Bounds that hold in 95 % of clean sets for the share of rows whose p-value is one of some k of all possible.

    Each part is (m, n, k): m rows, whose p-values are among the same n scores, and k of the n + 1 possible ones. The
    chance of one row is Beta(k, n + 1 - k) over calibrations, so a part's count is beta-binomial: wide where n is
    small, however many the rows are. One part's bounds are exact. Several parts lean on scores of their own, so their
    counts are independent; the bounds are then quantiles of `draws` sums, the same at every call.
    """
    if len(parts) == 1:
        (rows, *_), bounds = parts[0], quantiles(chances(*parts[0]), (0.025, 0.975))
        return bounds[0] / rows, bounds[1] / rows
    random, total = np.random.default_rng(0), np.zeros(draws, np.int64)
    for m, n, k in parts:
        total += random.binomial(m, random.beta(k, n + 1 - k, draws)) if 0 < k <= n else m * (k > n)
    low, high = np.quantile(total, (0.025, 0.975), method="inverted_cdf") / sum(m for m, *_ in parts)
    return float(low), float(high)


def histogram(found: ScoredSet, calibration: Calibration) -> Histogram:
    """The set's p-values in bins. A bin is worth as many of the n + 1 possible p-values as lie in it.

    There are no more bins than p-values that the rows with the most calibration scores can have.
    """
    pairs = groups(found.classes, calibration)
    bins = min(BINS, max(len(own) for _, own in pairs) + 1)
    counts, expected, parts = np.zeros(bins, np.int64), np.zeros(bins), []
    for rows, own in pairs:
        m, n = len(rows), len(own)
        bin_of = (np.arange(1, n + 2) * bins - 1) // (n + 1)  # of p = 1 / (n + 1), ..., 1
        ranks = n - np.searchsorted(own, found.scores[rows], side="left")  # (n + 1) p - 1
        counts += np.bincount(bin_of[ranks], minlength=bins)
        sizes = np.bincount(bin_of, minlength=bins)
        expected += m * sizes / (n + 1)
        parts.append([(m, n, size) for size in sizes.tolist()])
    columns = list(zip(*parts, strict=True))
    shares = {column: clean_share(column, SEEN_DRAWS) for column in set(columns)}
    bounds = np.array([shares[column] for column in columns]) * len(found.scores) / expected[:, None]
    return Histogram(heights=counts / expected, bounds=bounds, rows=len(found.scores))


def online_p_values(calibration: Numbers, scores: Numbers, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Smoothed online conformal p-values of scores : (m,), each among calibration : (n,) and the scores before it.

    Under exchangeability they are independent and exactly uniform on [0, 1] (Vovk et al. 2005). Equal scores are put
    into a random order.
    """
    n, m = len(calibration), len(scores)
    both = np.concatenate([calibration, scores])
    ranks = np.empty(n + m, np.int64)
    ranks[np.lexsort((random.random(n + m), both))] = np.arange(n + m)
    return (earlier_greater(ranks)[n:] + random.random(m)) / np.arange(n + 1, n + m + 1)


def earlier_greater(ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each of ranks : (N,), a permutation of 0 .. N-1, how many before it are greater : (N,). N log N.

    A merge sort from below, all pairs of runs of a level at once: whatever is in the left run came earlier.
    """
    size = 1 << (len(ranks) - 1).bit_length()
    runs = np.concatenate([ranks, np.arange(len(ranks), size)])[:, None]
    counts = np.zeros(size, np.int64)  # by rank
    while len(runs) > 1:
        width = runs.shape[1]
        pairs = runs.reshape(-1, 2, width)
        shift = np.arange(len(pairs))[:, None]
        keys = pairs + size * shift[:, None]  # so that the left runs, one after the other, ascend
        below = np.searchsorted(keys[:, 0].ravel(), keys[:, 1].ravel()).reshape(-1, width) - width * shift
        counts[pairs[:, 1]] += width - below
        runs = np.sort(pairs.reshape(-1, 2 * width), axis=1, kind="stable")
    return counts[ranks]


def _classes(found: ScoredSet, calibration: Calibration) -> tuple[ClassDrift, ...]:
    tests = []
    for index, rows in _by_class(found.classes):
        own = calibration.scores if calibration.classes is None else calibration.scores[calibration.classes == index]
        tests.append((index, rows, len(own), kolmogorov_smirnov(found.scores[rows], own) if len(own) else None))
    tested = [] if calibration.classes is None else [test.p_value for *_, test in tests if test]
    corrected = iter(holm(tested))
    return tuple(
        ClassDrift(
            label=found.labels[index],
            rows=len(rows),
            flagged=int(found.flags[rows].sum()),
            interval=wilson(int(found.flags[rows].sum()), len(rows)),
            calibration_n=n,
            distance=test.distance if test else None,
            p_value=next(corrected) if test and tested else None,
        )
        for index, rows, n, test in tests
    )
