"""Which items are looked at, and in which order: most suspicious first, in windows of a hundred."""

import json
import math
import os
import sqlite3
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, fields, replace
from urllib.parse import urlencode

from bundle.errors import OptionError
from bundle.records import to_plain
from review.store.database import STATE, Database
from review.store.decisions import OPEN, OUTDATED, STATES, WAITING
from review.store.item import REASONS, Item
from serving.quarantine.entry import FLAGGED, SAMPLE

ROWS = 100  # of a window
MOST_NUMBER = 2**63 - 1  # that SQLite counts to
ANY, DECIDED = "any", "decided"
ORDER = "p_value, calm, id"
_COLUMNS = tuple(field.name for field in fields(Item))
_RETOLD = ("alpha", "reason", "drawn", "size", "mtime_ns")  # what a source may tell otherwise the next time
# Choices of a filter: the query's name and the column that it compares.
CHOICES = {"day": "day", "label": "label", "layer": "layer", "origin": "origin", "reason": "reason"}


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What of the items is wanted; empty means all. `most` is the largest p-value; `copies` the id of the first of a
    group of near copies, `hour` a time down to the hour; `second` leaves out what this reviewer has decided himself.
    """

    state: str = WAITING
    day: str = ""
    hour: str = ""
    label: str = ""
    layer: str = ""
    origin: str | None = None
    reason: str = ""
    most: float | None = None
    copies: int | None = None
    second: str = ""

    def __post_init__(self) -> None:
        if self.state not in (ANY, DECIDED, *STATES):
            raise OptionError(f"there is no decision {self.state[:40]!r} to filter by")
        if self.reason not in ("", *REASONS):
            raise OptionError(f"there is no reason {self.reason[:40]!r} to filter by")
        if self.most is not None and not 0 <= self.most <= 1:
            raise OptionError("a p-value lies between 0 and 1")

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Filter":
        """From a page's query, in which other names may stand, too; raises OptionError."""
        found: dict[str, object] = {}
        for field in fields(cls):
            text = query.get(field.name, "")
            if field.name == "origin":  # empty is the callers without a name
                found["origin"] = text if field.name in query and text != ANY else None
            elif text and field.name == "most":
                found["most"] = _number(text)
            elif text and field.name == "copies":
                found["copies"] = int(_number(text))
            elif text:
                found[field.name] = text
        return cls(**found)  # type: ignore[arg-type]

    def given(self) -> list[tuple[str, str]]:
        """The same as names and values of a form."""
        plain = [(name, value) for name, value in to_plain(self).items() if value is not None]
        return [(name, str(value)) for name, value in plain if value != "" or name == "origin"]

    def query(self, **changes: object) -> str:
        """The same for an address, with some of it changed."""
        changed = replace(self, **changes) if changes else self  # type: ignore[arg-type]
        return urlencode(changed.given())

    def where(self) -> tuple[str, list[object]]:
        """The condition in SQL, and its values."""
        terms: list[tuple[str, object]] = [
            (f"items.{column} = ?", value) for name, column in CHOICES.items() if (value := getattr(self, name))
        ]
        if self.origin == "":
            terms.append(("items.origin = ?", ""))
        if self.hour:
            terms.append(("items.hour = ?", self.hour))
        if self.most is not None:
            terms.append(("items.p_value <= ?", self.most))
        if self.copies is not None:
            terms.append(("items.copies = ?", self.copies))
        if self.second:
            terms.append(
                ("items.id NOT IN (SELECT item FROM standing WHERE reviewer = ?)", self.second),
            )
        if self.state == DECIDED:
            terms += [("items.state <> ?", state) for state in OPEN]
        elif self.state != ANY:
            terms.append(("items.state = ?", self.state))
        return " AND ".join(term for term, _ in terms) or "1", [value for _, value in terms]


@dataclass(frozen=True, kw_only=True)
class Window:
    """A hundred rows of a queue or fewer: from one place in the order up to, and without, another."""

    first: tuple[float, float, int]
    rows: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many items stand where, by state; and how many that the source tells of were flagged, and kept at random."""

    by_state: dict[str, int]
    flagged: int
    sampled: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_state.values())

    @property
    def decided(self) -> int:
        """Those that somebody has decided."""
        return self.total - sum(self.by_state.get(state, 0) for state in OPEN)


def add(database: Database, items: Iterable[Item]) -> int:
    """Put items into the database; of those that it knows, why they are here is told anew, and their answers stay.

    Returns how many were new, or told otherwise.
    """
    names = ", ".join(_COLUMNS)
    marks = ", ".join("?" for _ in _COLUMNS)
    old, new = ", ".join(_RETOLD), ", ".join(f"excluded.{name}" for name in _RETOLD)
    with database.writing() as connection:
        before = connection.total_changes
        connection.executemany(
            f"INSERT INTO items ({names}) VALUES ({marks}) ON CONFLICT (key) DO UPDATE SET ({old}, told) = ({new}, 1)"
            f" WHERE ({old}, told) IS NOT ({new}, 1)",
            map(_row, items),
        )
        return connection.total_changes - before


def retire(database: Database, keys: Set[str]) -> None:
    """Note that these are the keys of all that the source has now.

    Other items leave its random sample, and those that nobody has decided are outdated. They stay for what was said of
    them, and for the samples that were drawn with them; where the source tells of them again, they wait again.
    """
    with database.writing() as connection:
        rows = connection.execute("SELECT id, key FROM items WHERE told").fetchall()
        gone = [(row["id"],) for row in rows if row["key"] not in keys]
        connection.executemany("UPDATE items SET told = 0, drawn = 0 WHERE id = ?", gone)
        connection.execute(
            f"UPDATE items SET state = {STATE} WHERE (state = ? AND NOT told) OR (state = ? AND told)",
            [WAITING, OUTDATED],
        )


def windows(database: Database, wanted: Filter) -> list[Window]:
    """Where each hundred of the wanted items begins."""
    condition, values = wanted.where()
    ranked = f"SELECT {ORDER}, row_number() OVER (ORDER BY {ORDER}) AS place FROM items WHERE {condition}"
    with database.reading() as connection:
        starts = connection.execute(f"SELECT {ORDER} FROM ({ranked}) WHERE place % {ROWS} = 1", values).fetchall()
        total = count(connection, wanted)
    return [Window(first=tuple(start), rows=min(ROWS, total - index * ROWS)) for index, start in enumerate(starts)]


def window(database: Database, wanted: Filter, first: tuple[float, float, int], rows: int = ROWS) -> list[sqlite3.Row]:
    """The wanted items from `first` on, in order."""
    condition, values = wanted.where()
    with database.reading() as connection:
        return connection.execute(
            f"SELECT * FROM items WHERE {condition} AND ({ORDER}) >= (?, ?, ?) ORDER BY {ORDER} LIMIT ?",
            [*values, *first, rows],
        ).fetchall()


def after(database: Database, wanted: Filter, item: sqlite3.Row, *, before: bool = False) -> int | None:
    """The id of the wanted item that comes after this one in the order, or before it; None at the end."""
    condition, values = wanted.where()
    compare, order = ("<", "p_value DESC, calm DESC, id DESC") if before else (">", ORDER)
    with database.reading() as connection:
        found = connection.execute(
            f"SELECT id FROM items WHERE {condition} AND ({ORDER}) {compare} (?, ?, ?) ORDER BY {order} LIMIT 1",
            [*values, item["p_value"], item["calm"], item["id"]],
        ).fetchone()
    return None if found is None else int(found["id"])


def get(database: Database, number: int) -> sqlite3.Row | None:
    """One item by its number here."""
    if abs(number) > MOST_NUMBER:
        return None
    with database.reading() as connection:
        found: sqlite3.Row | None = connection.execute("SELECT * FROM items WHERE id = ?", [number]).fetchone()
    return found


def latest(connection: sqlite3.Connection) -> int:
    """The number of the newest item, 0 where there is none: what a page knows of."""
    return int(connection.execute("SELECT coalesce(max(id), 0) FROM items").fetchone()[0])


def count(connection: sqlite3.Connection, wanted: Filter) -> int:
    """How many items are wanted."""
    condition, values = wanted.where()
    return int(connection.execute(f"SELECT count(*) FROM items WHERE {condition}", values).fetchone()[0])


def counts(database: Database) -> Counts:
    """How many items stand where."""
    with database.reading() as connection:
        by_state = dict(connection.execute("SELECT state, count(*) FROM items GROUP BY state").fetchall())
        by_reason = dict(connection.execute("SELECT reason, count(*) FROM items WHERE told GROUP BY reason").fetchall())
    return Counts(by_state=by_state, flagged=by_reason.get(FLAGGED, 0), sampled=by_reason.get(SAMPLE, 0))


def choices(database: Database, most: int = 200) -> dict[str, list[tuple[str, int]]]:
    """What can be chosen for each filter, with how many items that leaves; the most frequent where there are many."""
    found: dict[str, list[tuple[str, int]]] = {}
    with database.reading() as connection:
        for name, column in CHOICES.items():
            order = "1 DESC" if name == "day" else "2 DESC, 1"
            rows = connection.execute(
                f"SELECT {column}, count(*) FROM items GROUP BY 1 ORDER BY {order} LIMIT ?", [most]
            )
            found[name] = [(row[0], row[1]) for row in rows]
    return found


def _row(item: Item) -> list[object]:
    plain = to_plain(item)
    plain["layers"] = json.dumps(item.layers)
    # The graph flags what is no number, since no calibration score reaches it: it is the most suspicious.
    plain["score"] = math.inf if math.isnan(item.score) else item.score
    plain["image"] = os.fsencode(item.image)  # a name need not be Unicode, and SQLite's text is
    return [_text(plain[name]) for name in _COLUMNS]


def _text(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return value


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or abs(number) > 2**53:
        raise OptionError(f"{text[:40]!r} is no number to filter by")
    return number
