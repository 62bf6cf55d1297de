"""What alpha promises: that of clean images like the calibration's no more than a share of alpha is flagged.

The chance of one image is a matter of the calibration's luck: with n scores of which k flag it is Beta(k, n + 1 - k)
over calibrations, so the count of m images is beta-binomial: wide where n is small, however large m is.
"""

from bundle.false_alarms import chances, flagging_ranks, quantiles

WINDOW = 500  # images that are judged together
LEVEL = 1e-9  # of the windows of clean images, about how many break the promise: none, in the life of a service


class Promise:
    """Counts flags in windows of WINDOW images, and says when a window has more than it can be explained by chance.

    `most` is how many a window of clean images has at most. The window ends, and another begins, as soon as there are
    more: what is true of the whole window by then does not have to be waited for.
    """

    def __init__(self, n: int, alpha: float) -> None:
        ranks = flagging_ranks(n, alpha)
        (self.most,) = quantiles(chances(WINDOW, n, ranks), (1 - LEVEL,)) if ranks else (WINDOW,)
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
