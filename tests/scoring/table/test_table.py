"""A table holds each object of its source exactly once a run, with the values that the local job gives."""

import datetime
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from PIL import Image

from bundle import Bundle
from bundle.errors import ScoringError
from scoring import sources
from scoring.local.score import ScoreOptions, score_source
from scoring.local.shards import read_scores
from scoring.table.delta import ScoreTable
from scoring.table.failures import FAILED
from scoring.table.job import TableSummary
from scoring.table.lease import held
from scoring.table.place import Place
from scoring.table.runs import RUNS, done_chunks, key_of, read_inventory, runs_of
from serving.client.local import LocalInference
from tests.scoring.conftest import Score, save

ROWS = 22


def rows_in(table: Path | str) -> list[dict[str, Any]]:
    """Every row, in the order of ids, then runs."""
    found: list[dict[str, Any]] = DeltaTable(str(table)).to_pyarrow_table().to_pylist()
    return sorted(found, key=lambda row: (row["id"], row["run"]))


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "day"} for row in rows]


def test_every_row_is_that_of_the_local_job(
    score: Score, photos: Path, inference: LocalInference, tmp_path: Path
) -> None:
    summary = score(photos, tmp_path / "table")
    score_source(photos, inference, tmp_path / "out", ScoreOptions(batch=5, shard_rows=6))
    shards = read_scores(tmp_path / "out").to_pylist()
    rows = rows_in(tmp_path / "table")
    assert [{name: row[name] for name in shards[0]} for row in rows] == shards
    assert [row["id"] for row in rows] == list(range(ROWS))
    assert {row["run"] for row in rows} == {1}
    assert {row["day"] for row in rows} == {datetime.datetime.now(datetime.UTC).date()}
    assert (summary.rows, summary.errors, summary.scored, summary.chunks) == (ROWS, 1, ROWS, 4)
    assert summary.failed[0][0] == str(photos / "b" / "broken.png")
    assert (tmp_path / "table" / FAILED).read_text() == f"{photos / 'b' / 'broken.png'}\n"


def test_other_engines_read_it(score: Score, photos: Path, tmp_path: Path) -> None:
    score(photos, tmp_path / "table")
    frame = polars.read_delta(str(tmp_path / "table"))
    assert frame.height == ROWS
    with duckdb.connect() as engine:
        engine.register("scores", DeltaTable(tmp_path / "table").to_pyarrow_dataset())
        (row,) = engine.sql("select count(*) from scores where p_value <= 0.05 and status = 'ok'").fetchall()
    assert row[0] == frame.filter(polars.col("is_adversarial")).height > 0


def test_the_second_time_nothing_is_written(score: Score, photos: Path, tmp_path: Path) -> None:
    score(photos, tmp_path / "table")
    before = sorted(tmp_path.joinpath("table").rglob("*"))
    summary = score(photos, tmp_path / "table")
    assert (summary.runs, summary.rows, summary.objects) == (0, 0, ROWS)
    assert sorted(tmp_path.joinpath("table").rglob("*")) == before


def test_what_is_new_changed_and_gone(score: Score, photos: Path, toy_images: np.ndarray, tmp_path: Path) -> None:
    score(photos, tmp_path / "table")
    ids = {row["path"]: row["id"] for row in rows_in(tmp_path / "table")}
    changed, gone, new = photos / "a" / "03.png", photos / "b" / "12.png", photos / "aa.png"
    save(changed, toy_images[4]), gone.unlink(), save(new, toy_images[0])
    summary = score(photos, tmp_path / "table")
    assert (summary.rows, summary.gone, summary.scored) == (3, 1, 2)
    second = {row["path"]: row for row in rows_in(tmp_path / "table") if row["run"] == 2}
    assert {path: row["status"] for path, row in second.items()} == {
        str(changed): "ok",
        str(gone): "gone",
        str(new): "ok",
    }
    assert second[str(changed)]["id"] == ids[str(changed)]
    assert second[str(changed)]["label"] == "Emerald-throated Wren"
    assert second[str(gone)]["id"] == ids[str(gone)]
    assert second[str(gone)]["label"] is second[str(gone)]["error"] is second[str(gone)]["p_value"] is None
    assert second[str(new)]["id"] == ROWS
    save(gone, toy_images[12])
    score(photos, tmp_path / "table")
    back = rows_in(tmp_path / "table")[-1]
    assert (back["path"], back["id"], back["run"]) == (str(gone), ROWS + 1, 3), "an object that comes back is another"
    assert len(list((tmp_path / "table" / RUNS).iterdir())) == 1, "lists of runs before the last are not kept"


def test_a_source_without_images_deletes_nothing(score: Score, photos: Path, tmp_path: Path) -> None:
    score(photos, tmp_path / "table")
    shutil.move(photos, tmp_path / "elsewhere")
    photos.mkdir()
    with pytest.raises(Exception, match="holds no images"):
        score(photos, tmp_path / "table")
    assert len(rows_in(tmp_path / "table")) == ROWS


def test_a_folder_that_cannot_be_listed_deletes_nothing(
    score: Score, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(photos, tmp_path / "table")
    names = sources._names

    def refused(folder: str, passed: Any) -> list[str]:
        if folder.endswith("/b"):
            raise PermissionError(13, "Permission denied", folder)
        return names(folder, passed)

    monkeypatch.setattr(sources, "_names", refused)
    with pytest.raises(ScoringError, match="the folder cannot be listed"):
        score(photos, tmp_path / "table")
    assert len(rows_in(tmp_path / "table")) == ROWS


class Crash(BaseException):
    """The process is gone."""


def crashing(monkeypatch: pytest.MonkeyPatch, at: int, *, after: bool) -> Callable[[], int]:
    """Let the process die at the `at`-th thing that it writes, a commit included, before or after it is there."""
    written = 0
    write, commit = Place.write, ScoreTable.commit

    def counted(action: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal written
            written += 1
            if written == at and not after:
                raise Crash
            result = action(*arguments)
            if written == at:
                raise Crash
            return result

        return call

    monkeypatch.setattr(Place, "write", counted(write))
    monkeypatch.setattr(ScoreTable, "commit", counted(commit))
    return lambda: written


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_write_each_row_is_there_once(
    score: Score, photos: Path, toy_images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Two nights, the second with a change of each kind; undisturbed, and killed at every write of either night."""
    monkeypatch.setattr("scoring.table.planning.SPAN", 13)

    def nights(table: Path, source: Path, at: int) -> int:
        shutil.copytree(photos, source, copy_function=shutil.copy2)
        with monkeypatch.context() as patch:
            written = crashing(patch, at, after=after)
            for night in range(2):
                if night:
                    save(source / "a" / "03.png", toy_images[4])
                    (source / "b" / "12.png").unlink()
                    save(source / "c.png", toy_images[0])
                try:
                    score(source, table, chunk_rows=13)
                except Crash:
                    score(source, table, chunk_rows=13)
            return written()

    count = nights(tmp_path / "undisturbed", tmp_path / "s", 0)
    places = ("path", "location", "error", "mtime_ns", "day")
    plain = [{k: v for k, v in row.items() if k not in places} for row in rows_in(tmp_path / "undisturbed")]
    assert count > 15
    for at in range(1, count + 1):
        source, table = tmp_path / f"s{at}", tmp_path / f"t{at}"
        nights(table, source, at)
        found = [{k: v for k, v in row.items() if k not in places} for row in rows_in(table)]
        assert found == plain, f"killed at write {at} of {count}"
        shutil.rmtree(source), shutil.rmtree(table)


def test_a_run_that_was_listed_yesterday_is_finished_and_followed(
    score: Score, photos: Path, toy_images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        crashing(patch, 6, after=True)
        with pytest.raises(Crash):
            score(photos, tmp_path / "table")
    save(photos / "new.png", toy_images[0])
    summary = score(photos, tmp_path / "table")
    assert (summary.runs, summary.objects) == (2, ROWS + 1)
    assert [row["run"] for row in rows_in(tmp_path / "table")] == [1] * ROWS + [2]


def test_two_jobs_at_once(score: Score, photos: Path, tmp_path: Path) -> None:
    """The second is refused; and were it not, the commit would."""
    with held(Place(str(tmp_path / "table"))), pytest.raises(ScoringError, match="another process is scoring"):
        score(photos, tmp_path / "table")
    assert not (tmp_path / "table" / "_delta_log").exists()


def test_the_commit_lets_one_job_in(score: Score, photos: Path, tmp_path: Path) -> None:
    score(photos, tmp_path / "table")
    place = Place(str(tmp_path / "table"))
    table = ScoreTable(place)
    assert table.exists()
    (begun,) = runs_of(place, 1)
    inventory = read_inventory(place, begun)
    assert inventory is not None
    chunks = list(done_chunks(place, begun).values())
    facts = {"day": begun.day, "bundle_id": begun.bundle_id}
    assert not table.commit(1, key_of(begun, inventory), chunks, facts), "the same run once more is no other commit"
    with pytest.raises(ScoringError, match=r"another job has finished run 1 .* Nothing of this one"):
        table.commit(1, "0" * 64, chunks, facts)
    assert len(rows_in(tmp_path / "table")) == ROWS


def test_overtaken_by_a_commit_of_somebody_else(
    score: Score, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OPTIMIZE lands between the look at the table and the commit: the job looks again, and commits once."""
    score(photos, tmp_path / "table")
    save(photos / "new.png", np.zeros((32, 32, 3), np.uint8))
    load, loads = ScoreTable._load, 0

    def overtaken(self: ScoreTable) -> None:
        nonlocal loads
        load(self)
        loads += 1
        if loads in (3, 4, 5, 6):
            DeltaTable(tmp_path / "table").alter.set_table_properties({"delta.appendOnly": "false"})

    monkeypatch.setattr(ScoreTable, "_load", overtaken)
    score(photos, tmp_path / "table")
    assert [row["run"] for row in rows_in(tmp_path / "table")] == [1] * ROWS + [2]


def test_optimize_and_vacuum_leave_the_next_night_alone(score: Score, photos: Path, tmp_path: Path) -> None:
    score(photos, tmp_path / "table")
    table = DeltaTable(tmp_path / "table")
    table.optimize.compact()
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=True)
    assert score(photos, tmp_path / "table").rows == 0
    save(photos / "new.png", np.zeros((32, 32, 3), np.uint8))
    assert score(photos, tmp_path / "table").rows == 1
    assert len(rows_in(tmp_path / "table")) == ROWS + 1


def test_another_bundle_needs_a_word_and_gets_partitions(
    score: Score, photos: Path, make_toy_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    score(photos, tmp_path / "table")
    other = make_toy_bundle(tmp_path / "other", name="other")
    with pytest.raises(ScoringError, match=r"was scored with bundle .* Pass --another-bundle"):
        score(photos, tmp_path / "table", bundle=other)
    summary: TableSummary = score(photos, tmp_path / "table", bundle=other, another_bundle=True)
    assert summary.rows == ROWS
    rows = rows_in(tmp_path / "table")
    assert [row["id"] for row in rows] == sorted([*range(ROWS)] * 2)
    assert len(DeltaTable(tmp_path / "table").partitions()) == 2
    assert score(photos, tmp_path / "table", bundle=other).rows == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"alpha": 0.1}, "its alpha is 0.05"), ({"network": "attention"}, "its network is 'full'")],
)
def test_another_job_is_refused(
    score: Score, photos: Path, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    score(photos, tmp_path / "table")
    with pytest.raises(ScoringError, match=sentence):
        score(photos, tmp_path / "table", **change)
    with pytest.raises(ScoringError, match="its SOURCE is"):
        score(photos / "a", tmp_path / "table")


def test_a_table_of_an_older_version_gets_the_columns_it_has_not(score: Score, photos: Path, tmp_path: Path) -> None:
    """Columns are added and are null in the older rows."""
    score(photos, tmp_path / "whole")
    schema = pa.schema(DeltaTable(tmp_path / "whole").schema())
    fields = [field for field in schema if field.name not in ("etag", "mtime_ns")]
    DeltaTable.create(tmp_path / "table", pa.schema(fields), partition_by=["day", "bundle_id"])
    score(photos, tmp_path / "table")
    assert set(pa.schema(DeltaTable(tmp_path / "table").schema()).names) == set(schema.names)
    assert without_times(rows_in(tmp_path / "table")) == without_times(rows_in(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("fields", "partitions", "sentence"),
    [
        ({"x": pa.int64()}, None, "is not partitioned by day and bundle_id"),
        (
            {"id": pa.string(), "day": pa.date32(), "bundle_id": pa.string()},
            ["day", "bundle_id"],
            "column 'id' of type",
        ),
        ({"x": pa.int64(), "day": pa.date32(), "bundle_id": pa.string()}, ["day", "bundle_id"], "it has no ids"),
    ],
)
def test_a_table_of_something_else_is_left_alone(
    score: Score, photos: Path, tmp_path: Path, fields: dict[str, Any], partitions: list[str] | None, sentence: str
) -> None:
    DeltaTable.create(tmp_path / "table", pa.schema(fields), partition_by=partitions)
    before = sorted(tmp_path.joinpath("table").rglob("*"))
    with pytest.raises(ScoringError, match=sentence):
        score(photos, tmp_path / "table")
    assert sorted(tmp_path.joinpath("table").rglob("*")) == before


def test_a_list_keeps_ids_when_it_grows(score: Score, photos: Path, tmp_path: Path) -> None:
    names = ["photos/b/09.png", "photos/a/01.png"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    score(tmp_path / "list.txt", tmp_path / "table")
    first = {row["path"]: row["id"] for row in rows_in(tmp_path / "table")}
    (tmp_path / "list.txt").write_text("\n".join(["photos/a/00.png", *names]))
    assert score(tmp_path / "list.txt", tmp_path / "table").rows == 1
    assert {row["path"]: row["id"] for row in rows_in(tmp_path / "table")} == {**first, "photos/a/00.png": 2}


def test_names_that_are_not_utf8(score: Score, tmp_path: Path, toy_images: np.ndarray) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    name = bytes(folder) + b"/caf\xe9.png"
    save(folder / "plain.png", toy_images[0])
    Image.fromarray(toy_images[1]).save(folder / "x.png")
    os.rename(folder / "x.png", name)
    assert score(folder, tmp_path / "table").errors == 0
    assert [row["path_bytes"] for row in rows_in(tmp_path / "table")] == [name, None]
    assert score(folder, tmp_path / "table").rows == 0


def test_lines_of_a_list_that_no_store_has_are_rows(score: Score, photos: Path, tmp_path: Path) -> None:
    lines = (f"{photos}/a/00.png", f"file://{photos}/a/01.png", "hdfs://lake/a.png", "https://example.org/a.png")
    (tmp_path / "list.txt").write_text("".join(f"{line}\n" for line in lines))
    summary = score(tmp_path / "list.txt", tmp_path / "table")
    assert (summary.rows, summary.errors) == (4, 2)
    said = {row["path"]: row["error"] for row in rows_in(tmp_path / "table")}
    assert [said[line] for line in lines[:2]] == [None, None]
    assert "hdfs:// is no place that is known here" in said[lines[2]]
    assert "https:// is no place that is known here" in said[lines[3]]
    assert score(tmp_path / "list.txt", tmp_path / "table").rows == 2, "a version that knows them may come"
