"""A gambler who bets against exchangeability, image by image: in `fieldmark drift`, and in the gateway while it serves.

While images come from the calibration's source, one by one, a conformal p-value that counts the images before it is
uniform and independent of them (Vovk et al. 2005). Who bets on such numbers wins nothing: the capital is a test
martingale.
"""

import math
from collections.abc import Generator

import numpy as np
import numpy.typing as npt

JUMP = 0.01
CAPITAL = 100.0  # ever reached with no drift: in at most one of a hundred
MOST_CELLS = 256


def jumper() -> Generator[float, float, None]:
    """The Simple Jumper (Vovk 2021): `send(p)` gives the factor by which a p-value multiplies its capital.

    Five players, e = -1, -1/2, 0, 1/2, 1, multiply what they have by 1 + e (p - 1/2): negative e bet on small p-values
    (higher scores, attacks), positive e on large ones. Before each row they share JUMP of their capital evenly.

    Playing on uniform p-values loses 0.4 % a row, and after a long quiet time no attack would win that back. So of the
    first capital only the part 1 / (t (t + 1)) starts to play at row t = 1, 2, ..., and 1 / (t + 1) still rests after
    it: the capital never falls below that. It stays a test martingale: with no drift it ever reaches c with probability
    at most 1/c (Ville 1939). Only shares are kept here, since the capital itself outgrows every float.
    """
    stay, even = 1 - JUMP, JUMP / 5
    a = b = c = d = e = 0.0  # plain floats, ten times as fast as NumPy's
    resting = total = 1.0
    t = 0
    while True:
        x = (yield total) - 0.5
        t += 1
        begins = resting / (t + 1)
        resting -= begins
        shared = even * (a + b + c + d + e) + begins / 5
        a, b, c = (stay * a + shared) * (1 - x), (stay * b + shared) * (1 - x / 2), stay * c + shared
        d, e = (stay * d + shared) * (1 + x / 2), (stay * e + shared) * (1 + x)
        total = a + b + c + d + e + resting
        a, b, c, d, e, resting = a / total, b / total, c / total, d / total, e / total, resting / total


def simple_jumper(p_values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The factor by which each of p_values : (m,) multiplies the capital of `jumper` : (m,)."""
    gambler = jumper()
    next(gambler)
    return np.fromiter(map(gambler.send, memoryview(np.ascontiguousarray(p_values).data)), np.float64, len(p_values))


class RankUrn:
    """Smoothed online conformal p-values from the graph's p-values, in a time that does not grow with their number.

    A p-value of rank r, r / (n + 1), says in which of the n + 1 gaps between calibration scores a score lies. With no
    drift the next one falls into gap j with probability (1 + those already there) / (n + 1 + all so far), whatever the
    scores' distribution: Polya's urn. So a number drawn evenly from that gap's share of [0, 1] is uniform, given all
    before it. Neighbouring gaps are counted together where there are many, which leaves it an urn. No two scores may be
    equal, as scores of whole images are not; a detector that gives everybody the same score looks like drift.
    """

    def __init__(self, n: int, random: np.random.Generator) -> None:
        self.n, self._random = n, random
        self._cells = min(n + 1, MOST_CELLS)
        self._counts = np.bincount(np.arange(n + 1) * self._cells // (n + 1))
        self._total = n + 1

    def p_value(self, rank: int) -> float:
        """The p-value of a score of this rank, from 1 (above every calibration score) to n + 1 (below them all)."""
        cell = (rank - 1) * self._cells // (self.n + 1)
        above, beside = int(self._counts[:cell].sum()), int(self._counts[cell])
        found = (above + self._random.random() * beside) / self._total
        self._counts[cell] += 1
        self._total += 1
        return found


class Capital:
    """log10 of the gambler's capital, which began with 1, and the highest that it has been."""

    def __init__(self) -> None:
        self.log10 = self.highest = 0.0
        self._gambler = jumper()
        next(self._gambler)

    def bet(self, p_value: float) -> None:
        """Play one round."""
        self.log10 += math.log10(self._gambler.send(p_value))
        self.highest = max(self.highest, self.log10)
