"""Which stretch of the source becomes which shard, now and in the next run, when files have come and gone.

In a first run every `rows` files are one shard. A later run finds the same stretches again, because each shard's record
knows its paths. Where they are not the same any more, the stretch goes on to the file that begins another shard, so
what came or went stays inside one shard; a stretch that has grown to twice its size is cut. The files between are read
ahead, never more than two shards of them, and nothing depends on the order of names: a list works as a folder does.

    source   a b c d | e f g h | i j        b is removed, ee and k are added:
    shards   a b c d   e f g h   i j        a c d | e ee f g h | i j k
"""

import bisect
import hashlib
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from scoring.local.jobs import ShardRecord
from scoring.sources import SourceFile


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Files that are to be one shard, in place of the old shards `begin` .. `end`; none where only those are to go.

    `same` says that the one old shard in this place has exactly these paths.
    """

    files: tuple[SourceFile, ...]
    begin: int
    end: int
    same: bool = False


def stretches(files: Iterator[SourceFile], old: Sequence[ShardRecord], rows: int) -> Iterator[Stretch]:
    """Cut a source into stretches of about `rows` files, along the `old` shards where there are any."""
    beginnings: dict[str, list[int]] = {}  # a list may name a file more than once
    for index, record in enumerate(old):
        beginnings.setdefault(record.first, []).append(index)
    ahead: deque[SourceFile] = deque()
    at = 0
    while True:
        ahead.extend(itertools.islice(files, 2 * rows - len(ahead)))
        if not ahead:
            break
        stretch = _next(ahead, old, at, rows, beginnings)
        for _ in stretch.files:
            ahead.popleft()
        at = stretch.end
        yield stretch
    if at < len(old):
        yield Stretch(files=(), begin=at, end=len(old))


def _next(
    ahead: Sequence[SourceFile], old: Sequence[ShardRecord], at: int, rows: int, beginnings: dict[str, list[int]]
) -> Stretch:
    """The stretch that begins with the first file ahead, where the old shard `at` would be next."""
    if at == len(old):
        return Stretch(files=_first(ahead, rows), begin=at, end=at)
    if digest_of(_first(ahead, old[at].rows)) == old[at].paths:
        last = at + 1 == len(old)  # and so may have room for what was added behind it
        found = _first(ahead, max(rows, old[at].rows) if last else old[at].rows)
        return Stretch(files=found, begin=at, end=at + 1, same=len(found) == old[at].rows)
    begins = ahead[0].path == old[at].first
    known = []
    for place, file in enumerate(ahead):
        indexes = beginnings.get(file.path, [])
        known += [(index, place) for index in indexes[bisect.bisect_left(indexes, at + (place == 0 and begins)) :][:1]]
    if known:
        index, place = min(known)
        return Stretch(files=_first(ahead, place), begin=at, end=index)
    return Stretch(files=_first(ahead, rows), begin=at, end=at + begins)


def _first(files: Iterable[SourceFile], count: int) -> tuple[SourceFile, ...]:
    return tuple(itertools.islice(files, count))


def digest_of(files: Iterable[SourceFile]) -> str:
    """Hex SHA-256 of a list of paths; each is preceded by its length, so no two lists share their bytes."""
    digest = hashlib.sha256()
    for file in files:
        name = os.fsencode(file.path)
        digest.update(len(name).to_bytes(4, "little") + name)
    return digest.hexdigest()


def stamps_of(files: Iterable[SourceFile]) -> str:
    """Hex SHA-256 of the files' sizes and times of last change."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.size} {file.mtime_ns}\n".encode())
    return digest.hexdigest()
