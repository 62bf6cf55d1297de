"""The files of a run's list, a span of paths each: every object of the span, and what of it is to be scored."""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bundle.errors import ScoringError
from scoring.columns import arrow, exact_paths, path_columns
from scoring.sources import SourceFile
from scoring.table.place import Place
from scoring.table.runs import LISTING, WORK, Begun, Inventory, damaged

_END, _LAST, _NEXT, _GONE = b"fieldmark.end", b"fieldmark.last", b"fieldmark.next_id", b"fieldmark.gone"


@dataclass(frozen=True, kw_only=True)
class SpanEnd:
    """Where a span ends: `last` is the greatest path that it has dealt with, `final` that no other follows."""

    last: str
    final: bool
    next_id: int
    objects: int
    work: int
    gone: int


@dataclass(frozen=True, slots=True)
class Task:
    """A row to be written: of a file to be scored, or of one that is gone."""

    file: SourceFile
    gone: bool = False


def span_name(folder: str, number: int) -> str:
    """The file of span `number`."""
    return f"{folder}/{number:06d}.parquet"


def write_span(
    place: Place, begun: Begun, number: int, objects: Sequence[SourceFile], work: Sequence[Task], end: SpanEnd
) -> None:
    """Write both files of a span; the second is what makes it count."""
    facts = {
        _END: str(int(end.final)).encode(),
        _LAST: os.fsencode(end.last).hex().encode(),
        _NEXT: str(end.next_id).encode(),
        _GONE: str(end.gone).encode(),
    }
    place.write(span_name(f"{begun.folder}/{WORK}", number), _parquet(_work_table(work)))
    listed = _listing_table(objects).replace_schema_metadata(facts)
    place.write(span_name(f"{begun.folder}/{LISTING}", number), _parquet(listed))


def read_end(place: Place, begun: Begun, number: int) -> SpanEnd:
    """Where a written span ends; raises ScoringError for one that does not say so."""
    listed = read_parquet(place, span_name(f"{begun.folder}/{LISTING}", number))
    work = read_parquet(place, span_name(f"{begun.folder}/{WORK}", number))
    facts = listed.schema.metadata or {}
    try:
        return SpanEnd(
            last=os.fsdecode(bytes.fromhex(facts[_LAST].decode())),
            final=facts[_END] == b"1",
            next_id=int(facts[_NEXT]),
            objects=listed.num_rows,
            work=work.num_rows,
            gone=int(facts[_GONE]),
        )
    except (KeyError, ValueError):
        name = span_name(f"{begun.folder}/{LISTING}", number)
        raise damaged(place, name, "it does not say where it ends") from None


def listed(place: Place, folder: str, after: str) -> Iterator[SourceFile]:
    """The objects of a finished run behind a path, ascending, with their ids and stamps."""
    for name in place.names(f"{folder}/{LISTING}"):
        table = read_parquet(place, f"{folder}/{LISTING}/{name}")
        columns = [table[column].to_pylist() for column in ("id", "size", "mtime_ns", "etag")]
        for path, number, size, mtime_ns, etag in zip(exact_paths(table), *columns, strict=True):
            if path > after:
                yield SourceFile(path, "", size=size, mtime_ns=mtime_ns, etag=etag, id=number)


def read_chunk(place: Place, begun: Begun, inventory: Inventory, number: int) -> list[Task]:
    """The rows of a chunk, which may lie in more than one span."""
    begin, end = number * begun.chunk_rows, min((number + 1) * begun.chunk_rows, inventory.rows)
    tasks: list[Task] = []
    first = 0
    for span, rows in enumerate(inventory.work):
        if first < end and begin < first + rows:
            table = read_parquet(place, span_name(f"{begun.folder}/{WORK}", span))
            low = max(begin - first, 0)
            tasks += _tasks(table.slice(low, min(end - first, rows) - low))
        first += rows
    return tasks


def _tasks(table: Any) -> list[Task]:
    names = ("id", "problem", "size", "mtime_ns", "etag", "gone")
    columns = [table[name].to_pylist() for name in names]
    places = exact_paths(table.select(["location", "location_bytes"]).rename_columns(["path", "path_bytes"]))
    return [
        Task(SourceFile(path, location, problem, size=size, mtime_ns=mtime_ns, etag=etag, id=number), gone)
        for path, location, number, problem, size, mtime_ns, etag, gone in zip(
            exact_paths(table), places, *columns, strict=True
        )
    ]


def _listing_table(objects: Sequence[SourceFile]) -> Any:
    pa = arrow()
    names = [path_columns(file.path) for file in objects]
    whole, text = pa.int64(), pa.string()
    return pa.table(
        {
            "id": pa.array([file.id for file in objects], whole),
            "path": pa.array([text for text, _ in names], text),
            "path_bytes": pa.array([exact for _, exact in names], pa.binary()),
            "size": pa.array([file.size for file in objects], whole),
            "mtime_ns": pa.array([file.mtime_ns for file in objects], whole),
            "etag": pa.array([file.etag for file in objects], text),
        }
    )


def _work_table(work: Sequence[Task]) -> Any:
    pa = arrow()
    locations = [path_columns(task.file.location) for task in work]
    table = _listing_table([task.file for task in work])
    for name, values, kind in (
        ("location", [text for text, _ in locations], pa.string()),
        ("location_bytes", [exact for _, exact in locations], pa.binary()),
        ("problem", [path_columns(task.file.problem)[0] for task in work], pa.string()),
        ("gone", [task.gone for task in work], pa.bool_()),
    ):
        table = table.append_column(name, pa.array(values, kind))
    return table


def _parquet(table: Any) -> bytes:
    sink = io.BytesIO()
    arrow().parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def read_parquet(place: Place, name: str) -> Any:
    """A Parquet file of a run as a table; raises ScoringError where it is not there, or damaged."""
    try:
        return arrow().parquet.read_table(io.BytesIO(place.read(name)))
    except (FileNotFoundError, arrow().ArrowException) as problem:
        raise ScoringError(
            f"{place.url}/{name} cannot be read ({problem})",
            hint="Remove the folder it is in, and run the same command again.",
        ) from None
