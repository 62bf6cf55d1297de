"""A folder of scores: one Parquet shard for each stretch of the source.

    OUT/part-000000.parquet   rows of files 0 .. shard_rows-1 of the source, in the source's order; zstd
    OUT/part-000001.parquet   ...
    OUT/_fieldmark.json       what the job is, one record a finished shard, and whether the job is complete
    OUT/.fieldmark.lock       held (flock) while a process writes here

A shard is written beside its name, flushed to disk, renamed, and only then entered in the state file; so whenever the
process dies, a shard is whole and counted, or it is scored again. A part that the state does not list is not a result.

| column | type | meaning |
|---|---|---|
| `path` | string | the file as the source names it; bytes that are not UTF-8 appear as `\\xff` |
| `path_bytes` | binary or null | the exact name, only where it is not UTF-8 (Parquet text must be) |
| `status` | string | `ok` or `error` |
| `error` | string or null | one sentence: why there is no score |
| `label`, `probability` | string, float32 or null | the most probable label |
| `instance_score`, `p_value` | float32 or null | how adversarial the input looks |
| `is_adversarial` | bool or null | `p_value <= alpha`, with the job's alpha |
| `layer_scores` | list<float32> or null | squared distance per detector layer |
| `network`, `bundle_id` | string | who answered |

The schema's metadata hold `fieldmark.version`, `.bundle_id`, `.network` and `.alpha`.
"""

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundle.errors import MissingExtra, ScoringError
from bundle.files import atomic_file
from serving.jobs import (
    FORMAT,
    STATE,
    Job,
    ShardRecord,
    State,
    disk_errors,
    lock,
    read_state,
    refuse_other_job,
    version,
    write_state,
)
from serving.prediction import Prediction
from serving.sources import SourceFile

OK, ERROR = "ok", "error"
Answer = Prediction | str  # a string is the error's sentence
_PART = re.compile(r"part-\d{6,}\.parquet")
_LEFTOVER = re.compile(r"\.(part-\d{6,}\.parquet|_fieldmark\.json)\.\d+\.tmp")


class ScoreFolder:
    """One job's output folder, locked for as long as it is open. Use `ScoreFolder.open` in a `with` statement."""

    def __init__(self, path: Path, state: State) -> None:
        self.path = path
        self.state = state

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, job: Job, *, restart: bool = False) -> Iterator["ScoreFolder"]:
        """Start or continue `job` in `path`; raises ScoringError when `path` belongs to another job or process."""
        arrow()
        with lock(path):
            folder = cls(path, State(format=FORMAT, version=version(), job=job))
            parts = [entry.name for entry in os.scandir(path) if _PART.fullmatch(entry.name)]
            if (path / STATE).exists():
                if not restart:
                    folder.state = read_state(path)
                    refuse_other_job(path, folder.state.job, job)
            elif parts:
                raise ScoringError(f"{path} holds {parts[0]}, but no {STATE}", hint="Use another --out.")
            if not folder.state.shards:
                write_state(path, folder.state)
            folder._sweep()
            yield folder

    def is_whole(self, index: int) -> bool:
        """Whether shard `index` is finished and its file is there in full length."""
        if index >= len(self.state.shards):
            return False
        try:
            return self.part(index).stat().st_size == self.state.shards[index].bytes
        except FileNotFoundError:
            return False

    def part(self, index: int) -> Path:
        """Path of shard `index`."""
        return self.path / part_name(index)

    def write(self, index: int, rows: Sequence[tuple[SourceFile, Answer]]) -> ShardRecord:
        """Write shard `index` and enter it in the state; a row is a file with its prediction or its error sentence."""
        table = to_table(rows, self.state.job)
        target = self.part(index)
        with disk_errors(target), atomic_file(target) as temporary:
            arrow().parquet.write_table(table, temporary, compression="zstd")
        predictions = [answer for _, answer in rows if isinstance(answer, Prediction)]
        record = ShardRecord(
            bytes=target.stat().st_size,
            rows=len(rows),
            errors=len(rows) - len(predictions),
            flagged=sum(prediction.is_adversarial for prediction in predictions),
            digest=digest_of(file for file, _ in rows),
        )
        shards = (*self.state.shards[:index], record, *self.state.shards[index + 1 :])
        self.state = replace(self.state, shards=shards, complete=False, rows=None, errors=None, flagged=None)
        write_state(self.path, self.state)
        return record

    def finish(self) -> None:
        """Mark the job as complete, with its totals."""
        rows, errors, flagged = (self.state.total(what) for what in ("rows", "errors", "flagged"))
        self.state = replace(self.state, complete=True, rows=rows, errors=errors, flagged=flagged)
        write_state(self.path, self.state)

    def _sweep(self) -> None:
        """Remove what a killed process left: temporary files, and parts that never came into the state."""
        listed = {part_name(index) for index in range(len(self.state.shards))}
        for entry in os.scandir(self.path):
            if _LEFTOVER.fullmatch(entry.name) or (_PART.fullmatch(entry.name) and entry.name not in listed):
                os.unlink(entry.path)


def read_scores(out: Path, columns: Sequence[str] | None = None) -> Any:
    """The finished shards of a score folder as one pyarrow.Table, in the source's order; see the table above.

    `columns` are some of that table's. A shard that is not what the state says, or not of its job, is refused.
    """
    state = read_state(out)
    whole = schema(state.job)
    wanted = whole if columns is None else arrow().schema([whole.field(name) for name in columns])
    tables = []
    for index, record in enumerate(state.shards):
        path = out / part_name(index)
        try:
            with arrow().parquet.ParquetFile(path) as file:
                _check_shard(file, record, whole)
                tables.append(file.read(wanted.names).cast(wanted))
        except (OSError, ValueError, arrow().ArrowException) as problem:
            raise ScoringError(
                f"{path} cannot be read ({problem})", hint="Delete it and run the same command again to score it anew."
            ) from None
    return arrow().concat_tables(tables) if tables else wanted.empty_table()


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


def to_table(rows: Sequence[tuple[SourceFile, Answer]], job: Job) -> Any:
    """Rows as a pyarrow.Table in the schema above."""
    names = [path_columns(file.path) for file, _ in rows]
    answers = [answer if isinstance(answer, Prediction) else None for _, answer in rows]
    columns = {
        "path": [text for text, _ in names],
        "path_bytes": [exact for _, exact in names],
        "status": [ERROR if answer is None else OK for answer in answers],
        "error": [None if isinstance(answer, Prediction) else path_columns(answer)[0] for _, answer in rows],
        "network": [job.network] * len(rows),
        "bundle_id": [job.bundle_id] * len(rows),
    }
    for name in ("label", "probability", "instance_score", "p_value", "is_adversarial", "layer_scores"):
        columns[name] = [None if answer is None else getattr(answer, name) for answer in answers]
    kind = schema(job)
    return arrow().table({name: columns[name] for name in kind.names}, schema=kind)


def schema(job: Job) -> Any:
    """The pyarrow.Schema of a job's shards."""
    pa = arrow()
    text, number = pa.string(), pa.float32()
    return pa.schema(
        [
            pa.field("path", text, nullable=False),
            pa.field("path_bytes", pa.binary()),
            pa.field("status", text, nullable=False),
            pa.field("error", text),
            pa.field("label", text),
            pa.field("probability", number),
            pa.field("instance_score", number),
            pa.field("p_value", number),
            pa.field("is_adversarial", pa.bool_()),
            pa.field("layer_scores", pa.list_(pa.field("element", number))),
            pa.field("network", text, nullable=False),
            pa.field("bundle_id", text, nullable=False),
        ],
        metadata={
            "fieldmark.version": version(),
            "fieldmark.bundle_id": job.bundle_id,
            "fieldmark.network": job.network,
            "fieldmark.alpha": repr(job.alpha),
        },
    )


def path_columns(text: str) -> tuple[str, bytes | None]:
    """Readable text, and the exact bytes where the text is not UTF-8 (a name decoded with surrogateescape)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        exact = os.fsencode(text)
        return exact.decode("utf-8", "backslashreplace"), exact
    return text, None


def digest_of(files: Iterable[SourceFile]) -> str:
    """Hex SHA-256 of a list of paths; each is preceded by its length, so no two lists share their bytes."""
    digest = hashlib.sha256()
    for file in files:
        name = os.fsencode(file.path)
        digest.update(len(name).to_bytes(4, "little") + name)
    return digest.hexdigest()


def part_name(index: int) -> str:
    """File name of shard `index`."""
    return f"part-{index:06d}.parquet"


@functools.cache
def arrow() -> Any:
    """The pyarrow module with its Parquet and compute parts; raises MissingExtra."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as problem:
        raise MissingExtra.named("scoring", "offline scoring", problem) from None
    return pyarrow
