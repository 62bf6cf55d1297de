"""Who decided what: one stroke decides one image or a whole group, and can be undone by whoever made it.

Decisions are added and never changed. What counts of them (the standing one of each reviewer, and each item's state) is
worked out in the same transaction, so that it can never disagree with them. The tables are in `database.py`.
"""

import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from bundle.errors import OptionError
from review.store.database import STATE, Database

ATTACK, CLEAN, FAULT, UNSURE = "attack", "clean", "fault", "unsure"
VERDICTS = (ATTACK, CLEAN, FAULT, UNSURE)
UNDONE = "undone"
WAITING, DISPUTED = "waiting", "disputed"
OUTDATED = "outdated"  # nobody has decided it, and the source tells of it no more
OPEN = (WAITING, OUTDATED)
STATES = (WAITING, *VERDICTS, DISPUTED, OUTDATED)
LONGEST_NOTE = 2000

# The latest of a reviewer's decisions of an item that he has not undone.
_STANDING = """
SELECT max(id) FROM decisions WHERE item = ? AND reviewer = ? AND verdict <> 'undone'
    AND id NOT IN (SELECT undoes FROM decisions WHERE item = ? AND reviewer = ? AND undoes IS NOT NULL)
"""
_STATE = f"UPDATE items SET state = {STATE} WHERE id = ?"


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """What one stroke has done: how many items it decided, or undid; `missed` holds what others had decided meanwhile
    and was left as it is. `stroke` is empty where nothing was done.
    """

    stroke: str
    verdict: str
    items: tuple[int, ...]
    missed: tuple[sqlite3.Row, ...] = ()


def decide(
    database: Database, items: Sequence[int], verdict: str, reviewer: str, *, note: str = "", seen: int | None = None
) -> Stroke:
    """Decide items, all or none of them on the disk; raises OptionError, DiskFull or ReviewError.

    `seen` is the newest decision that the reviewer's page knew of: what others have decided since is left as it is and
    returned as missed. None decides whatever others said: a second opinion.
    """
    if verdict not in VERDICTS:
        raise OptionError(f"there is no decision {verdict[:40]!r}", hint=f"Choose from: {', '.join(VERDICTS)}.")
    if len(note) > LONGEST_NOTE:
        raise OptionError(f"the note has more than {LONGEST_NOTE:,} characters", hint="Nothing was recorded.")
    stroke, at = secrets.token_hex(8), now()
    with database.writing() as connection:
        missed = [] if seen is None else _newer(connection, items, reviewer, seen)
        held = {row["item"] for row in missed}
        chosen = tuple(item for item in items if item not in held)
        for item in chosen:
            done = connection.execute(
                "INSERT INTO decisions (stroke, item, reviewer, verdict, note, at) VALUES (?, ?, ?, ?, ?, ?)",
                [stroke, item, reviewer, verdict, note, at],
            )
            connection.execute("INSERT OR REPLACE INTO standing VALUES (?, ?, ?)", [item, reviewer, done.lastrowid])
            connection.execute(_STATE, [item])
    return Stroke(stroke=stroke if chosen else "", verdict=verdict, items=chosen, missed=tuple(missed))


def undo(database: Database, reviewer: str, stroke: str = "") -> Stroke:
    """Take back a stroke of this reviewer's, by default his latest; what he had said before stands again.

    Raises OptionError where there is none.
    """
    with database.writing() as connection:
        found = connection.execute(
            "SELECT stroke FROM decisions WHERE reviewer = ? AND verdict <> ? AND (? = '' OR stroke = ?)"
            " AND id NOT IN (SELECT undoes FROM decisions WHERE undoes IS NOT NULL) ORDER BY id DESC LIMIT 1",
            [reviewer, UNDONE, stroke, stroke],
        ).fetchone()
        if found is None:
            raise OptionError("there is nothing of yours to undo")
        rows = connection.execute(
            "SELECT id, item, verdict FROM decisions WHERE stroke = ? AND reviewer = ? ORDER BY id",
            [found["stroke"], reviewer],
        ).fetchall()
        again, at = secrets.token_hex(8), now()
        for row in rows:
            connection.execute(
                "INSERT INTO decisions (stroke, item, reviewer, verdict, note, at, undoes)"
                " VALUES (?, ?, ?, ?, '', ?, ?)",
                [again, row["item"], reviewer, UNDONE, at, row["id"]],
            )
            _stand_again(connection, row["item"], reviewer)
    return Stroke(stroke=found["stroke"], verdict=rows[0]["verdict"], items=tuple(row["item"] for row in rows))


def newest(connection: sqlite3.Connection) -> int:
    """The number of the newest decision, 0 where there is none: what a page knows of."""
    return int(connection.execute("SELECT coalesce(max(id), 0) FROM decisions").fetchone()[0])


def standing(database: Database, item: int) -> list[sqlite3.Row]:
    """The decisions of an item that count: reviewer, verdict, note, at; the latest first."""
    with database.reading() as connection:
        return connection.execute(
            "SELECT decisions.* FROM standing JOIN decisions ON decisions.id = standing.decision"
            " WHERE standing.item = ? ORDER BY decisions.id DESC",
            [item],
        ).fetchall()


def history(database: Database, item: int) -> list[sqlite3.Row]:
    """All that was ever said of an item, undone or not, the first first; `undone` says which were taken back."""
    with database.reading() as connection:
        return connection.execute(
            "SELECT decisions.*, id IN (SELECT undoes FROM decisions WHERE item = ?) AS undone FROM decisions"
            " WHERE item = ? AND verdict <> 'undone' ORDER BY id",
            [item, item],
        ).fetchall()


def strokes(database: Database, most: int = 100) -> list[sqlite3.Row]:
    """The latest strokes: stroke, reviewer, verdict, note, at, how many items, the first of them, undone or not."""
    with database.reading() as connection:
        return connection.execute(
            "SELECT stroke, reviewer, verdict, max(note) AS note, max(at) AS at, count(*) AS items, min(item) AS first,"
            " max(id IN (SELECT undoes FROM decisions WHERE undoes IS NOT NULL)) AS undone"
            " FROM decisions WHERE verdict <> 'undone' GROUP BY stroke, reviewer ORDER BY max(id) DESC LIMIT ?",
            [most],
        ).fetchall()


def now() -> str:
    """The time in UTC as it is kept: ISO 8601, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _newer(connection: sqlite3.Connection, items: Sequence[int], reviewer: str, seen: int) -> list[sqlite3.Row]:
    """What others have decided of these items since `seen`, and stands."""
    rows = connection.execute(
        "SELECT decisions.* FROM standing JOIN decisions ON decisions.id = standing.decision"
        " WHERE decisions.id > ? AND standing.reviewer <> ?",
        [seen, reviewer],
    ).fetchall()
    wanted = set(items)
    return [row for row in rows if row["item"] in wanted]


def _stand_again(connection: sqlite3.Connection, item: int, reviewer: str) -> None:
    before = connection.execute(_STANDING, [item, reviewer, item, reviewer]).fetchone()[0]
    if before is None:
        connection.execute("DELETE FROM standing WHERE item = ? AND reviewer = ?", [item, reviewer])
    else:
        connection.execute("INSERT OR REPLACE INTO standing VALUES (?, ?, ?)", [item, reviewer, before])
    connection.execute(_STATE, [item])
