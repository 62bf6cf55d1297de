"""A chunk's data file: rows of all columns of scoring/columns.py, and of those that a table of many nights has besides.

| column | type | meaning |
|---|---|---|
| `id` | int64 | the object, for as long as its path is in the source; a catalogue's own id where it has one |
| `run` | int64 | the run that wrote the row, 1, 2, ...: of an id the row with the greatest run holds, `gone` last |
| `etag` | string or null | the object store's tag of it, when it was listed |
| `day` | date | of scoring, in UTC; the table is partitioned by it and by `bundle_id` |

`path` is from the root where the source is a folder. `status` may also be `gone`: the object is not in the source any
more. Columns are added, never changed or removed.
"""

import datetime
import io
from collections.abc import Sequence
from typing import Any

from scoring.answers import Row
from scoring.columns import arrow, schema, to_table
from scoring.table.runs import Begun
from scoring.table.spans import Task

GONE = "gone"
PARTITIONS = ("day", "bundle_id")


def table_schema(begun: Begun) -> Any:
    """The pyarrow.Schema of a table's rows, partitions included."""
    pa = arrow()
    shard = schema(begun)
    first = [pa.field("id", pa.int64(), nullable=False), pa.field("run", pa.int64(), nullable=False)]
    last = [pa.field("etag", pa.string()), pa.field("day", pa.date32(), nullable=False)]
    return pa.schema([*first, *shard, *last])


def rows_of(begun: Begun, tasks: Sequence[Task], answers: Sequence[Row]) -> Any:
    """A chunk's rows as a pyarrow.Table in that schema: `answers` are those of the tasks that are not gone."""
    pa = arrow()
    answered = iter(answers)
    rows = [(task.file, "") if task.gone else next(answered) for task in tasks]
    table = to_table(rows, begun)
    gone = pa.array([task.gone for task in tasks], pa.bool_())
    if gone.true_count:
        choose, nothing = pa.compute.if_else, pa.scalar(None, pa.string())
        status = choose(gone, pa.scalar(GONE), table["status"].combine_chunks())
        table = table.set_column(table.column_names.index("status"), table.schema.field("status"), status)
        error = choose(gone, nothing, table["error"].combine_chunks())
        table = table.set_column(table.column_names.index("error"), table.schema.field("error"), error)
    day = datetime.date.fromisoformat(begun.day)
    columns = {name: table[name] for name in table.column_names} | {
        "id": pa.array([task.file.id for task in tasks], pa.int64()),
        "run": pa.array([begun.number] * len(tasks), pa.int64()),
        "etag": pa.array([task.file.etag for task in tasks], pa.string()),
        "day": pa.array([day] * len(tasks), pa.date32()),
    }
    wanted = table_schema(begun)
    return pa.table({name: columns[name] for name in wanted.names}, schema=wanted)


def data_file(table: Any) -> bytes:
    """The table as Parquet, without the partitions, which stand in the file's path."""
    sink = io.BytesIO()
    arrow().parquet.write_table(table.drop_columns(list(PARTITIONS)), sink, compression="zstd")
    return sink.getvalue()
