"""What many p-values mean together: which rows to flag so that at most a given share of them is false.

At alpha 0.05 half a million of ten million clean images are flagged. Benjamini and Hochberg (1995) flag those below a
bar that the rows themselves set, so that of the flagged ones a share q is false in expectation. It holds for conformal
p-values that lean on one calibration (Bates, Candes, Lei, Romano, Sesia 2023). Benjamini and Yekutieli (2001) hold
under any dependence, and need p-values smaller by the factor 1 + 1/2 + ... + 1/m.

p-values are counts over n + 1 and none is below 1 / (n + 1), so with few calibration images nothing can be flagged,
however suspicious, unless many rows have the smallest one.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from bundle.errors import MissingExtra, OptionError
from bundle.false_alarms import smallest_p_value

BH: Final = "bh"
BY: Final = "by"
Method = Literal["bh", "by"]
METHODS: dict[Method, str] = {BH: "Benjamini-Hochberg", BY: "Benjamini-Yekutieli"}


@dataclass(frozen=True, kw_only=True)
class Flagged:
    """m rows at rate `fdr`: adjusted : (m,) float64, flagged : (m,) bool, `bar` is the largest p-value flagged.

    `smallest` is the smallest p-value that there can be, `with_smallest` how many rows have it, `needed` how many would
    have to for any of them to be flagged, and `n_needed` the calibration images with which these few would do.
    """

    method: Method
    fdr: float
    adjusted: npt.NDArray[np.float64]
    flagged: npt.NDArray[np.bool_]
    bar: float | None
    smallest: float
    with_smallest: int
    needed: int
    n_needed: int | None

    @property
    def count(self) -> int:
        """How many rows are flagged."""
        return int(self.flagged.sum())

    @property
    def false_share(self) -> float | None:
        """Largest adjusted p-value of a flagged row: the share of false ones that is to be expected, at most."""
        return float(self.adjusted[self.flagged].max()) if self.count else None


def check_rate(fdr: float) -> None:
    """Raise OptionError for a false discovery rate that is none."""
    if not 0 < fdr < 1:
        raise OptionError(f"--fdr {fdr:g} is not between 0 and 1")


def control(p_values: npt.NDArray[np.floating], n: int, *, fdr: float, method: Method = BH) -> Flagged:
    """Flag rows with p_values : (m,) that lean on n calibration scores, at a false discovery rate."""
    check_rate(fdr)
    try:
        from scipy.stats import false_discovery_control
    except ImportError as problem:
        raise MissingExtra.named("scoring", "flags", problem) from None
    m, smallest = len(p_values), smallest_p_value(n)
    wide = np.clip(p_values.astype(np.float64), 0, 1)
    adjusted = false_discovery_control(wide, method=method)
    flagged = adjusted <= fdr * (1 + 1e-6)  # the graph's p-values are float32
    factor = 1.0 if method == BH else _harmonic(m)
    with_smallest = int((wide <= smallest * (1 + 1e-6)).sum())
    return Flagged(
        method=method,
        fdr=fdr,
        adjusted=adjusted,
        flagged=flagged,
        bar=float(wide[flagged].max()) if flagged.any() else None,
        smallest=smallest,
        with_smallest=with_smallest,
        needed=min(m + 1, math.ceil(m * smallest * factor / fdr - 1e-6)),
        n_needed=math.ceil(m * factor / (with_smallest * fdr)) - 1 if with_smallest and not flagged.any() else None,
    )


def _harmonic(m: int) -> float:
    """1 + 1/2 + ... + 1/m."""
    return math.log(m) + 0.5772156649015329 + 1 / (2 * m) if m > 1000 else sum(1 / k for k in range(1, m + 1))
