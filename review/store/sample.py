"""A random sample of everything that came in, to be decided whole: what a calibration can be made of.

A p-value holds for images that are exchangeable with those behind it. Images that were looked at because their p-value
was small are not; nor are the unflagged alone, among which the large scores are missing. So a source draws some of all
images, flagged or not, and a sample is drawn of these, by their names. All of it must be decided, for whoever leaves
out the hard ones chooses by score again; those that are clean are the calibration.
"""

import sqlite3
from dataclasses import dataclass

from bundle.errors import ReviewError
from review.store.database import Database
from review.store.decisions import ATTACK, CLEAN, DISPUTED, FAULT, OPEN, UNSURE, now
from review.store.item import chance

DEFAULT, LARGEST = 200, 5000
CALIBRATION = "calibration"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A drawn sample: the share `rate` of the items that the source drew; how many have which state."""

    number: int
    rate: float
    reviewer: str
    at: str
    by_state: dict[str, int]

    @property
    def size(self) -> int:
        """How many items it has."""
        return sum(self.by_state.values())

    @property
    def open(self) -> int:
        """How many of them nobody has decided for sure."""
        return sum(self.by_state.get(state, 0) for state in (*OPEN, UNSURE, DISPUTED))


@dataclass(frozen=True, kw_only=True)
class CleanImages:
    """What a calibration is made of: the clean items of a sample that was decided whole, equal ones once.

    `left_out` says in words what was not taken.
    """

    sample: Sample
    items: tuple[sqlite3.Row, ...]
    left_out: str


def drawable(database: Database) -> int:
    """How many items are of the source's own random sample."""
    with database.reading() as connection:
        return int(connection.execute("SELECT count(*) FROM items WHERE drawn").fetchone()[0])


def draw(database: Database, wanted: int, reviewer: str) -> Sample:
    """Draw `wanted` of the items that the source has drawn so far, or all of them; raises ReviewError."""
    if not 1 <= wanted <= LARGEST:
        raise ReviewError(f"a sample of {wanted:,} cannot be drawn", hint=f"Between 1 and {LARGEST:,} can.")
    with database.writing() as connection:
        rows = connection.execute("SELECT id, key FROM items WHERE drawn").fetchall()
        if not rows:
            raise ReviewError(
                "no random sample can be drawn: the source keeps what was flagged and nothing else",
                hint="Let the gateway keep some of all images: --quarantine-sample 0.01.",
            )
        number = connection.execute(
            "INSERT INTO samples (rate, reviewer, at) VALUES (?, ?, ?)",
            [min(1.0, wanted / len(rows)), reviewer, now()],
        ).lastrowid
        # A number drawn for each name: those with the smallest are taken, in that order, which says nothing else.
        lots = sorted((chance(row["key"], f"sample {number}"), row["id"]) for row in rows)
        connection.executemany(
            "INSERT INTO sampled VALUES (?, ?, ?)",
            [(number, place, item) for place, (_, item) in enumerate(lots[:wanted])],
        )
    return next(sample for sample in samples(database) if sample.number == number)  # others draw, too


def samples(database: Database) -> list[Sample]:
    """All that were drawn, the latest first."""
    with database.reading() as connection:
        found = connection.execute("SELECT * FROM samples ORDER BY id DESC").fetchall()
        states = connection.execute(
            "SELECT sample, state, count(*) FROM sampled JOIN items ON items.id = sampled.item GROUP BY 1, 2"
        ).fetchall()
    return [
        Sample(
            number=row["id"],
            rate=row["rate"],
            reviewer=row["reviewer"],
            at=row["at"],
            by_state={state: count for sample, state, count in map(tuple, states) if sample == row["id"]},
        )
        for row in found
    ]


def next_open(
    database: Database, number: int, reviewer: str, *, past: int | None = None, again: bool = False
) -> int | None:
    """The id of the sample's first item, in its order, that this reviewer has to decide; after item `past`, if any.

    With `again` also what he was unsure of himself, since one may change one's mind; after all others.
    """
    with database.reading() as connection:
        found = connection.execute(
            "SELECT item FROM sampled JOIN items ON items.id = sampled.item WHERE sample = ?1 AND place >"
            " coalesce((SELECT place FROM sampled WHERE sample = ?1 AND item = ?3), -1)"
            f" AND (state IN {OPEN} OR (state IN ('unsure', 'disputed') AND (?4 OR item NOT IN"
            " (SELECT item FROM standing WHERE reviewer = ?2)))) ORDER BY item IN"
            " (SELECT item FROM standing WHERE reviewer = ?2), place LIMIT 1",
            [number, reviewer, past, again],
        ).fetchone()
    return None if found is None else int(found["item"])


def clean_images(database: Database) -> CleanImages:
    """The clean images of the latest sample that is decided whole; raises ReviewError where there is none, or none of
    them is clean.
    """
    drawn = samples(database)
    if not drawn:
        with database.reading() as connection:
            states = dict(connection.execute("SELECT state, count(*) FROM items GROUP BY state").fetchall())
        raise ReviewError(
            _without_sample(sum(count for state, count in states.items() if state not in OPEN), states.get(CLEAN, 0)),
            hint="In 'fieldmark review', draw a random sample on the page 'Sample' and decide all of it.",
        )
    whole = [sample for sample in drawn if not sample.open]
    if not whole:
        latest = drawn[0]
        if sum(latest.by_state.get(state, 0) for state in OPEN) == latest.size:
            raise ReviewError(
                f"of the random sample of {latest.size:,} images nothing is decided yet",
                hint="In 'fieldmark review', decide all of it on the page 'Sample'.",
            )
        raise ReviewError(
            f"of the random sample of {latest.size:,} images {latest.open:,} are not decided, unsure or disputed, and "
            "leaving out the hard ones would choose by score again",
            hint="Decide them on the console's page 'Sample'; a second reviewer helps with the unsure ones.",
        )
    sample = whole[0]
    with database.reading() as connection:
        rows = connection.execute(
            "SELECT items.* FROM sampled JOIN items ON items.id = sampled.item WHERE sample = ? AND state = ?"
            " AND items.id NOT IN (SELECT item FROM uses WHERE purpose <> ?) ORDER BY place",
            [sample.number, CLEAN, CALIBRATION],
        ).fetchall()
    once = {(row["sha256"] or row["key"]): row for row in rows}
    spent = sample.by_state.get(CLEAN, 0) - len(rows)
    words = [
        f"{count:,} {what}"
        for count, what in (
            (sample.by_state.get(ATTACK, 0), "attacks"),
            (sample.by_state.get(FAULT, 0), "camera faults"),
            (spent, "that taught something else"),
            (len(rows) - len(once), "with the bytes of another"),
        )
        if count
    ]
    if not rows:
        raise ReviewError(
            f"of the random sample {sample.number} of {sample.size:,} images none is clean and free to calibrate with: "
            + ", ".join(words),
            hint="In 'fieldmark review', draw another on the page 'Sample' and decide all of it.",
        )
    return CleanImages(sample=sample, items=tuple(once.values()), left_out=", ".join(words))


def _without_sample(decided: int, clean: int) -> str:
    """Why there is nothing to calibrate with where no random sample was drawn."""
    if not decided:
        return "nothing is decided yet"
    if not clean:
        return "no random sample was drawn yet, and nothing was decided to be clean"
    were, them = ("images were", "none of them was") if clean > 1 else ("image was", "it was not")
    return (
        f"{clean:,} {were} decided to be clean, and {them} drawn at random: what was looked at because of its p-value "
        "makes a calibration that promises nothing"
    )


def use(database: Database, items: tuple[int, ...], purpose: str, made: str) -> None:
    """Note what items were taken for, and the id of what was made of them."""
    with database.writing() as connection:
        at = now()
        connection.executemany(
            "INSERT INTO uses (item, purpose, made, at) VALUES (?, ?, ?, ?)",
            [(item, purpose, made, at) for item in items],
        )
