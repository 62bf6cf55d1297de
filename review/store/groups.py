"""What belongs together: campaigns, whole or divided by what they aim at, and near copies of one picture.

A campaign is all that was flagged of one caller within one hour. Divided, its images were answered with one label and
are conspicuous in one layer: the features that an attack moves are those that it has to move.
"""

import sqlite3
from dataclasses import dataclass, replace

from review.store.database import Database
from review.store.decisions import WAITING
from review.store.queue import ANY, Filter
from serving.quarantine.entry import FLAGGED

CAMPAIGNS, BY_LABEL, COPIES = "campaigns", "by-label", "copies"
KINDS = (CAMPAIGNS, BY_LABEL, COPIES)
SMALLEST = 2
_KEYS = {
    CAMPAIGNS: ("origin", "hour"),
    BY_LABEL: ("origin", "label", "hour", "layer"),
    COPIES: ("copies",),
}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Items that belong together: how they are found again, how many they are, how many wait, the smallest p-value, the
    numbers of the first few, most suspicious first.
    """

    kind: str
    wanted: Filter
    items: int
    waiting: int
    smallest: float
    shown: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What all items of a group have in common, and what not: how many there are, from when to when, the largest
    p-value, the mean alpha; how many have each label, origin, loudest layer and state, the most frequent first.

    `said` counts what each reviewer said, (reviewer, verdict); `notes` are (reviewer, note), the oldest first.
    """

    items: int
    first: str
    last: str
    largest: float
    alpha: float
    labels: dict[str, int]
    origins: dict[str, int]
    layers: dict[str, int]
    states: dict[str, int]
    bundles: tuple[str, ...]
    said: dict[tuple[str, str], int]
    notes: tuple[tuple[str, str], ...]


def groups(database: Database, kind: str, *, state: str = WAITING, most: int = 100, shown: int = 8) -> list[Group]:
    """The groups of two and more flagged items of which some are in this state, the largest first."""
    keys = _KEYS[kind]
    named = ", ".join(keys)
    known = "copies IS NOT NULL" if kind == COPIES else "layer <> ''" if kind == BY_LABEL else "1"
    flagged = "1" if kind == COPIES else f"reason = '{FLAGGED}'"
    with database.reading() as connection:
        rows = connection.execute(
            f"SELECT {named}, count(*) AS items, sum(state = ?) AS waiting, min(p_value) AS smallest FROM items"
            f" WHERE {known} AND {flagged} GROUP BY {named} HAVING items >= ? AND waiting > 0"
            " ORDER BY waiting DESC, smallest, min(id) LIMIT ?",
            [state, SMALLEST, most],
        ).fetchall()
        return [_group(connection, kind, {key: row[key] for key in keys}, row, shown) for row in rows]


def filter_of(kind: str, values: dict[str, object], *, state: str) -> Filter:
    """How a group's items are found in the queue."""
    reason = "" if kind == COPIES else FLAGGED
    return Filter(state=state, reason=reason, **values)  # type: ignore[arg-type]


def members(database: Database, wanted: Filter, *, known: int, seen: int, waiting: int) -> list[int] | None:
    """The numbers of the items that a page has shown as waiting in a group, and that wait still.

    The page said that `waiting` of them wait; it knew of items up to number `known` and of decisions up to `seen`. What
    came in later is left out. None where others have joined the group since: they cannot be told from those shown.
    """
    condition, values = replace(wanted, state=ANY).where()
    with database.reading() as connection:
        rows = connection.execute(
            f"SELECT id, state FROM items WHERE {condition} AND id <= ? AND (state = ? OR EXISTS"
            " (SELECT 1 FROM decisions WHERE item = items.id AND decisions.id > ?)) ORDER BY p_value, calm, id",
            [*values, known, WAITING, seen],
        ).fetchall()
    # Each of those shown waits still or was decided since, so they are among these rows, and are all if no more.
    return None if len(rows) > waiting else [row["id"] for row in rows if row["state"] == WAITING]


def totals(database: Database, wanted: Filter) -> Totals | None:
    """Of all items that are wanted, however many; None where there are none."""
    condition, values = wanted.where()
    decided = (
        "FROM standing JOIN decisions ON decisions.id = standing.decision JOIN items ON items.id = standing.item"
        f" WHERE {condition}"
    )
    with database.reading() as connection:

        def counted(column: str) -> dict[str, int]:
            rows = connection.execute(
                f"SELECT {column}, count(*) FROM items WHERE {condition} GROUP BY 1 ORDER BY 2 DESC, 1", values
            )
            return dict(map(tuple, rows))

        found = connection.execute(
            "SELECT count(*) AS items, min(received) AS first, max(received) AS last, max(p_value) AS largest,"
            f" avg(alpha) AS alpha FROM items WHERE {condition}",
            values,
        ).fetchone()
        if not found["items"]:
            return None
        said = connection.execute(f"SELECT decisions.reviewer, verdict, count(*) {decided} GROUP BY 1, 2", values)
        notes = connection.execute(
            f"SELECT decisions.reviewer, note {decided} AND note <> '' GROUP BY 1, 2 ORDER BY min(decisions.id)", values
        )
        return Totals(
            **dict(found),
            labels=counted("label"),
            origins=counted("origin"),
            layers={layer: count for layer, count in counted("layer").items() if layer not in ("", "?")},
            states=counted("state"),
            bundles=tuple(sorted(counted("bundle_id"))),
            said={(reviewer, verdict): count for reviewer, verdict, count in map(tuple, said)},
            notes=tuple(map(tuple, notes)),
        )


def _group(connection: sqlite3.Connection, kind: str, values: dict[str, object], row: sqlite3.Row, shown: int) -> Group:
    wanted = filter_of(kind, values, state="any")
    condition, bound = wanted.where()
    first = connection.execute(
        f"SELECT id FROM items WHERE {condition} ORDER BY p_value, calm, id LIMIT ?", [*bound, shown]
    )
    return Group(
        kind=kind,
        wanted=wanted,
        items=row["items"],
        waiting=row["waiting"],
        smallest=row["smallest"],
        shown=tuple(found["id"] for found in first),
    )
