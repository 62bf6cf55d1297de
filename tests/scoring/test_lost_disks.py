"""Disks that go away and come back, and what they tell of their files: into shards, and into tables."""

import os
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from bundle.errors import ScoringError
from scoring import sources
from scoring.local.jobs import read_state
from scoring.local.score import ScoreOptions, Summary, score_source
from scoring.local.shards import read_scores
from scoring.table.current import Current
from scoring.table.objects import _nanoseconds
from serving.client.local import LocalInference
from tests.scoring.conftest import UNREADABLE, Score, unreadable

ROWS = 22


class Disk:
    """A folder that goes away as soon as a row is there; `mount_point` says that an empty folder stays."""

    def __init__(self, folder: Path, *, mount_point: bool) -> None:
        self.folder, self.away, self.mount_point = folder, folder.with_name("away"), mount_point

    def on_progress(self, done: int, *_: int) -> None:
        if done and not self.away.exists():
            self.folder.rename(self.away)
            if self.mount_point:
                self.folder.mkdir()

    def comes_back(self) -> None:
        if self.mount_point:
            self.folder.rmdir()
        self.away.rename(self.folder)


def into_shards(photos: Path, inference: LocalInference, **changes: object) -> Summary:
    return score_source(photos, inference, photos.with_name("out"), ScoreOptions(batch=1, shard_rows=2), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("mount_point", [False, True])
def test_a_table_waits_for_a_disk(score: Score, photos: Path, tmp_path: Path, mount_point: bool) -> None:
    disk = Disk(photos, mount_point=mount_point)
    with pytest.raises(ScoringError, match=r"photos can no longer be reached .* Bring it back and run the same"):
        score(photos, tmp_path / "table", chunk_rows=2, on_progress=disk.on_progress)
    assert not (tmp_path / "table" / "_delta_log").exists()
    disk.comes_back()
    summary = score(photos, tmp_path / "table", chunk_rows=2)
    assert (summary.rows, summary.errors, summary.runs) == (ROWS, 1, 1)


@pytest.mark.parametrize("mount_point", [False, True])
def test_shards_wait_for_a_disk(photos: Path, inference: LocalInference, tmp_path: Path, mount_point: bool) -> None:
    disk = Disk(photos, mount_point=mount_point)
    with pytest.raises(ScoringError, match="photos can no longer be reached"):
        into_shards(photos, inference, on_progress=disk.on_progress)
    assert read_state(tmp_path / "out").total("errors") == 0
    disk.comes_back()
    assert into_shards(photos, inference).errors == 1


@pytest.mark.parametrize("number", UNREADABLE)
def test_a_table_tries_again_what_was_not_read(
    score: Score, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        unreadable(patch, number, photos / "a" / "03.png", photos / "b" / "12.png")
        assert score(photos, tmp_path / "table").errors == 3
        assert score(photos, tmp_path / "table").errors == 2
    summary = score(photos, tmp_path / "table")
    assert (summary.rows, summary.errors) == (2, 0), "though they have not changed"
    assert score(photos, tmp_path / "table").rows == 0


@pytest.mark.parametrize("number", UNREADABLE)
def test_shards_try_again_what_was_not_read(
    photos: Path, inference: LocalInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        unreadable(patch, number, photos / "a" / "03.png", photos / "b" / "12.png", photos / "b" / "13.png")
        for scored in (ROWS, 3):
            summary = into_shards(photos, inference)
            assert (summary.errors, summary.scored) == (4, scored)
    summary = into_shards(photos, inference)
    assert (summary.errors, summary.scored) == (1, 3), "though they have not changed"
    rows = read_scores(tmp_path / "out").to_pylist()
    assert len(rows) == ROWS
    assert all(row["size"] and row["mtime_ns"] for row in rows)
    assert into_shards(photos, inference).scored == 0


@pytest.mark.parametrize(("told", "kept"), [(10**19, 2**63 - 1), (-(10**19), -(2**63))])
def test_a_time_of_change_that_no_row_can_hold(
    score: Score,
    photos: Path,
    inference: LocalInference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: int,
    kept: int,
) -> None:
    """Of the years 2286 and 1653. Not every disk holds such times, so what this one says is played."""
    odd, stat = photos / "a" / "03.png", os.stat

    def stat_of(path: object, *arguments: object, **more: object) -> object:
        found = stat(path, *arguments, **more)  # type: ignore[arg-type]
        return SimpleNamespace(st_size=found.st_size, st_mtime_ns=told) if path == str(odd) else found

    monkeypatch.setattr(sources, "os", SimpleNamespace(**{**vars(os), "stat": stat_of}))
    assert into_shards(photos, inference).errors == score(photos, tmp_path / "table").errors == 1
    assert into_shards(photos, inference).scored == score(photos, tmp_path / "table").rows == 0
    for rows in (read_scores(tmp_path / "out"), Current.read(str(tmp_path / "table")).dataset.to_table()):
        assert [row["mtime_ns"] for row in rows.to_pylist() if row["path"] == str(odd)] == [kept]


def test_a_time_of_a_store_that_no_row_can_hold() -> None:
    assert _nanoseconds(datetime(9999, 1, 1, tzinfo=UTC)) == 2**63 - 1
    assert _nanoseconds(datetime(1, 1, 1, tzinfo=UTC)) == -(2**63)
