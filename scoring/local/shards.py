"""A folder of scores: one Parquet shard for each stretch of the source.

    OUT/part-000000.parquet   rows of files 0 .. shard_rows-1 of the source, in the source's order; zstd
    OUT/part-000001.parquet   ...
    OUT/_fieldmark.json       what the job is, one record a finished shard in order, and whether the job is complete
    OUT/_failed.txt           the files without a score, a path from the root a line; only where there are some
    OUT/.fieldmark.lock       held (flock) while a process writes here

A shard is written beside its name, flushed to disk, renamed, and only then entered in the state file with its SHA-256;
so whenever the process dies, a shard is whole and counted, or it is scored again. A part that the state does not list,
or whose bytes it does not know, is not a result.

A later run of the same command finds the stretches again (scoring/local/stretches.py). Where no path, size or time of
change differs, the shard stays as it is. Any other is written anew, with the rows of the files that are still the same
taken over from the old shard, under the old one's name or the next free number. While that goes on, the job is not
complete.

scoring/columns.py has the columns.
"""

import contextlib
import io
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bundle.errors import ScoringError
from bundle.files import atomic_file, open_regular, sha256_of, sha256_of_stream
from bundle.version import version
from scoring.columns import ERROR, Answer, arrow, exact_paths, schema, to_table
from scoring.local.jobs import (
    FORMAT,
    STATE,
    Job,
    ShardRecord,
    State,
    disk_errors,
    lock,
    read_state,
    refuse_other_job,
    write_state,
)
from scoring.local.stretches import Stretch, digest_of, stamps_of
from scoring.sources import Source, SourceFile

FAILED = "_failed.txt"
_PART = re.compile(r"part-\d{6,}\.parquet")
_LEFTOVER = re.compile(r"\.(part-\d{6,}\.parquet|_fieldmark\.json|_failed\.txt)\.\d+\.tmp")


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Rows that are taken over from old shards : a table, and the place of each row in its stretch."""

    places: Sequence[int]
    table: Any


class ScoreFolder:
    """One job's output folder, locked for as long as it is open. Use `ScoreFolder.open` in a `with` statement.

    `old` are the shards that it held when it was opened: stretches name them by their index.
    """

    def __init__(self, path: Path, state: State) -> None:
        self.path = path
        self.state = state
        self.old = state.shards
        self._shift = 0  # from an index in `old` to one in the state, where nothing is replaced yet
        self._recent: deque[tuple[int, Any]] = deque(
            maxlen=2
        )  # old shards, by index, whose rows may move into the next

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, job: Job, *, restart: bool = False) -> Iterator["ScoreFolder"]:
        """Start or continue `job` in `path`; raises ScoringError when `path` belongs to another job or process."""
        arrow()
        with lock(path):
            state = State(format=FORMAT, version=version(), job=job)
            parts = [entry.name for entry in os.scandir(path) if _PART.fullmatch(entry.name)]
            if (path / STATE).exists():
                if not restart:
                    state = read_state(path)
                    refuse_other_job(path, state.job, job)
            elif parts:
                raise ScoringError(f"{path} holds {parts[0]}, but no {STATE}", hint="Use another --out.")
            folder = cls(path, state)
            if not state.shards:
                write_state(path, state)
            folder._sweep()
            yield folder

    def is_whole(self, stretch: Stretch) -> bool:
        """Whether an old shard has these very files, and its own file is there, byte for byte."""
        if not stretch.same or stamps_of(stretch.files) != self.old[stretch.begin].stamps:
            return False
        record = self.old[stretch.begin]
        try:
            return sha256_of(self.path / part_name(record.number)) == record.sha256
        except OSError:
            return False

    def still_true(self, stretch: Stretch) -> Taken:
        """The rows of old shards whose files are in a stretch, and have not changed since."""
        wanted: dict[tuple[str, int | None, int | None], list[int]] = {}
        for place, file in enumerate(stretch.files):
            if file.size is not None:
                wanted.setdefault((file.path, file.size, file.mtime_ns), []).append(place)
        places: list[int] = []
        pieces = []
        for table in self._old_rows(stretch):
            chosen = []
            stamps = zip(table["size"].to_pylist(), table["mtime_ns"].to_pylist(), strict=True)
            for row, (path, (size, mtime_ns)) in enumerate(zip(exact_paths(table), stamps, strict=True)):
                for place in wanted.pop((path, size, mtime_ns), ()):
                    places.append(place)
                    chosen.append(row)
            pieces.append(table.take(arrow().array(chosen, arrow().int64())))
            if not wanted:
                break
        return Taken(places=places, table=arrow().concat_tables([schema(self.state.job).empty_table(), *pieces]))

    def write(self, stretch: Stretch, taken: Taken, rows: Sequence[tuple[SourceFile, Answer]]) -> None:
        """Write a stretch's shard in place of the old ones, and enter it in the state.

        `rows` are the files that are not among the `taken` rows, in the stretch's order.
        """
        begin, end = stretch.begin + self._shift, stretch.end + self._shift
        replaced = self.state.shards[begin:end]
        records: tuple[ShardRecord, ...] = ()
        if stretch.files:
            numbers = [record.number for record in self.state.shards]
            number = replaced[0].number if replaced else max(numbers, default=-1) + 1
            records = (self._write_part(number, stretch, _merged(taken, to_table(rows, self.state.job))),)
        self._shift += len(records) - len(replaced)
        shards = (*self.state.shards[:begin], *records, *self.state.shards[end:])
        self.state = replace(self.state, shards=shards, complete=False, rows=None, errors=None, flagged=None)
        write_state(self.path, self.state)
        for record in replaced[len(records) :]:
            (self.path / part_name(record.number)).unlink(missing_ok=True)

    def finish(self, source: Source) -> None:
        """Mark the job as complete, with its totals, and write the list of the files that have no score."""
        target = self.path / FAILED
        with disk_errors(target):
            if self.state.total("errors"):
                with atomic_file(target) as temporary, temporary.open("wb") as stream:
                    for path, _ in failures(self.path):
                        if "\n" not in path and "\r" not in path:  # no line of a list can hold these
                            stream.write(os.fsencode(source.place_of(path)) + b"\n")
            else:
                target.unlink(missing_ok=True)
        rows, errors, flagged = (self.state.total(what) for what in ("rows", "errors", "flagged"))
        self.state = replace(self.state, complete=True, rows=rows, errors=errors, flagged=flagged)
        write_state(self.path, self.state)

    def _old_rows(self, stretch: Stretch) -> Iterator[Any]:
        """Tables of the old shards in a stretch's place, and of their neighbours: a cut may lie elsewhere now."""
        yield from [table for _, table in self._recent]
        for index in range(stretch.begin, min(len(self.old), max(stretch.end, stretch.begin + 1) + 1)):
            if index not in [known for known, _ in self._recent]:
                record = self.old[index]
                try:
                    table = _read_part(self.path / part_name(record.number), record, schema(self.state.job))
                except (OSError, ValueError, arrow().ArrowException):  # it is scored again
                    continue
                self._recent.append((index, table))
                yield table

    def _write_part(self, number: int, stretch: Stretch, table: Any) -> ShardRecord:
        target = self.path / part_name(number)
        with disk_errors(target), atomic_file(target) as temporary:
            arrow().parquet.write_table(table, temporary, compression="zstd")
            digest = sha256_of(temporary)
        return ShardRecord(
            number=number,
            sha256=digest,
            rows=table.num_rows,
            errors=table["status"].to_pylist().count(ERROR),
            flagged=table["is_adversarial"].to_pylist().count(True),
            first=stretch.files[0].path,
            paths=digest_of(stretch.files),
            stamps=stamps_of(stretch.files),
        )

    def _sweep(self) -> None:
        """Remove what a killed process left: temporary files, and parts that never came into the state."""
        listed = {part_name(record.number) for record in self.state.shards}
        for entry in os.scandir(self.path):
            if _LEFTOVER.fullmatch(entry.name) or (_PART.fullmatch(entry.name) and entry.name not in listed):
                os.unlink(entry.path)


def read_scores(out: Path, columns: Sequence[str] | None = None) -> Any:
    """The finished shards of a score folder as one pyarrow.Table, in the source's order; see scoring/columns.py.

    `columns` are some of that table's. A shard that is not what the state says, or not of its job, is refused.
    """
    state = read_state(out)
    wanted = schema(state.job) if columns is None else _part_of(schema(state.job), columns)
    tables = [_checked_part(out, state, record, columns) for record in state.shards]
    return arrow().concat_tables(tables) if tables else wanted.empty_table()


def failures(out: Path) -> Iterator[tuple[str, str]]:
    """Path, as the source names it, and sentence of each file that has no score, in the source's order."""
    state = read_state(out)
    for record in state.shards:
        if record.errors:
            table = _checked_part(out, state, record, ("path", "path_bytes", "status", "error"))
            failed = table.filter(arrow().compute.equal(table["status"], ERROR))
            yield from zip(exact_paths(failed), failed["error"].to_pylist(), strict=True)


def _checked_part(out: Path, state: State, record: ShardRecord, columns: Sequence[str] | None) -> Any:
    """One shard's rows; raises ScoringError where it is not what the state says."""
    path = out / part_name(record.number)
    try:
        return _read_part(path, record, schema(state.job), columns)
    except (OSError, ValueError, arrow().ArrowException) as problem:
        raise ScoringError(
            f"{path} cannot be read ({problem})", hint="Run the same command again: it scores this shard anew."
        ) from None


def _read_part(path: Path, record: ShardRecord, expected: Any, columns: Sequence[str] | None = None) -> Any:
    """One shard's rows, from the very bytes that were checked; raises OSError, ValueError or an ArrowException."""
    with open_regular(path) as stream:
        data = stream.read()
    if sha256_of_stream(io.BytesIO(data)) != record.sha256:
        raise ValueError(f"its SHA-256 is not the one in {STATE}")
    wanted = expected if columns is None else _part_of(expected, columns)
    with arrow().parquet.ParquetFile(arrow().BufferReader(data)) as file:
        _check_shard(file, record, expected)
        return file.read(wanted.names).cast(wanted)


def _check_shard(file: Any, record: ShardRecord, expected: Any) -> None:
    """Raise ValueError where a shard has other rows or columns, or comes from another job, than the state says."""
    if file.metadata.num_rows != record.rows:
        raise ValueError(f"it holds {file.metadata.num_rows:,} rows, and {STATE} says {record.rows:,}")
    if missing := set(expected.names) - set(file.schema_arrow.names):
        raise ValueError(f"it has no column {min(missing)!r}")
    found = file.schema_arrow.metadata or {}
    for name in (b"fieldmark.bundle_id", b"fieldmark.network", b"fieldmark.alpha"):
        if found.get(name) != expected.metadata[name]:
            raise ValueError(f"its {name.decode()} is not that of {STATE}: it is of another job")


def _merged(taken: Taken, new: Any) -> Any:
    """Rows of old shards at their places, and the new ones in order at the others."""
    if not taken.places:
        return new
    old, known = len(taken.places), {place: row for row, place in enumerate(taken.places)}
    fresh = iter(range(old, old + new.num_rows))
    order = [known[place] if place in known else next(fresh) for place in range(old + new.num_rows)]
    return arrow().concat_tables([taken.table, new]).take(order).combine_chunks()


def _part_of(expected: Any, columns: Sequence[str]) -> Any:
    return arrow().schema([expected.field(name) for name in columns])


def part_name(number: int) -> str:
    """File name of shard `number`."""
    return f"part-{number:06d}.parquet"
