"""The follower beside a source and a disk that fail now and then: whatever was told is in the database in the end."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bundle import Bundle
from bundle.errors import DiskFull, QuarantineError, ReviewError
from review import follower as module
from review.follower import Follower
from review.sources.quarantine import QuarantineSource
from review.sources.source import Source, open_source
from review.store.database import Database
from review.store.queue import counts
from scoring.local.score import ScoreOptions, score_source
from serving.client.local import LocalInference
from serving.client.prediction import Prediction
from serving.quarantine.store import Folder
from tests.review.conftest import START, write_entry

Answered = list[tuple[bytes, Prediction]]


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Database]:
    """A review of nothing yet."""
    opened = Database.open(tmp_path / "empty.db", source="here", bundle_id="b")
    yield opened
    opened.close()


@pytest.fixture
def scored(quarantine: Path, toy_bundle: Bundle, tmp_path: Path) -> Path:
    """The images of the quarantine as a score folder."""
    score_source(quarantine, LocalInference(toy_bundle, threads=1), tmp_path / "scores", ScoreOptions(network="full"))
    return tmp_path / "scores"


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, problem: Exception, at: int = 1) -> None:
    """Let call number `at` of a function fail."""
    plain: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def failing(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise problem
        return plain(*arguments, **more)

    monkeypatch.setattr(owner, name, failing)


def turn_twice(follower: Follower, kind: type[Exception]) -> int:
    """How many items there are after a turn that fails and one that does not."""
    with pytest.raises(kind):
        follower.turn()
    follower.turn()
    return counts(follower.database).total


@pytest.mark.parametrize("at", [1, 2])
def test_a_full_disk_loses_no_entry(
    quarantine: Path, empty: Database, toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(module, "CHUNK", 40)
    fail_once(monkeypatch, module, "add", DiskFull("no space"), at=at)
    assert turn_twice(Follower(empty, QuarantineSource(str(quarantine)), toy_bundle), DiskFull) == 60


def test_a_store_that_breaks_off_loses_no_entry(
    quarantine: Path, empty: Database, toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, Folder, "files", QuarantineError("it did not answer"), at=2)
    assert turn_twice(Follower(empty, QuarantineSource(str(quarantine)), toy_bundle), ReviewError) == 60


def test_a_busy_database_loses_no_row(
    scored: Path, empty: Database, toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, module, "add", ReviewError("another process is writing"))
    assert turn_twice(Follower(empty, open_source(str(scored), toy_bundle), toy_bundle), ReviewError) == 60


@pytest.mark.parametrize("kind", ["quarantine", "scores"])
def test_a_source_that_is_to_forget_tells_all_again(
    quarantine: Path, scored: Path, toy_bundle: Bundle, kind: str
) -> None:
    source: Source = open_source(str(quarantine if kind == "quarantine" else scored), toy_bundle)
    told = list(source.news())
    assert list(source.news()) == []
    source.forget()
    assert list(source.news()) == told


@pytest.mark.parametrize("name", ["read", "files"])
def test_an_entry_that_could_not_be_read_once_is_told_later(
    tmp_path: Path, answered: Answered, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = write_entry(tmp_path, *answered[0], START)
    source = QuarantineSource(str(tmp_path))
    with monkeypatch.context() as patch:
        if name == "read":
            fail_once(patch, Folder, "read", QuarantineError("it did not answer"))
        else:
            patch.setattr(Folder, "files", lambda self, day: {path.name: 1})  # listed before the image came
        assert list(source.news()) == []
        assert len(source.notices) == 1
    assert len(list(source.news())) == 1
    assert source.notices == []


@pytest.mark.hostile
def test_what_stays_wrong_is_said_once(tmp_path: Path, answered: Answered) -> None:
    write_entry(tmp_path, *answered[0], START).with_suffix(".png").unlink()
    source = QuarantineSource(str(tmp_path))
    for _ in range(3):
        assert list(source.news()) == []
        assert len(source.notices) == 1


@pytest.mark.parametrize("problem", [RuntimeError("what nobody expects\n  at all"), sqlite3.IntegrityError("x")])
def test_what_nobody_expects_is_a_notice_and_the_follower_goes_on(
    quarantine: Path, empty: Database, toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    fail_once(monkeypatch, module, "add", problem)
    follower = Follower(empty, QuarantineSource(str(quarantine)), toy_bundle, seconds=0.2)
    said: set[str] = set()
    follower.start()
    end = time.monotonic() + 30
    while not follower.rounds and follower._thread.is_alive() and time.monotonic() < end:
        said.add(follower.problem)
        time.sleep(0.01)
    follower.stop()
    (sentence,) = said - {""}
    assert type(problem).__name__ in sentence
    assert "it is tried again" in sentence
    assert "\n" not in sentence
    assert counts(empty).total == 60
