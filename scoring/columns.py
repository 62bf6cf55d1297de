"""A row of scores: its columns, and how files and answers become them. Tables add `scoring/table/data_file.py`'s.

| column | type | meaning |
|---|---|---|
| `path` | string | the file as the source names it; bytes that are not UTF-8 appear as `\\xff` |
| `path_bytes` | binary or null | the exact name, only where it is not UTF-8 (Parquet text must be) |
| `status` | string | `ok` or `error` |
| `error` | string or null | one sentence: why there is no score |
| `label`, `probability` | string, float32 or null | the most probable label |
| `instance_score`, `p_value` | float32 or null | how adversarial the input looks |
| `is_adversarial` | bool or null | `p_value <= alpha`, with the job's alpha |
| `layer_scores` | list<float32> or null | squared distances, three a detector layer |
| `network`, `bundle_id` | string | who answered |
| `size`, `mtime_ns` | int64 or null | the file's bytes, and its time of last change, before it was read |

The schema's metadata hold `fieldmark.version`, `.bundle_id`, `.network` and `.alpha`.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any, Protocol

from bundle.errors import MissingExtra
from bundle.version import version
from scoring.sources import SourceFile
from serving.client.prediction import Prediction

OK, ERROR = "ok", "error"
Answer = Prediction | str  # a string is the error's sentence


class Scored(Protocol):
    """What all rows of a job share."""

    @property
    def bundle_id(self) -> str: ...
    @property
    def network(self) -> str: ...
    @property
    def alpha(self) -> float: ...


def to_table(rows: Sequence[tuple[SourceFile, Answer]], job: Scored) -> Any:
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
        "size": [file.size for file, _ in rows],
        "mtime_ns": [file.mtime_ns for file, _ in rows],
    }
    for name in ("label", "probability", "instance_score", "p_value", "is_adversarial", "layer_scores"):
        columns[name] = [None if answer is None else getattr(answer, name) for answer in answers]
    kind = schema(job)
    return arrow().table({name: columns[name] for name in kind.names}, schema=kind)


def schema(job: Scored) -> Any:
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
            pa.field("size", pa.int64()),
            pa.field("mtime_ns", pa.int64()),
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


def exact_paths(table: Any) -> list[str]:
    """The `path` of each row as it was in the source; the inverse of `path_columns`."""
    pairs = zip(table["path"].to_pylist(), table["path_bytes"].to_pylist(), strict=True)
    return [text if exact is None else os.fsdecode(exact) for text, exact in pairs]


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
