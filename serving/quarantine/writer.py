"""Copies of flagged images, and of a random sample of all, written beside the answers and never before them.

What the disk or the store refuses costs the copy: it is counted, and said to who watches.
"""

import hashlib
import io
import random
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from bundle.errors import FieldmarkError
from bundle.formats import JPEGS, KINDS, open_image
from serving.backlog import Backlog
from serving.quarantine.entry import ENTRY_SCHEMA, FLAGGED, SAMPLE, Case, Entry, place_of, write_record
from serving.quarantine.options import QuarantineOptions
from serving.quarantine.pruning import prune
from serving.quarantine.store import open_store

MOST_WAITING = 1000
WAITING_BYTES = 128 * 1024 * 1024
PRUNE_SECONDS = 600.0  # between two looks at what has become too old
ROOM = 0.9  # of the bytes allowed, what is left when there was no room any more: so listing all of it is rare
FULL_QUEUE = "more is to be kept than can be written"


class Watcher(Protocol):
    """Who is told what becomes of the copies, from any thread."""

    def written(self, reason: str) -> None:
        """One is kept, for this reason."""
        ...

    def dropped(self, count: int, why: str) -> None:
        """Some are lost; `why` is a sentence without a place."""
        ...

    def pruned(self, removed: int, why: str) -> None:
        """So many of the oldest were removed, for their AGE or for all entries' SIZE."""
        ...

    def holds(self, size: int) -> None:
        """All files of the quarantine have so many bytes, as far as is known."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Copy:
    case: Case
    image: bytes
    drawn: bool


class Quarantine:
    """`offer` every answer. Raises OptionError at once for a place that can be none; one out of reach is no error."""

    def __init__(self, options: QuarantineOptions, watcher: Watcher) -> None:
        self._options, self._watcher = options, watcher
        self._store = open_store(options.root, prepare=True)
        self._held: int | None = None  # bytes; None while it is not known
        self._draw = random.Random().random
        self._backlog: Backlog[_Copy] = Backlog(
            self._keep,
            self._failed,
            items=MOST_WAITING,
            most_bytes=WAITING_BYTES,
            chore=self._look,
            chore_seconds=PRUNE_SECONDS,
        )

    def offer(self, case: Case, image: bytes) -> None:
        """Keep a copy if the case is flagged, or drawn for the sample. Never waits."""
        drawn = self._draw() < self._options.sample
        if (case.flagged or drawn) and not self._backlog.put(_Copy(case=case, image=image, drawn=drawn), len(image)):
            self._watcher.dropped(1, FULL_QUEUE)

    def close(self, seconds: float) -> None:
        """Write what waits, for at most `seconds`; what is left then is lost."""
        if left := self._backlog.close(seconds):
            self._watcher.dropped(left, "the service ended before they were written")

    def _keep(self, copy: _Copy) -> None:
        try:
            entry = _entry(copy)
            record = write_record(entry)
            self._make_room(len(copy.image) + len(record))
            self._store.write(entry.day, entry.image, copy.image)
            try:
                self._store.write(entry.day, entry.record, record)
            except FieldmarkError:
                self._store.remove(entry.day, entry.image)  # nobody would find it
                raise
        except Exception as problem:  # also what no library should raise: the copy is lost, and counted
            self._watcher.dropped(1, _sentence(problem))
            return
        if self._held is not None:
            self._held += len(copy.image) + len(record)
            self._watcher.holds(self._held)
        self._watcher.written(entry.reason)

    def _make_room(self, size: int) -> None:
        most = self._options.bytes
        if size > most:
            raise FieldmarkError("an image is larger than the whole quarantine may be")
        if self._held is None:
            self._prune(most - size)
        elif self._held + size > most:
            self._prune(min(most - size, int(ROOM * most)))

    def _look(self) -> None:
        self._held = None  # others may have written or removed
        self._prune(self._options.bytes)

    def _prune(self, most: int) -> None:
        done = prune(self._store, most=most, now=datetime.now(UTC), days=self._options.days)
        self._held = done.bytes
        self._watcher.holds(done.bytes)
        for why, removed in done.removed.items():
            self._watcher.pruned(removed, why)

    def _failed(self, problem: Exception) -> None:
        """A look that failed costs no copy by itself; the next one to be written looks again."""
        self._watcher.dropped(0, _sentence(problem))


def _entry(copy: _Copy) -> Entry:
    identity = uuid.uuid4().hex
    case = copy.case
    return Entry(
        **vars(case),
        schema=ENTRY_SCHEMA,
        id=identity,
        reason=FLAGGED if case.flagged else SAMPLE,
        drawn=copy.drawn,
        image=place_of(case.received, identity)[1] + _suffix(copy.image),
        sha256=hashlib.sha256(copy.image).hexdigest(),
        bytes=len(copy.image),
    )


def _suffix(image: bytes) -> str:
    """What a file with these bytes is called."""
    kind = open_image(io.BytesIO(image)).format or ""
    return KINDS["JPEG" if kind in JPEGS else kind][0]


def _sentence(problem: Exception) -> str:
    return problem.what if isinstance(problem, FieldmarkError) else f"{type(problem).__name__} while writing"
