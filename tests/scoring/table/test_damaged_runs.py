"""What lies beside a table's rows is read without belief: nothing outside is touched, and all that is wrong is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bundle.errors import ScoringError
from scoring.table.job import TableOptions
from scoring.table.place import Place
from scoring.table.runs import BEGUN, LISTING, RUNS, Begun, begin, read_record, runs_of, write_record
from scoring.table.spans import SpanEnd, read_end, span_name, write_span
from tests.scoring.conftest import Score

pytestmark = pytest.mark.hostile

PINNED: dict[str, Any] = {
    "source": "/photos", "bundle_id": "b" * 64, "network": "full", "alpha": 0.05, "calibration_n": 99,
}  # fmt: skip


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Place, Begun]:
    """A run that was begun, and the table's place."""
    place, made = Place(str(tmp_path / "table")), begin(1, None, PINNED, 7)
    write_record(place, f"{made.folder}/{BEGUN}", made)
    return place, made


def rewrite(place: Place, begun: Begun, **changes: object) -> None:
    name = f"{begun.folder}/{BEGUN}"
    place.write(name, json.dumps(json.loads(place.read(name)) | changes).encode())


def test_a_run_that_names_another_folder_removes_nothing(score: Score, photos: Path, tmp_path: Path) -> None:
    place, made = Place(str(tmp_path / "table")), begin(1, None, PINNED, TableOptions.chunk_rows)
    write_record(place, f"{made.folder}/{BEGUN}", made)
    (tmp_path / "table" / RUNS / "000001-x").mkdir()
    (tmp_path / "victim").mkdir()
    rewrite(place, made, token="x/../../../../victim")
    with pytest.raises(ScoringError, match="is damaged"):
        score(photos, tmp_path / "table")
    assert (tmp_path / "victim").is_dir()


@pytest.mark.parametrize(
    "changes", [{"number": 2}, {"token": "y"}, {"token": "x/../../../../victim"}, {"day": "../../../victim"}]
)
def test_a_run_is_of_the_folder_that_it_is_in(begun: tuple[Place, Begun], changes: dict[str, object]) -> None:
    place, made = begun
    assert list(runs_of(place, 1)) == [made]
    rewrite(place, made, **changes)
    with pytest.raises(ScoringError, match="is damaged"):
        list(runs_of(place, 1))


def test_a_record_that_is_nested_without_end_is_damaged(begun: tuple[Place, Begun]) -> None:
    place, made = begun
    place.write(f"{made.folder}/{BEGUN}", b"[" * 100_000)
    with pytest.raises(ScoringError, match="is damaged"):
        read_record(place, f"{made.folder}/{BEGUN}", Begun)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda facts: None,
        lambda facts: facts | {b"fieldmark.next_id": b"many"},
        lambda facts: facts | {b"fieldmark.last": b"no hexadecimal"},
        lambda facts: facts | {b"fieldmark.gone": b""},
        lambda facts: facts | {b"fieldmark.last": b"\xff"},
    ],
)
def test_a_span_without_an_end_is_damaged(
    begun: tuple[Place, Begun], spoil: Callable[[dict[bytes, bytes]], dict[bytes, bytes] | None]
) -> None:
    place, made = begun
    end = SpanEnd(last="/photos/z.png", final=True, next_id=3, objects=0, work=0, gone=0)
    write_span(place, made, 0, [], [], end)
    assert read_end(place, made, 0) == end
    assert place.local is not None
    path = place.local / span_name(f"{made.folder}/{LISTING}", 0)
    table: pa.Table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(spoil(dict(table.schema.metadata))), path)
    with pytest.raises(ScoringError, match="is damaged"):
        read_end(place, made, 0)


def test_a_foreign_file_beside_the_runs_is_left_alone(score: Score, photos: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "table" / RUNS / "notes.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("somebody's")
    summary = score(photos, tmp_path / "table")
    assert summary.runs == 1
    assert foreign.read_text() == "somebody's"
