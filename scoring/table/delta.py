"""The Delta table that a job writes: what is in it, and the one commit that puts a run's rows there, or none of them.

Two transactions in a commit tell who was there: `fieldmark`, whose version is the number of the last run, and
`fieldmark/KEY`, where KEY is a digest of all that the run was made from. deltalake refuses neither a transaction that
was there before nor one that another writer has overtaken, unless it may not try again: then a commit is one file that
must not exist yet, made for the version after the one that was looked at. So whoever comes second sees it, looks again,
and finds either his own work done or that of another.
"""

import json
import re
import time
from collections.abc import Sequence
from typing import Any

from bundle.errors import MissingExtra, ScoringError
from scoring.table.data_file import PARTITIONS
from scoring.table.place import Place, reached
from scoring.table.runs import Chunk
from scoring.table.storage import storage_options

APP = "fieldmark"
TRIES = 20  # of a commit that others overtake with work that is none of ours, such as OPTIMIZE
OTHER_TABLE = "Use another table."
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class ScoreTable:
    """A Delta table at a place; it need not exist yet."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._table: Any = None

    def exists(self) -> bool:
        """Whether there is a table, as it is now."""
        self._load()
        return self._table is not None

    def last_run(self) -> int:
        """The number of the last run that was committed; 0 where there is none."""
        return self._version(APP)

    def holds(self, key: str) -> bool:
        """Whether the run of this key was committed."""
        return self._version(f"{APP}/{key}") > 0

    def check_schema(self, wanted: Any) -> list[str]:
        """The columns that the table has not got yet; raises ScoringError for a table of other rows."""
        if self._table is None:
            return []
        import pyarrow as pa

        found = pa.schema(self._table.schema())
        if tuple(self._table.metadata().partition_columns) != PARTITIONS:
            raise ScoringError(
                f"{self.place.url} is not partitioned by {' and '.join(PARTITIONS)}: no 'fieldmark score' made it",
                hint=OTHER_TABLE,
            )
        for field in found:
            at = wanted.get_field_index(field.name)
            if at >= 0 and not _alike(field.type, wanted.field(at).type):
                raise ScoringError(
                    f"{self.place.url} has a column {field.name!r} of type {field.type}, and scores have "
                    f"{wanted.field(at).type} there",
                    hint=OTHER_TABLE,
                )
            if at < 0 and not field.nullable:
                raise ScoringError(
                    f"{self.place.url} has a column {field.name!r} that may not be null, and scores have none such",
                    hint=OTHER_TABLE,
                )
        missing = [name for name in wanted.names if name not in found.names]
        if "id" in missing or "run" in missing:
            raise ScoringError(f"{self.place.url} is a table of something else: it has no ids", hint=OTHER_TABLE)
        return missing

    def make_ready(self, wanted: Any, description: str) -> None:
        """Make the table, or add the columns that it has not got."""
        deltalake = delta_library()
        if self._table is None:
            try:
                deltalake.DeltaTable.create(
                    self._uri,
                    deltalake.Schema.from_arrow(wanted),
                    mode="error",
                    partition_by=list(PARTITIONS),
                    name="fieldmark scores",
                    description=description,
                    storage_options=self._options,
                )
            except deltalake.exceptions.DeltaError as problem:  # somebody else was faster, or it cannot be made
                if not self.exists():
                    raise self._failed(problem) from None
            self._load()
        missing = self.check_schema(wanted)
        if missing:
            fields = deltalake.Schema.from_arrow(wanted).fields
            self._table.alter.add_columns([field for field in fields if field.name in missing])
            self._load()

    def commit(self, number: int, key: str, chunks: Sequence[Chunk], facts: dict[str, str]) -> bool:
        """Put all rows of run `number` into the table at once; False where they are there already.

        Raises ScoringError where another job has finished a run since this one looked.
        """
        deltalake = delta_library()
        transaction = deltalake.transaction
        actions = [_action(chunk, facts["day"], facts["bundle_id"]) for chunk in chunks]
        for _ in range(TRIES):
            self._load()
            if self.holds(key):
                return False
            if self.last_run() != number - 1:
                raise ScoringError(
                    f"another job has finished run {self.last_run()} of {self.place.url} since this one began",
                    hint="Nothing of this one was written into the table. Run the same command again.",
                )
            properties = transaction.CommitProperties(
                custom_metadata={f"{APP}.{name}": value for name, value in facts.items()} | {f"{APP}.key": key},
                max_commit_retries=0,
                app_transactions=[transaction.Transaction(APP, number), transaction.Transaction(f"{APP}/{key}", 1)],
            )
            try:
                self._table.create_write_transaction(
                    actions, "append", self._table.schema(), list(PARTITIONS), commit_properties=properties
                )
            except deltalake.exceptions.CommitFailedError:
                continue
            except (deltalake.exceptions.DeltaError, OSError) as problem:
                raise self._failed(problem) from None
            return True
        raise ScoringError(
            f"{self.place.url}: others commit faster than this job could, {TRIES} times",
            hint="What was scored is safe; run the same command again when they have finished.",
        )

    def dataset(self) -> Any:
        """Its rows as a pyarrow.dataset.Dataset; raises ScoringError where there is no table."""
        if not self.exists():
            raise ScoringError(
                f"there is no table at {self.place.url}",
                hint="'fieldmark score SOURCE --table TABLE' makes one; a folder of 'score --out' is none.",
            )
        return self._table.to_pyarrow_dataset()

    @property
    def _options(self) -> dict[str, str]:
        """As they are now: credentials that hold for an hour are others when a night's run commits."""
        return reached(self.place.url, lambda: storage_options(self.place))

    @property
    def _uri(self) -> str:
        return self.place.url

    def _load(self) -> None:
        """Look at the table anew."""
        deltalake = delta_library()
        try:
            self._table = deltalake.DeltaTable(self._uri, storage_options=self._options)
        except deltalake.exceptions.TableNotFoundError:
            self._table = None
        except (deltalake.exceptions.DeltaError, OSError) as problem:
            raise self._failed(problem) from None

    def _version(self, app: str) -> int:
        found = None if self._table is None else self._table.transaction_version(app)
        return 0 if found is None else int(found)

    def _failed(self, problem: BaseException) -> ScoringError:
        return ScoringError(
            f"the table at {self.place.url} cannot be read or written ({_said(problem)})",
            hint="What was scored is safe; run the same command again.",
        )


def delta_library() -> Any:
    """The deltalake module with its parts; raises MissingExtra."""
    try:
        import deltalake
        import deltalake.exceptions
        import deltalake.transaction
    except ImportError as problem:
        raise MissingExtra.named("scoring", "score --table", problem) from None
    return deltalake


def _alike(found: Any, wanted: Any) -> bool:
    """Whether two Arrow types are the same to Delta, which knows no large or view types, nor names of list elements."""
    import pyarrow as pa

    if pa.types.is_list(wanted):
        return hasattr(found, "value_type") and _alike(found.value_type, wanted.value_type)
    for same in ({"string", "large_string", "string_view"}, {"binary", "large_binary", "binary_view"}):
        if str(wanted) in same:
            return str(found) in same
    return bool(found == wanted)


def _said(problem: BaseException) -> str:
    """What deltalake says in one line, which may be a coloured tree of causes."""
    lines = (line.strip(" ↳") for line in _COLOUR.sub("", str(problem)).splitlines())
    return ": ".join(line for line in lines if line)[:300] or type(problem).__name__


def _action(chunk: Chunk, day: str, bundle_id: str) -> Any:
    # Bounds of some columns and not of all make pyarrow's readers pass over rows that are there; so none are given.
    stats = {"numRecords": chunk.rows}
    partition = {"day": day, "bundle_id": bundle_id}
    return delta_library().transaction.AddAction(
        chunk.path, chunk.bytes, partition, int(time.time() * 1000), True, json.dumps(stats)
    )
