"""Follows the source into the database while people look: new items, their loudest layers, their near copies."""

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from bundle import Bundle
from bundle.errors import FieldmarkError, ImageError, ImageGone, first_line, printable
from review.evidence.fingerprint import Likeness, fingerprint
from review.evidence.layers import Reference, calibrated, unflagged
from review.sources.source import CHANGED, Source, Stamp
from review.store.database import Database
from review.store.queue import add, retire
from serving.quarantine.entry import FLAGGED

T = TypeVar("T")
SECONDS = 5.0  # between two looks at the source
CHUNK, PICTURES = 2000, 64  # items a transaction


class Follower:
    """Works in a thread of its own between `start` and `stop`; `turn` is one round of it."""

    def __init__(self, database: Database, source: Source, bundle: Bundle, *, seconds: float = SECONDS) -> None:
        self.database, self.source, self.bundle, self.seconds = database, source, bundle, seconds
        self.problem = ""  # why the source could not be read the last time
        self.busy = ""  # what it does now, for the page
        self.rounds = 0
        self._likeness: Likeness | None = None
        self._references: dict[str, Reference] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="follower", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End soon: between two transactions."""
        self._stop.set()
        self._thread.join(timeout=30)

    def turn(self) -> None:
        """Read what is new, and work out what the pages need of it; raises what the source or the database raise."""
        self.busy = "reading the source"
        keys, tellings = set[str](), self.source.tellings
        try:
            for items in _chunks(self.source.news(), CHUNK):
                if self._stop.is_set():
                    return
                add(self.database, items)
                keys.update(item.key for item in items)
            if self.source.tellings > tellings:
                retire(self.database, keys)
        except Exception:  # of what was told, some is not in the database
            self.source.forget()
            raise
        self._refer()
        self.busy = "looking which layers speak"
        self._hear()
        self.busy = "looking for near copies"
        self._compare()
        self.busy = ""
        self.rounds += 1

    def reference(self, network: str) -> Reference | None:
        """What a network's images are compared with, if there is anything by now."""
        return self._references.get(network)

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self.turn()
                    self.problem = ""
                except FieldmarkError as problem:  # a disk or a store that went away may come back
                    self.problem, self.busy = str(problem), ""
                except Exception as problem:  # also what no library should raise: the page says that nothing new comes
                    self.problem, self.busy = _unexpected(problem), ""
                self._stop.wait(self.seconds)
        finally:
            self.database.close()

    def _refer(self) -> None:
        for network in self.bundle.manifest.networks:
            if network not in self._references:
                found = calibrated(self.bundle, network)
                if found is None:
                    with self.database.reading() as connection:
                        found = unflagged(connection, self.bundle, network)
                if found is not None:
                    self._references[network] = found

    def _hear(self) -> None:
        for network, reference in self._references.items():
            while not self._stop.is_set():
                with self.database.reading() as connection:
                    rows = connection.execute(
                        "SELECT id, layers FROM items WHERE layer = '' AND network = ? AND bundle_id = ? LIMIT ?",
                        [network, self.bundle.bundle_id, CHUNK],
                    ).fetchall()
                heard = [(reference.loudest(json.loads(row["layers"])) or "?", row["id"]) for row in rows]
                if not heard:
                    break
                with self.database.writing() as connection:
                    connection.executemany("UPDATE items SET layer = ? WHERE id = ?", heard)

    def _compare(self) -> None:
        likeness = self._known()
        while not self._stop.is_set():
            with self.database.reading() as connection:
                rows = connection.execute(
                    "SELECT id, image, sha256, size, mtime_ns FROM items WHERE print IS NULL AND problem = ''"
                    " ORDER BY reason <> ?, p_value, id LIMIT ?",
                    [FLAGGED, PICTURES],
                ).fetchall()
            if not rows:
                return
            found = []
            for row in rows:
                if self._stop.is_set():
                    return
                print_, problem = self._print(row)
                copies = None if print_ is None else likeness.join(row["id"], print_)
                found.append((print_, copies, problem, row["id"]))
            with self.database.writing() as connection:
                connection.executemany("UPDATE items SET print = ?, copies = ?, problem = ? WHERE id = ?", found)

    def _print(self, row: sqlite3.Row) -> tuple[bytes | None, str]:
        spec = self.bundle.manifest.image
        try:
            return fingerprint(bytes_of(self.source, row, spec.max_bytes), spec), ""
        except (ImageGone, ImageError) as problem:
            return None, problem.what

    def _known(self) -> Likeness:
        """The groups that the database knows from before."""
        if self._likeness is None:
            self._likeness = Likeness()
            with self.database.reading() as connection:
                for row in connection.execute("SELECT id, print, copies FROM items WHERE copies = id ORDER BY id"):
                    with contextlib.suppress(ValueError):
                        self._likeness.join(row["id"], row["print"], first=row["copies"])
        return self._likeness


def image_of(row: sqlite3.Row) -> str:
    """What the source calls an item's image: a name, whose bytes need not be text."""
    return os.fsdecode(row["image"])


def bytes_of(source: Source, row: sqlite3.Row, most: int) -> bytes:
    """An item's image as it was sent; raises ImageGone where it is not there any more, or another one."""
    data = source.read(image_of(row), most, Stamp(size=row["size"], mtime_ns=row["mtime_ns"]))
    if row["sha256"] and hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise ImageGone(CHANGED)
    return data


def _unexpected(problem: Exception) -> str:
    cause = f"{type(problem).__name__}: {printable(first_line(problem))[:200]}"
    return f"the source could not be read or worked out ({cause}). What was decided is safe; it is tried again."


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
