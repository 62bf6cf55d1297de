"""What alpha promises: that of clean images like the calibration's no more than a share of alpha is flagged.

The chance of one image is a matter of the calibration's luck: with n scores of which k flag it is Beta(k, n + 1 - k)
over calibrations, so the count of m images is beta-binomial: wide where n is small, however large m is.
"""

from collections.abc import Sequence

import numpy as np

WINDOW = 500  # images that are judged together
LEVEL = 1e-9  # of the windows of clean images, about how many break the promise: none, in the life of a service


def flagging_ranks(n: int, alpha: float) -> int:
    """How many of the possible p-values 1/(n+1), 2/(n+1), ..., 1 are at most alpha, in the graph's float32."""
    return int(((np.arange(1, n + 2) / (n + 1)).astype(np.float32) <= np.float32(alpha)).sum())


def beta_binomial(rows: int, n: int, k: int, levels: Sequence[float]) -> tuple[int, ...]:
    """Quantiles at these `levels` of how many of `rows` clean images have one of k of the n + 1 possible p-values.

    Those of scipy.stats.betabinom, which serving does not load.
    """
    if not 0 < k <= n:
        return (rows * (k > n),) * len(levels)
    x = np.arange(rows)
    ratios = np.log(rows - x) - np.log(x + 1) + np.log(x + k) - np.log(rows - x + n - k)  # P(X = x + 1) / P(X = x)
    logs = np.concatenate([[0.0], np.cumsum(ratios)])
    below = np.cumsum(np.exp(logs - logs.max()))
    return tuple(int(found) for found in np.searchsorted(below / below[-1], levels))


class Promise:
    """Counts flags in windows of WINDOW images, and says when a window has more than it can be explained by chance.

    `most` is how many a window of clean images has at most. The window ends, and another begins, as soon as there are
    more: what is true of the whole window by then does not have to be waited for.
    """

    def __init__(self, n: int, alpha: float) -> None:
        ranks = flagging_ranks(n, alpha)
        (self.most,) = beta_binomial(WINDOW, n, ranks, (1 - LEVEL,)) if ranks else (WINDOW,)
        self._images = self._flagged = 0

    def broken(self, flagged: bool) -> tuple[int, int] | None:
        """(flagged, images) of the window that has broken the promise with this image, if it has."""
        self._images += 1
        self._flagged += flagged
        found = (self._flagged, self._images)
        if self._flagged <= self.most and self._images < WINDOW:
            return None
        self._images = self._flagged = 0
        return found if found[0] > self.most else None
