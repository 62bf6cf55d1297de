"""One SQLite file: the items, what was decided of them, the samples that were drawn. It survives kill -9.

    items       what the source has told. What is worked out here (fingerprint, loudest layer, state) changes; so does,
                where a source tells all that it has again, what of it is drawn, and what is `told` no more
    decisions   who decided what, and when. Rows are added and never changed: an undo is a row, too
    standing    for each item and reviewer the decision that counts; worked out from `decisions`, in one transaction
    samples     random samples for recalibration, and `sampled`, their items in the order in which they are shown
    uses        what the decided images were taken for

WAL lets any number of readers and processes look while one writes; `synchronous=FULL` has a decision on the disk before
the page says so.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from bundle.errors import DiskFull, ReviewError
from bundle.files import check_place

FORMAT = 2
PATIENCE = 5.0  # seconds that a writer waits for another
TRY_AGAIN = "Nothing is lost but this one: do it again."

SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, image BLOB NOT NULL, received TEXT NOT NULL,
    label TEXT NOT NULL, probability REAL NOT NULL, score REAL NOT NULL, p_value REAL NOT NULL, alpha REAL NOT NULL,
    reason TEXT NOT NULL, drawn INTEGER NOT NULL, origin TEXT NOT NULL, network TEXT NOT NULL, bundle_id TEXT NOT NULL,
    layers TEXT NOT NULL, sha256 TEXT NOT NULL, request_id TEXT NOT NULL,
    size INTEGER, mtime_ns INTEGER, told INTEGER NOT NULL DEFAULT 1,
    day TEXT GENERATED ALWAYS AS (substr(received, 1, 10)) VIRTUAL,
    hour TEXT GENERATED ALWAYS AS (substr(received, 1, 13)) VIRTUAL,
    calm REAL GENERATED ALWAYS AS (-score) VIRTUAL,
    layer TEXT NOT NULL DEFAULT '', print BLOB, copies INTEGER, problem TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL DEFAULT 'waiting'
);
CREATE INDEX suspicion ON items (state, p_value, calm, id);
CREATE INDEX campaign ON items (origin, label, hour, layer);
CREATE INDEX likeness ON items (copies);
CREATE INDEX unprinted ON items (id) WHERE print IS NULL AND problem = '';
CREATE INDEX unheard ON items (id) WHERE layer = '';
CREATE TABLE decisions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, stroke TEXT NOT NULL, item INTEGER NOT NULL REFERENCES items,
    reviewer TEXT NOT NULL, verdict TEXT NOT NULL, note TEXT NOT NULL, at TEXT NOT NULL,
    undoes INTEGER REFERENCES decisions
);
CREATE INDEX decided ON decisions (item, id);
CREATE INDEX strokes ON decisions (stroke);
CREATE TRIGGER decisions_stay BEFORE UPDATE ON decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are only ever added'); END;
CREATE TRIGGER decisions_remain BEFORE DELETE ON decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are only ever added'); END;
CREATE TABLE standing (
    item INTEGER NOT NULL REFERENCES items, reviewer TEXT NOT NULL, decision INTEGER NOT NULL REFERENCES decisions,
    PRIMARY KEY (item, reviewer)
) WITHOUT ROWID;
CREATE TABLE samples (
    id INTEGER PRIMARY KEY AUTOINCREMENT, rate REAL NOT NULL, reviewer TEXT NOT NULL, at TEXT NOT NULL
);
CREATE TABLE sampled (
    sample INTEGER NOT NULL REFERENCES samples, place INTEGER NOT NULL, item INTEGER NOT NULL REFERENCES items,
    PRIMARY KEY (sample, place)
) WITHOUT ROWID;
CREATE TABLE uses (
    id INTEGER PRIMARY KEY AUTOINCREMENT, item INTEGER NOT NULL REFERENCES items, purpose TEXT NOT NULL,
    made TEXT NOT NULL, at TEXT NOT NULL
);
"""
# An item's state: what of its decisions stands, or whether it waits for one. Who is unsure differs from nobody.
STATE = """(
    SELECT CASE count(DISTINCT nullif(verdict, 'unsure'))
        WHEN 0 THEN CASE WHEN count(*) THEN 'unsure' WHEN items.told THEN 'waiting' ELSE 'outdated' END
        WHEN 1 THEN max(nullif(verdict, 'unsure')) ELSE 'disputed' END
    FROM standing JOIN decisions ON decisions.id = standing.decision WHERE standing.item = items.id
)"""
# From format 1, which knew of no item that its source tells no more, and took the unsure for others who differ.
UPGRADE = (
    "ALTER TABLE items ADD COLUMN size INTEGER",
    "ALTER TABLE items ADD COLUMN mtime_ns INTEGER",
    "ALTER TABLE items ADD COLUMN told INTEGER NOT NULL DEFAULT 1",
    f"UPDATE items SET state = {STATE} WHERE state = 'disputed'",
    f"UPDATE facts SET value = '{FORMAT}' WHERE name = 'format'",
)


class Database:
    """An open review. Every thread gets a connection of its own; use `Database.open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._own = threading.local()
        self._file: tuple[int, int] | None = None  # device and number of the file that was opened first

    @classmethod
    def open(cls, path: Path, *, source: str | None = None, bundle_id: str | None = None) -> "Database":
        """The review at `path`, which is made where there is none and a `source` is given; raises ReviewError for one
        of another source, or for any other file.

        `bundle_id` is noted for those who read the file; a review outlives the bundle that it began with.
        """
        if source is None and not path.is_file():
            raise ReviewError(f"there is no review at {path}", hint="Make one: fieldmark review SOURCE --bundle BUNDLE")
        if path.is_dir():
            raise ReviewError(f"{path} is a folder, and a review is a file", hint="Name a file with --db.")
        check_place(path)
        if not path.exists():  # who decided what is for the reviewers
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        database = cls(path)
        with database.writing() as connection:
            if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                database._make(connection, source or "", bundle_id or "")
            database._check(connection, source)
        return database

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one state of the file; raises ReviewError."""
        with self._told():
            connection = self._connection()
            nested = connection.in_transaction
            if not nested:
                connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if not nested:
                    connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes reach the disk together, or not at all; raises DiskFull or ReviewError."""
        with self._told():
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close this thread's connection."""
        if (connection := getattr(self._own, "connection", None)) is not None:
            connection.close()
            self._own.connection = None

    def _connection(self) -> sqlite3.Connection:
        self._check_file()
        if getattr(self._own, "connection", None) is None:
            # By an address, in which it can be said that no empty file is to be made where there is none.
            address = f"{self.path.absolute().as_uri()}?mode=rw"
            connection = sqlite3.connect(address, uri=True, timeout=PATIENCE, isolation_level=None)
            connection.row_factory = sqlite3.Row
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF"):
                connection.execute(f"PRAGMA {pragma}")
            self._own.connection = connection
        made: sqlite3.Connection = self._own.connection
        return made

    def _check_file(self) -> None:
        """Raise ReviewError where another file has the name by now: what is written into the old one, nobody finds."""
        try:
            status = os.stat(self.path)
        except OSError as problem:
            raise ReviewError(
                f"{self.path} is gone ({(problem.strerror or 'unreachable').lower()}): nothing can be recorded",
                hint="Put the file back; what was decided before is in it.",
            ) from None
        if self._file is None:
            self._file = status.st_dev, status.st_ino
        elif self._file != (status.st_dev, status.st_ino):
            raise ReviewError(
                f"{self.path} is another file than the one that was opened: nothing can be recorded",
                hint="Put the old file back, or start the console again to go on with this one.",
            )

    def _make(self, connection: sqlite3.Connection, source: str, bundle_id: str) -> None:
        for statement in _statements():
            connection.execute(statement)
        facts = {"format": str(FORMAT), "source": source, "bundle_id": bundle_id}
        connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())

    def _check(self, connection: sqlite3.Connection, source: str | None) -> None:
        try:
            facts = dict(connection.execute("SELECT name, value FROM facts").fetchall())
            found = int(facts["format"])
        except (sqlite3.OperationalError, KeyError, ValueError):
            raise ReviewError(
                f"{self.path} is a database, and no review", hint="Name another file with --db."
            ) from None
        if not 1 <= found <= FORMAT:
            raise ReviewError(
                f"{self.path} has format {found}, and this version reads {FORMAT}",
                hint="Upgrade fieldmark." if found > FORMAT else "Name another file with --db.",
            )
        if source is not None and facts["source"] != source:
            raise ReviewError(
                f"{self.path} is the review of {facts['source']}, and this is {source}",
                hint="Give that source, or another file with --db.",
            )
        for statement in UPGRADE if found < FORMAT else ():
            connection.execute(statement)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What SQLite says, in one sentence."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise  # a bug of ours, or a hand that wrote into the file
        except sqlite3.DatabaseError as problem:
            name = getattr(problem, "sqlite_errorname", "")
            if name == "SQLITE_FULL":
                raise DiskFull(
                    f"no space left on the disk of {self.path}: this was not recorded",
                    hint="Free some space and do it again; what was decided before is safe.",
                ) from None
            if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise ReviewError(f"another process is writing {self.path} for long", hint=TRY_AGAIN) from None
            if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
                raise ReviewError(
                    f"{self.path} is no database, or is damaged", hint="Name another file with --db."
                ) from None
            if name.startswith(("SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
                raise ReviewError(f"{self.path} cannot be read or written ({problem})", hint=TRY_AGAIN) from None
            raise


def _statements() -> Iterator[str]:
    """Those of SCHEMA, one at a time: `executescript` would end the transaction."""
    text = ""
    for line in SCHEMA.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            yield text
            text = ""
