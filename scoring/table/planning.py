"""What a run has to do: the source as it is, held against the list of the run before, both ascending by path.

Nothing is held but a span of each, so memory does not grow with the number of objects, and a list that was stopped goes
on behind its last span.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from scoring.sources import SourceFile
from scoring.table.objects import Objects
from scoring.table.place import Place
from scoring.table.runs import INVENTORY, LISTING, WORK, Begun, Inventory, write_record
from scoring.table.spans import SpanEnd, Task, listed, read_end, span_name, write_span

SPAN = 65_536  # objects

OnListed = Callable[[int], None]


def plan(
    place: Place,
    begun: Begun,
    objects: Objects,
    *,
    again: Callable[[int], bool],
    next_id: int,
    passed: Counter[str],
    on_listed: OnListed = lambda count: None,
) -> Inventory:
    """List a run's objects and its work, or go on where that was stopped; returns the whole list.

    An object is scored when it is new, has changed, or `again(id)` says so; ids from `next_id` on are free.
    """
    ends = [read_end(place, begun, number) for number in range(len(place.names(f"{begun.folder}/{LISTING}")))]
    if not ends or not ends[-1].final:
        last = ends[-1].last if ends else ""
        before = listed(place, begun.before, last) if begun.before else iter(())
        ids = _Ids(ends[-1].next_id if ends else next_id)
        events = _compared(objects.after(last, passed), before, again, ids)
        ends += list(_written(place, begun, events, ids, tuple(ends), on_listed))
    inventory = Inventory(
        objects=sum(end.objects for end in ends),
        work=tuple(end.work for end in ends),
        gone=sum(end.gone for end in ends),
        next_id=ends[-1].next_id,
        digest=_digest(place, begun, len(ends)),
    )
    write_record(place, f"{begun.folder}/{INVENTORY}", inventory)
    return inventory


class _Ids:
    """Numbers that no object of the table has had."""

    def __init__(self, free: int) -> None:
        self.free = free

    def of(self, given: int | None) -> int:
        """The id that a catalogue gives, or the next free one."""
        if given is not None:
            self.free = max(self.free, given + 1)
            return given
        self.free += 1
        return self.free - 1


@dataclass(frozen=True, slots=True)
class _Event:
    """An object, or none where one is gone, and what is to be written because of it."""

    path: str
    file: SourceFile | None
    tasks: tuple[Task, ...] = ()


def _compared(
    objects: Iterator[SourceFile], before: Iterator[SourceFile], again: Callable[[int], bool], ids: _Ids
) -> Iterator[_Event]:
    """What has become of every object, new and old, ascending by path."""
    old = next(before, None)
    for file in objects:
        while old is not None and old.path < file.path:
            yield _Event(old.path, None, (Task(old, gone=True),))
            old = next(before, None)
        known = old if old is not None and old.path == file.path else None
        if known is not None:
            old = next(before, None)
        if known is not None and file.id in (None, known.id):
            now = replace(file, id=known.id)
            scored = not _same(known, now) or again(known.id or 0)
            yield _Event(now.path, now, (Task(now),) if scored else ())
        else:  # new, or a catalogue gives it another id
            now = replace(file, id=ids.of(file.id))
            lost = () if known is None else (Task(known, gone=True),)
            yield _Event(now.path, now, (*lost, Task(now)))
    while old is not None:
        yield _Event(old.path, None, (Task(old, gone=True),))
        old = next(before, None)


def _same(old: SourceFile, new: SourceFile) -> bool:
    """Whether an object is what it was: by its tag where the store gives one, else by its time of last change."""
    if old.size is None or old.size != new.size:
        return False
    return old.etag == new.etag if old.etag or new.etag else old.mtime_ns == new.mtime_ns


def _written(
    place: Place, begun: Begun, events: Iterator[_Event], ids: _Ids, ends: Sequence[SpanEnd], on_listed: OnListed
) -> Iterator[SpanEnd]:
    """Write the spans behind those that end at `ends`; gives where each ends."""
    seen, last = sum(end.objects for end in ends), ends[-1].last if ends else ""
    for number in itertools.count(len(ends)):
        span = list(itertools.islice(events, SPAN))
        last = span[-1].path if span else last
        objects = [event.file for event in span if event.file is not None]
        work = [task for event in span for task in event.tasks]
        end = SpanEnd(
            last=last,
            final=len(span) < SPAN,
            next_id=ids.free,
            objects=len(objects),
            work=len(work),
            gone=sum(task.gone for task in work),
        )
        write_span(place, begun, number, objects, work, end)
        seen += len(objects)
        on_listed(seen)
        yield end
        if end.final:
            return


def _digest(place: Place, begun: Begun, spans: int) -> str:
    """Hex SHA-256 over the files of a list."""
    digest = hashlib.sha256()
    for number in range(spans):
        for folder in (LISTING, WORK):
            data = place.read(span_name(f"{begun.folder}/{folder}", number))
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
