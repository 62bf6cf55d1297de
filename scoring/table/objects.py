"""What a table is made from: a folder, a list, a catalogue, or a prefix of a bucket, as a stream sorted by path.

A job that compares this night's objects with last night's reads both streams side by side, so both must come in one
order, and neither is ever held as a whole: a folder costs the names of the directories that are open, a prefix of S3 a
page of a thousand keys, a list or a catalogue a hundred thousand lines (what is more is sorted on the disk).

A catalogue is a CSV or Parquet file with the columns `id` (int64, each once) and `path`, and, where they are known,
`size`, `mtime_ns` and `etag`: they save a question for every object. Other columns are ignored.
"""

import datetime
import functools
import heapq
import itertools
import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

from bundle.errors import InputError, ScoringError
from bundle.formats import count_passed_over, is_image, passed_over, suffixes
from bundle.places import below, local_path, scheme_of, store_url
from scoring.sources import Source, SourceFile, in_range
from scoring.table.catalogue import catalogue_rows
from scoring.table.place import filesystem, reached

SORTED_ROWS = 100_000  # of an unsorted source are in memory at a time
PAGE = 1000  # keys that S3 gives at a time; files that are looked at together
LOOKERS = 32  # threads that ask an object store about single objects
CATALOGUES = (".csv", ".parquet")
TAGS = ("ETag", "md5Hash", "etag")  # how stores call an object's tag; Google's etag changes with its storage class too
CHANGED = ("LastModified", "last_modified", "mtime")  # how they call the time of last change


class Objects(Protocol):
    """`name` is what a table is pinned to: the source's place, from the root or as a URL; `folder` is it where it is a
    folder of this machine."""

    @property
    def name(self) -> str: ...

    @property
    def folder(self) -> Source | None: ...

    def place_of(self, path: str) -> str:
        """Where an object is, from the root or as a URL, by its `path`."""
        ...

    def after(self, path: str, passed: Counter[str]) -> Iterator[SourceFile]:
        """Every object whose path is greater, ascending, each looked at; `passed` counts what is no image."""
        ...


def open_objects(text: str) -> Objects:
    """Look at SOURCE and decide what it is; raises InputError when it is nothing that can be scored."""
    local = local_path(text)
    if local is None:
        return Catalogue(store_url(text)) if text.lower().endswith(CATALOGUES) else Prefix(text)
    if local.lower().endswith(CATALOGUES) and os.path.isfile(local):
        return Catalogue(os.path.abspath(local))
    return Files(Source.open(Path(local)).from_root())


def check_any(objects: Objects) -> None:
    """Raise InputError when there is nothing to score, so that nothing is taken for deleted; says what there is."""
    passed: Counter[str] = Counter()
    if next(objects.after("", passed), None) is not None:
        return
    if passed:
        raise InputError(
            f"{objects.name} holds no images that can be read: {passed_over(passed)}",
            hint=f"Read are {' '.join(suffixes())}.",
        )
    raise InputError(f"{objects.name} holds no images", hint="Check the name; nothing was written.")


@dataclass(frozen=True)
class Files:
    """A folder, or the lines of a list, by its path from the root: a folder spelt otherwise is the same."""

    source: Source

    @property
    def name(self) -> str:
        return os.fspath(self.source.path)

    @property
    def folder(self) -> Source | None:
        return self.source if self.source.is_folder else None

    def place_of(self, path: str) -> str:
        return self.source.place_of(path)

    def after(self, path: str, passed: Counter[str]) -> Iterator[SourceFile]:
        if not self.source.is_folder:
            files = (_unrefused(file) for file in self.source.files())
            return _looked_at(_once(sorted_by_path(files), self.name), path)
        return (file.looked_at() for file in self._walked(passed) if file.path > path)

    def _walked(self, passed: Counter[str]) -> Iterator[SourceFile]:
        for file in self.source.files(passed):
            if file.problem:  # its files would pass for deleted ones
                raise ScoringError(file.problem, hint="Check its permissions, and run the same command again.")
            yield file


def _unrefused(file: SourceFile) -> SourceFile:
    """A line of a list; here a URL may be one, and is what to open."""
    return SourceFile(file.path, _location(file.path, "")) if scheme_of(file.path) else file


def _location(path: str, folder: str) -> str:
    """What to open for a line of a list or a row of a catalogue; a relative path starts at `folder`."""
    local = local_path(path)
    return store_url(path) if local is None else os.path.join(folder, local)


@dataclass(frozen=True)
class Prefix:
    """All images below a prefix of a bucket, which is taken as a folder: `s3://bucket/a` holds no `s3://bucket/ab.png`."""

    url: str
    folder: Source | None = None

    @property
    def name(self) -> str:
        return store_url(self.url).rstrip("/")

    def place_of(self, path: str) -> str:
        return path

    def after(self, path: str, passed: Counter[str]) -> Iterator[SourceFile]:
        scheme, root = scheme_of(self.url), below(self.name)
        found = _pages(self.name, root, path) if scheme == "s3" else _walked(filesystem(scheme), self.name, root)
        last = path
        for name, facts in found:
            location = f"{scheme}://{name}"
            if location <= last:
                if location == last or scheme != "s3":
                    continue
                raise ScoringError(
                    f"{self.name} is not listed in the order of its names",
                    hint="Give a catalogue of it: a Parquet file with the columns id and path.",
                )
            if any(part.startswith(".") for part in name[len(root) :].split("/")):
                continue
            if not is_image(name):
                count_passed_over(passed, name)
                continue
            last = location
            yield _stamped(SourceFile(location, location), facts)


def _pages(url: str, root: str, after: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Keys of S3 below a root, ascending, a page at a time; `after` is a URL."""
    bucket, _, key = root.partition("/")
    prefix = f"{key}/" if key else ""
    start = {"StartAfter": after[len(f"s3://{bucket}/") :]} if after else {}
    more: dict[str, str] = {}
    store = filesystem("s3")
    while True:
        asked = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": PAGE, **start, **more}
        page = reached(url, functools.partial(store.call_s3, "list_objects_v2", **asked), InputError)
        for facts in page.get("Contents", ()):
            if not facts["Key"].endswith("/"):
                yield f"{bucket}/{facts['Key']}", facts
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _walked(store: Any, url: str, root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of any other store, ascending; a directory is listed at a time."""
    pending = [reached(url, lambda: _entries(store, root), InputError)]
    while pending:
        if not pending[-1]:
            pending.pop()
            continue
        name, facts = pending[-1].pop()
        if name.endswith("/"):
            pending.append(reached(url, functools.partial(_entries, store, name[:-1])))
        else:
            yield name, facts


def _entries(store: Any, folder: str) -> list[tuple[str, dict[str, Any]]]:
    """What stands in a directory, last first; directories end in a slash, which sorts them as whole paths are."""
    found = [
        (facts["name"].rstrip("/") + "/" * (facts["type"] == "directory"), facts)
        for facts in store.ls(folder, detail=True, refresh=True)
        if facts["name"].rstrip("/") != folder.rstrip("/")
    ]
    return sorted(found, key=lambda entry: entry[0], reverse=True)


def _stamped(file: SourceFile, facts: dict[str, Any]) -> SourceFile:
    """A file with what a store says of it: the names differ from one to the other."""
    etag = next((str(facts[name]).strip('"') for name in TAGS if facts.get(name)), None)
    stamp = _nanoseconds(next((facts[name] for name in CHANGED if facts.get(name)), None))
    size = facts.get("Size", facts.get("size"))
    return replace(file, size=size, mtime_ns=stamp, etag=etag)


def _nanoseconds(moment: Any) -> int | None:
    """A store's time as nanoseconds since 1970."""
    return in_range(int(moment.timestamp() * 1e9)) if isinstance(moment, datetime.datetime) else None


@dataclass(frozen=True)
class Catalogue:
    """A catalogue that a user made; a relative path in it starts at the file's own folder."""

    name: str
    folder: Source | None = None

    def place_of(self, path: str) -> str:
        return _location(path, os.path.dirname(self.name))

    def after(self, path: str, passed: Counter[str]) -> Iterator[SourceFile]:
        return _looked_at(_once(sorted_by_path(self._rows()), self.name), path)

    def _rows(self) -> Iterator[SourceFile]:
        for row in catalogue_rows(self.name):
            path = str(row["path"])
            place, size, etag = self.place_of(path), row.get("size"), row.get("etag")
            yield SourceFile(path, place, size=size, mtime_ns=row.get("mtime_ns"), etag=etag, id=row["id"])


def _looked_at(files: Iterable[SourceFile], after: str) -> Iterator[SourceFile]:
    """Files behind a path, each with its size and time; objects of a store are asked about many at a time."""
    wanted = (file for file in files if file.path > after)
    with ThreadPoolExecutor(LOOKERS, thread_name_prefix="look") as pool:
        while page := list(itertools.islice(wanted, PAGE)):
            unknown = [file for file in page if file.size is None and file.etag is None]
            far = any(scheme_of(file.location) for file in unknown)
            found = iter(pool.map(_asked_about, unknown) if far else map(_asked_about, unknown))
            yield from (next(found) if file.size is None and file.etag is None else file for file in page)


def _asked_about(file: SourceFile) -> SourceFile:
    """A file with what its disk or its store says of it."""
    if not scheme_of(file.location):
        return file.looked_at()
    try:
        facts = reached(file.location, lambda: filesystem(scheme_of(file.location)).info(file.location))
    except (InputError, ScoringError):  # it is scored like any other, and then says what is wrong
        return file
    return _stamped(file, facts)


def sorted_by_path(files: Iterator[SourceFile], rows: int = SORTED_ROWS) -> Iterator[SourceFile]:
    """All files, ascending by path; runs of `rows` of them are sorted, laid on the disk, and merged."""
    runs: list[Iterator[SourceFile]] = []
    while run := sorted(itertools.islice(files, rows), key=lambda file: file.path):
        if len(run) < rows and not runs:
            yield from run
            return
        runs.append(_laid_aside(run))
    yield from heapq.merge(*runs, key=lambda file: file.path)


def _laid_aside(run: list[SourceFile]) -> Iterator[SourceFile]:
    """The same files, from a temporary file that goes with the iterator."""
    stream = tempfile.TemporaryFile()  # noqa: SIM115
    pages = [run[begin : begin + PAGE] for begin in range(0, len(run), PAGE)]
    for page in pages:
        pickle.dump(page, stream)
    stream.seek(0)
    return _read_again(stream, len(pages))


def _read_again(stream: IO[bytes], pages: int) -> Iterator[SourceFile]:
    with stream:
        for _ in range(pages):
            yield from pickle.load(stream)


def _once(files: Iterator[SourceFile], name: str) -> Iterator[SourceFile]:
    """The same files; raises InputError where one is named twice, since a table has one row for each."""
    last: SourceFile | None = None
    for file in files:
        if last is not None and last.path == file.path:
            raise InputError(
                f"{name} names {file.path} twice", hint="A table has one row for each; remove one of them."
            )
        last = file
        yield file
