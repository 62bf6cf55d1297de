"""Decisions: added and never changed, undone by another row, whole on the disk whatever happens to the process."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import DiskFull, OptionError, ReviewError
from review.store.agreement import agreements, precisions
from review.store.database import Database
from review.store.decisions import UNDONE, VERDICTS, decide, history, newest, standing, strokes, undo
from review.store.queue import add, counts, get
from tests.review.items import make_item, make_items


@pytest.fixture
def review(tmp_path: Path) -> Database:
    opened = Database.open(tmp_path / "review.db", source="here", bundle_id="b")
    add(opened, make_items(12))
    return opened


def state(review: Database, item: int) -> str:
    row = get(review, item)
    assert row is not None
    return str(row["state"])


def test_a_decision_says_who_and_when_and_can_be_undone(review: Database) -> None:
    done = decide(review, [3], "attack", "ada", note="stripes")
    (row,) = standing(review, 3)
    assert (row["reviewer"], row["verdict"], row["note"]) == ("ada", "attack", "stripes")
    assert row["at"].endswith("+00:00")
    assert state(review, 3) == "attack"
    assert undo(review, "ada", done.stroke).items == (3,)
    assert state(review, 3) == "waiting"
    assert [(each["verdict"], each["undone"]) for each in history(review, 3)] == [("attack", 1)]


def test_an_undo_brings_back_what_one_said_before(review: Database) -> None:
    decide(review, [3], "unsure", "ada")
    decide(review, [3], "clean", "ada")
    assert state(review, 3) == "clean"
    undo(review, "ada")
    assert state(review, 3) == "unsure"
    undo(review, "ada")
    assert state(review, 3) == "waiting"
    with pytest.raises(OptionError, match="nothing of yours to undo"):
        undo(review, "ada")


def test_nobody_undoes_what_another_did(review: Database) -> None:
    done = decide(review, [3], "attack", "ada")
    with pytest.raises(OptionError, match="nothing of yours"):
        undo(review, "bob", done.stroke)
    assert state(review, 3) == "attack"


def test_a_stroke_over_a_group_is_undone_as_a_whole(review: Database) -> None:
    decide(review, [2], "clean", "ada")
    decide(review, [1, 2, 3, 4], "attack", "ada")
    assert len(undo(review, "ada").items) == 4
    assert [state(review, item) for item in (1, 2, 3, 4)] == ["waiting", "clean", "waiting", "waiting"]


def test_two_who_differ_leave_it_disputed_until_they_agree(review: Database) -> None:
    decide(review, [5], "attack", "ada")
    decide(review, [5], "clean", "bob")
    assert state(review, 5) == "disputed"
    decide(review, [5], "attack", "bob")
    assert state(review, 5) == "attack"


def test_who_is_unsure_leaves_it_to_the_others(review: Database) -> None:
    decide(review, [5], "unsure", "ada")
    decide(review, [5], "clean", "bob")
    assert state(review, 5) == "clean"
    decide(review, [5], "attack", "cyd")
    assert state(review, 5) == "disputed"
    undo(review, "cyd")
    undo(review, "bob")
    assert state(review, 5) == "unsure"


def test_the_second_sees_that_it_was_decided_and_nothing_is_overwritten(review: Database) -> None:
    with review.reading() as connection:
        seen = newest(connection)
    decide(review, [1, 2], "attack", "ada", seen=seen)
    late = decide(review, [2, 3], "clean", "bob", seen=seen)
    assert late.items == (3,)
    assert [(row["item"], row["reviewer"], row["verdict"]) for row in late.missed] == [(2, "ada", "attack")]
    assert state(review, 2) == "attack"
    assert decide(review, [2], "clean", "bob").items == (2,)  # a second opinion, asked for
    assert state(review, 2) == "disputed"


def test_what_one_has_said_oneself_is_no_surprise(review: Database) -> None:
    decide(review, [1], "attack", "ada", seen=0)
    assert decide(review, [1], "clean", "ada", seen=0).items == (1,)


def test_no_hand_can_change_a_decision(review: Database) -> None:
    decide(review, [1], "attack", "ada")
    for statement in ("UPDATE decisions SET verdict = 'clean'", "DELETE FROM decisions"):
        with pytest.raises(sqlite3.IntegrityError, match="only ever added"), review.writing() as connection:
            connection.execute(statement)
    assert state(review, 1) == "attack"


@pytest.mark.parametrize(("verdict", "note"), [("guilty", ""), (UNDONE, ""), ("clean", "x" * 2001)])
def test_what_is_no_decision_is_refused_and_nothing_recorded(review: Database, verdict: str, note: str) -> None:
    with pytest.raises(OptionError):
        decide(review, [1], verdict, "ada", note=note)
    assert counts(review).decided == 0


ACTS = st.lists(
    st.tuples(st.sampled_from(["ada", "bob"]), st.integers(1, 3), st.sampled_from([*VERDICTS, UNDONE])), max_size=25
)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(ACTS)
def test_what_stands_is_what_a_naive_reader_of_all_rows_would_say(acts: list[tuple[str, int, str]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        review = Database.open(Path(folder) / "r.db", source="here", bundle_id="b")
        add(review, make_items(3))
        stacks: dict[str, list[tuple[int, str]]] = {"ada": [], "bob": []}
        for who, item, verdict in acts:
            if verdict != UNDONE:
                decide(review, [item], verdict, who)
                stacks[who].append((item, verdict))
            elif stacks[who]:
                undo(review, who)
                stacks[who].pop()
        for item in (1, 2, 3):
            said = {who: [verdict for each, verdict in stack if each == item][-1:] for who, stack in stacks.items()}
            found = {verdict for last in said.values() for verdict in last}
            sure = found - {"unsure"}
            expected = "disputed" if len(sure) > 1 else sure.pop() if sure else "unsure" if found else "waiting"
            assert state(review, item) == expected
        review.close()


def test_a_full_disk_loses_this_decision_and_no_other(review: Database) -> None:
    decide(review, [1], "attack", "ada", note="kept")
    with review.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    review._connection().execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFull, match="was not recorded"):
        for number in range(2, 13):
            decide(review, [number], "clean", "ada", note="n" * 2000)
    refused = number
    assert state(review, 1) == "attack"
    assert state(review, refused) == "waiting"
    review._connection().execute("PRAGMA max_page_count = 1000000")
    decide(review, [refused], "clean", "ada")
    assert state(review, refused) == "clean"


WORKER = """
import sys
from pathlib import Path
from review.store.database import Database
from review.store.decisions import decide
review = Database.open(Path(sys.argv[1]))
for number in range(1, int(sys.argv[3]) + 1):
    decide(review, [number], "attack", sys.argv[2])
    print(number, flush=True)
"""


def worker(path: Path, who: str, items: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WORKER, str(path), who, str(items)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "review.db"
    review = Database.open(path, source="here", bundle_id="b")
    add(review, make_items(4000))
    process = worker(path, "ada", 4000)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline() for _ in range(25)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += process.stdout.readlines()
    process.wait()
    last = max(int(line) for line in acknowledged if line.endswith("\n"))
    again = Database.open(path)
    with again.reading() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        kept = {row[0] for row in connection.execute("SELECT item FROM decisions")}
        stand = {row[0] for row in connection.execute("SELECT item FROM standing")}
        states = {row[0] for row in connection.execute("SELECT id FROM items WHERE state = 'attack'")}
    assert set(range(1, last + 1)) <= kept <= set(range(1, last + 2))
    assert kept == stand == states


def test_two_processes_write_at_once_and_both_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "review.db"
    review = Database.open(path, source="here", bundle_id="b")
    add(review, make_items(60))
    both = [worker(path, who, 60) for who in ("ada", "bob")]
    for process in both:
        process.communicate(timeout=60)
        assert process.returncode == 0
    (found,) = agreements(review)
    assert (found.first, found.second, found.both, found.agreed) == ("ada", "bob", 60, 60)


def test_another_writer_is_waited_for_and_then_named(review: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("review.store.database.PATIENCE", 0.1)
    other = Database(review.path)
    with review.writing(), pytest.raises(ReviewError, match="another process is writing"):
        decide(other, [1], "clean", "bob")
    assert decide(other, [1], "clean", "bob").items == (1,)


def test_agreement_is_cohens(review: Database) -> None:
    pairs = [("attack", "attack")] * 4 + [("clean", "clean")] * 3 + [("attack", "clean")] * 2 + [("unsure", "clean")]
    for item, (one, other) in enumerate(pairs, start=1):
        decide(review, [item], one, "ada")
        decide(review, [item], other, "bob")
    (found,) = agreements(review)
    chance = (6 * 4 + 3 * 6 + 1 * 0) / 100
    assert found.kappa == pytest.approx((0.7 - chance) / (1 - chance))
    assert found.table["attack", "clean"] == 2


def test_precision_counts_what_is_agreed_upon(review: Database) -> None:
    decide(review, [1, 2, 3], "attack", "ada")
    decide(review, [4], "fault", "ada")
    decide(review, [5], "unsure", "ada")
    decide(review, [3], "clean", "bob")
    (day,) = precisions(review)
    assert (day.flagged, day.decided, day.attacks) == (12, 3, 2)
    assert day.interval[0] < 2 / 3 < day.interval[1]


def test_the_log_of_strokes_is_the_latest_first(review: Database) -> None:
    decide(review, [1, 2], "attack", "ada", note="both")
    time.sleep(0.002)
    decide(review, [3], "clean", "bob")
    undo(review, "bob")
    assert [(row["reviewer"], row["items"], row["undone"]) for row in strokes(review)] == [("bob", 1, 1), ("ada", 2, 0)]


def test_files_that_are_no_review_are_refused_in_a_sentence(tmp_path: Path, review: Database) -> None:
    (tmp_path / "text.db").write_text("not a database, and longer than the header that SQLite looks at first " * 30)
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (a)")
    with pytest.raises(ReviewError, match="is no database, or is damaged"):
        Database.open(tmp_path / "text.db", source="here")
    with pytest.raises(ReviewError, match="is a database, and no review"):
        Database.open(tmp_path / "other.db", source="here")
    with pytest.raises(ReviewError, match="is the review of here, and this is there"):
        Database.open(review.path, source="there")
    with pytest.raises(ReviewError, match="there is no review at"):
        Database.open(tmp_path / "none.db")
    with pytest.raises(ReviewError, match="is a folder"):
        Database.open(tmp_path, source="here")
    with review.writing() as connection:
        connection.execute("UPDATE facts SET value = '3' WHERE name = 'format'")
    with pytest.raises(ReviewError, match=r"format 3.*Upgrade fieldmark"):
        Database.open(review.path, source="here")


def test_the_file_is_for_the_reviewer_alone(review: Database) -> None:
    assert review.path.stat().st_mode & 0o077 == 0


def test_an_item_is_what_it_says() -> None:
    for changes in (
        {"p_value": 1.5},
        {"reason": "boredom"},
        {"reason": "sample", "drawn": False},
        {"received": "yesterday"},
        {"alpha": 0.0},
    ):
        with pytest.raises(ValueError, match=r"\S"):
            make_item(1, **changes)
