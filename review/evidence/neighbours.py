"""Which decided images resemble this one: in the detector's distances, not in what they show."""

import json
import sqlite3
from dataclasses import dataclass

import numpy as np

from review.evidence.layers import Reference
from review.store.decisions import ATTACK, CLEAN, FAULT

MOST_COMPARED = 20_000


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A decided item, and how many usual deviations it is away, as the root of the mean square over the columns."""

    item: sqlite3.Row
    apart: float


def neighbours(
    connection: sqlite3.Connection, item: sqlite3.Row, reference: Reference, most: int = 6
) -> list[Neighbour]:
    """The nearest items on whose decision everybody agrees, nearest first."""
    own = json.loads(item["layers"])
    if len(own) != len(reference.columns):
        return []
    rows = connection.execute(
        "SELECT * FROM items WHERE state IN (?, ?, ?) AND id <> ? AND bundle_id = ? AND network = ?"
        " ORDER BY id DESC LIMIT ?",
        [ATTACK, CLEAN, FAULT, item["id"], item["bundle_id"], item["network"], MOST_COMPARED],
    ).fetchall()
    pairs = [(row, layers) for row in rows if len(layers := json.loads(row["layers"])) == len(own)]
    if not pairs:
        return []
    standard = reference.standard(np.asarray([own, *(layers for _, layers in pairs)]))
    apart = np.sqrt(np.square(standard[1:] - standard[0]).mean(axis=1))
    nearest = np.argsort(np.nan_to_num(apart, nan=np.inf), kind="stable")[:most]
    return [Neighbour(item=pairs[index][0], apart=float(apart[index])) for index in nearest.tolist()]
