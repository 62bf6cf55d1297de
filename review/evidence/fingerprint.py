"""Near copies: pictures that show the same thing, whatever was done to their pixels.

A fingerprint is 256 bits (is a pixel of a 17 x 16 grey picture darker than its right neighbour?) and the mean colours
of 8 x 8 fields. Measured on drawn birds and their attacked copies (at most 52 bits and 1.7 levels apart; different
birds at least 57 bits and 28 levels) and on photographs and small JPEG copies of them (24 bits, 1.2 levels; different
ones at least 81 bits).
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from bundle.image import ImageSpec

BITS, COLOURS = 16, 8
SIDE = 64  # pixels of the picture that both are taken from
MOST_BITS = 60  # that near copies differ in
MOST_COLOUR = 8.0  # levels of 255 by which their colours differ on average
HASH_BYTES = BITS * BITS // 8
BYTES = HASH_BYTES + 3 * COLOURS**2

_ONES = np.array([bin(value).count("1") for value in range(256)], np.uint8)


def fingerprint(data: bytes, spec: ImageSpec) -> bytes:
    """The fingerprint of an encoded image : BYTES bytes; raises ImageError. `spec` has the limits."""
    picture = Image.fromarray(replace(spec, height=SIDE, width=SIDE).decode(data))
    grey = np.asarray(picture.convert("L").resize((BITS + 1, BITS), Image.Resampling.BOX), np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    colours = np.asarray(picture.resize((COLOURS, COLOURS), Image.Resampling.BOX), np.uint8)
    return bits.tobytes() + colours.tobytes()


class Likeness:
    """The first of each group of near copies; a newcomer joins the most similar one, or begins a group of its own."""

    def __init__(self) -> None:
        self._items: list[int] = []
        self._prints = np.empty((0, BYTES), np.uint8)
        self._count = 0

    def join(self, item: int, print_: bytes, *, first: int | None = None) -> int:
        """The item that this one is a near copy of, itself where there is none; `first` is known already."""
        own = np.frombuffer(print_, np.uint8)
        if first is None:
            first = self._nearest(own)
        if first is None or first == item:
            self._keep(item, own)
            return item
        return first

    def _nearest(self, own: npt.NDArray[np.uint8]) -> int | None:
        known = self._prints[: self._count]
        if not len(known):
            return None
        bits = _ONES[known[:, :HASH_BYTES] ^ own[:HASH_BYTES]].sum(axis=1, dtype=np.int64)
        close = np.flatnonzero(bits <= MOST_BITS)
        if not len(close):
            return None
        apart = np.abs(known[close, HASH_BYTES:].astype(np.int16) - own[HASH_BYTES:]).mean(axis=1)
        alike = close[apart <= MOST_COLOUR]
        return None if not len(alike) else self._items[int(alike[bits[alike].argmin()])]

    def _keep(self, item: int, own: npt.NDArray[np.uint8]) -> None:
        if self._count == len(self._prints):
            grown = np.empty((max(1024, 2 * self._count), BYTES), np.uint8)
            grown[: self._count] = self._prints
            self._prints = grown
        self._prints[self._count] = own
        self._items.append(item)
        self._count += 1
