"""Which layer speaks, and how rare that is: an image's distances beside those of images that look clean.

The best to compare with are the calibration images themselves; bundles of before hold their scores alone. Then the
unflagged images of the same source stand in for them, which were kept at random.
"""

import functools
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle import Bundle, detector_file
from serving.quarantine.entry import SAMPLE

FEWEST = 20
FLOOR = 1e-6  # squared distances below it count as equal
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Voice:
    """What one column of the detector says of an image: its squared distance; how many of the n images compared with
    are at least as far, so that `rarity` = (1 + that) / (n + 1); how many of their usual deviations it is above their
    median, in logarithms.
    """

    column: str
    distance: float
    at_least: int
    rarity: float
    deviations: float


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What is compared with: distances : (n, columns), each column ascending; `of` says in words whose they are."""

    columns: tuple[str, ...]
    distances: Float64
    of: str

    def voices(self, layers: Sequence[float]) -> list[Voice]:
        """Every column, in the detector's order; empty where the image was judged by another detector."""
        if len(layers) != len(self.columns):
            return []
        n = len(self.distances)
        middle, spread = self._usual
        own = np.log(np.asarray(layers, np.float64) + FLOOR)
        deviations = np.nan_to_num((own - middle) / spread, nan=np.inf, posinf=1e9, neginf=-1e9)
        found = []
        for index, column in enumerate(self.columns):
            at_least = n - int(np.searchsorted(self.distances[:, index], layers[index], side="left"))
            rarity = (1 + at_least) / (n + 1)
            found.append(
                Voice(
                    column=column,
                    distance=float(layers[index]),
                    at_least=at_least,
                    rarity=rarity,
                    deviations=float(deviations[index]),
                )
            )
        return found

    def loudest(self, layers: Sequence[float]) -> str:
        """The layer whose column is furthest above what is usual, without the distance's name; "" where unknown."""
        voices = self.voices(layers)
        return max(voices, key=lambda each: each.deviations).column.partition("/")[0] if voices else ""

    def standard(self, layers: npt.NDArray[np.floating]) -> Float64:
        """Distances of m images : (m, columns), as deviations from what is usual : (m, columns)."""
        middle, spread = self._usual
        standard: Float64 = (np.log(layers + FLOOR) - middle) / spread
        return standard

    @functools.cached_property
    def _usual(self) -> tuple[Float64, Float64]:
        """Median and spread of the logarithms, each (columns,); the spread as a normal distribution's deviation."""
        logs = np.log(self.distances + FLOOR)
        middle = np.median(logs, axis=0)
        spread = 1.4826 * np.median(np.abs(logs - middle), axis=0)
        return middle, np.maximum(spread, 1e-3)


def calibrated(bundle: Bundle, network: str) -> Reference | None:
    """The calibration images of a network, where the bundle holds their distances; raises BundleCorrupt."""
    info = bundle.manifest.networks[network].detector
    with detector_file.opened(bundle.file(info.file)) as file:
        layers = file.calibration_layers(len(info.columns))
    if layers is None:
        return None
    return reference(info.columns, layers, "calibration images")


def unflagged(connection: sqlite3.Connection, bundle: Bundle, network: str) -> Reference | None:
    """The unflagged images of the source that this bundle's network answered; None where they are too few."""
    rows = connection.execute(
        "SELECT layers FROM items WHERE reason = ? AND bundle_id = ? AND network = ? LIMIT 5000",
        [SAMPLE, bundle.bundle_id, network],
    )
    columns = bundle.manifest.networks[network].detector.columns
    found = [layers for row in rows if len(layers := json.loads(row["layers"])) == len(columns)]
    if len(found) < FEWEST:
        return None
    return reference(columns, np.asarray(found), "unflagged images of this source")


def reference(columns: tuple[str, ...], layers: npt.NDArray[np.floating], of: str) -> Reference:
    """From distances : (n, columns) in any order."""
    return Reference(columns=columns, distances=np.sort(layers.astype(np.float64), axis=0), of=of)
