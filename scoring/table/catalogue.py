"""A catalogue that a user made: a CSV or Parquet file with an id and a path for each image."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from bundle.errors import InputError, first_line
from bundle.files import open_regular
from bundle.places import local_path, scheme_of, store_url
from scoring.columns import arrow
from scoring.table.place import filesystem, reached

COLUMNS = ("id", "path", "size", "mtime_ns", "etag")
NEEDED = "A catalogue has the columns id (int64, each once) and path (text)."


def catalogue_rows(name: str) -> Iterator[dict[str, Any]]:
    """Each row as a dict, in the file's order; raises InputError for what is no catalogue.

    The ids are held, eight bytes each, to see that none comes twice.
    """
    ids: list[Any] = []
    for batch in _batches(name):
        ids.append(np.array(batch.column("id").to_numpy()))  # a copy: a view would keep the whole batch
        yield from batch.to_pylist()
    every = np.concatenate(ids) if ids else np.zeros(0, np.int64)
    ids.clear()
    every.sort()
    if (doubled := every[1:][every[1:] == every[:-1]]).size:
        raise InputError(f"{name} has the id {doubled[0]} more than once", hint=NEEDED)


def _batches(name: str) -> Iterator[Any]:
    pa = arrow()
    import pyarrow.csv as csv

    with _opened(name) as stream:
        try:
            if name.lower().endswith(".csv"):
                kinds = csv.ConvertOptions(column_types=_kinds(), strings_can_be_null=True)
                batches: Any = csv.open_csv(stream, convert_options=kinds)
                names, source = batches.schema.names, iter(batches)
            else:
                file = pa.parquet.ParquetFile(stream, pre_buffer=False)  # which would read all of it at once
                names = file.schema_arrow.names
                source = file.iter_batches(columns=[column for column in COLUMNS if column in names])
            if missing := {"id", "path"} - set(names):
                raise InputError(f"{name} has no column {min(missing)!r}", hint=NEEDED)
            for batch in source:
                yield _checked(name, pa.table(batch))
        except (pa.ArrowException, OSError, ValueError) as problem:
            raise InputError(f"{name} is not a readable catalogue ({first_line(problem)[:200]})", hint=NEEDED) from None


def _checked(name: str, table: Any) -> Any:
    """The columns of a catalogue in their types; raises InputError where an id or a path is missing."""
    pa = arrow()
    wanted = [column for column in COLUMNS if column in table.column_names]
    found = table.select(wanted).cast(pa.schema([(column, _kinds()[column]) for column in wanted]))
    for column in ("id", "path"):
        if found[column].null_count:
            raise InputError(f"{name} has a row without {column}", hint=NEEDED)
    return found


def _kinds() -> dict[str, Any]:
    pa = arrow()
    whole, text = pa.int64(), pa.string()
    return {"id": whole, "path": text, "size": whole, "mtime_ns": whole, "etag": text}


def _opened(name: str) -> IO[bytes]:
    local = local_path(name)
    if local is not None:
        return open_regular(Path(local))
    stream: IO[bytes] = reached(name, lambda: filesystem(scheme_of(name)).open(store_url(name), "rb"), InputError)
    return stream
