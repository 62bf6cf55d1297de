"""The verb as a person types it: a real process, a real quarantine; and the way back into a calibration."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import fieldmark
from bundle import Bundle
from review.handover import clean_files
from review.sources.quarantine import QuarantineSource
from review.sources.source import Stamp
from review.store.database import Database
from review.store.decisions import decide
from review.store.sample import draw


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[Any, str, str]:
    code: Any = 0
    try:
        fieldmark.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_console_answers_and_ends_when_it_is_told(
    quarantine: Path, toy_bundle: Bundle, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "fieldmark", "review", quarantine, "--bundle", toy_bundle.path, "--json"]
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    facts = json.loads(process.stdout.readline())
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with opener.open(facts["url"]) as page:
        assert b"Fieldmark review" in page.read()
    other = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    with opener.open(json.loads(other.stdout.readline())["url"]) as page:
        assert b"Another console has this review open" in page.read()
    lock = Path(f"{quarantine}-review.db-console")
    assert lock.stat().st_mode & 0o077 == 0
    other.terminate()
    other.wait(timeout=60)
    assert lock.exists()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert facts["database"] == f"{quarantine}-review.db"
    assert not lock.exists()
    assert Path(facts["database"]).stat().st_mode & 0o077 == 0


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--export", "csv"], "--export and --out belong together"),
        (["--export", "coco", "--out", "OUT"], "there is no format 'coco'"),
        (["--db", "FOLDER"], "is a folder"),
        (["--reviewer", "ada", "--behind-envoy", "review.example"], "--behind-envoy that keys do"),
        (["--behind-envoy", "https://review.example"], "is no name that browsers call"),
    ],
)
def test_bad_options_are_a_sentence(
    quarantine: Path, toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str],
    sentence: str,
) -> None:  # fmt: skip
    words = [
        str(tmp_path / "out") if word == "OUT" else str(tmp_path) if word == "FOLDER" else word for word in options
    ]
    code, _, err = run(capsys, "review", quarantine, "--bundle", toy_bundle.path, *words)
    assert code in (1, 2)
    assert re.search(sentence, err)


def test_a_port_in_use_is_a_sentence(quarantine: Path, toy_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, _, err = run(capsys, "review", quarantine, "--bundle", toy_bundle.path, "--port", port)
    assert code == 2
    assert f"port {port} cannot be used" in err


def test_a_store_needs_a_place_for_decisions(toy_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "review", "s3://bucket/place", "--bundle", toy_bundle.path)
    assert code == 2
    assert "decisions need a place" in err


def test_what_is_decided_goes_out_without_a_browser(
    database: Database, quarantine: Path, toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    review = Database.open(tmp_path / "r.db", source=str(quarantine), bundle_id="b")
    review.close()
    out = tmp_path / "review.csv"
    common = ("review", quarantine, "--bundle", toy_bundle.path, "--db", tmp_path / "r.db")
    code, said, _ = run(capsys, *common, "--export", "csv", "--out", out)
    assert (code, said) == (0, f"csv: {out}\n")
    assert out.read_text().startswith("key,image,received")


@pytest.fixture
def decided(tmp_path: Path, database: Database) -> Database:
    drawn = draw(database, 1000, "ada")
    with database.reading() as connection:
        rows = connection.execute(
            "SELECT items.id, origin FROM sampled JOIN items ON items.id = item WHERE sample = ?", [drawn.number]
        ).fetchall()
    decide(database, [row["id"] for row in rows if row["origin"] == "shop"], "clean", "ada")
    decide(database, [row["id"] for row in rows if row["origin"] != "shop"], "attack", "ada")
    return database


def test_clean_ones_of_a_sample_are_handed_over_byte_for_byte(
    decided: Database, toy_bundle: Bundle, quarantine: Path
) -> None:
    source = QuarantineSource(str(quarantine))
    with decided.reading() as connection:
        place = connection.execute("SELECT value FROM facts WHERE name = 'source'").fetchone()[0]
        rows = connection.execute("SELECT id, image FROM items WHERE state = 'clean'").fetchall()
    assert place == str(quarantine)
    gone = quarantine / rows[0]["image"].decode()
    wanted = sorted(source.read(row["image"].decode(), 10**6, Stamp()) for row in rows[1:])
    gone.unlink()
    with clean_files(decided.path, toy_bundle) as handed:
        assert sorted(path.read_bytes() for path in handed.paths) == wanted
        assert handed.name == "review review.db, sample 1"
        assert re.fullmatch(r"\d+ attacks, 1 that are gone", handed.left_out)
        handed.taken("made")
    assert not handed.paths[0].exists()
    with decided.reading() as connection:
        assert connection.execute("SELECT count(*) FROM uses WHERE made = 'made'").fetchone()[0] == len(wanted)


def test_a_review_without_a_whole_sample_calibrates_nothing(
    database: Database, toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("calibrate", toy_bundle.path, "--from-review", database.path, "--out", tmp_path / "out")
    code, _, err = run(capsys, *command)
    assert code == 1
    assert err.startswith("error: nothing is decided yet. In 'fieldmark review', draw a random sample")
    decide(database, list(range(1, 41)), "clean", "ada")
    code, _, err = run(capsys, *command)
    assert code == 1
    assert "none of them was drawn at random" in " ".join(err.split())
    draw(database, 30, "ada")
    with database.writing() as connection:
        item = connection.execute("SELECT item FROM sampled LIMIT 1").fetchone()[0]
    decide(database, [item], "unsure", "ada")
    code, _, err = run(capsys, *command)
    assert code == 1
    assert "would choose by score again" in " ".join(err.split())
    assert not (tmp_path / "out").exists()
    for words in ((), ("--with", tmp_path, "--from-review", database.path)):
        code, _, err = run(capsys, "calibrate", toy_bundle.path, *words, "--out", tmp_path / "out")
        assert code == 2
        assert "one of --with and --from-review" in err
    words = ("--with", tmp_path, "--images", tmp_path)
    code, _, err = run(capsys, "calibrate", toy_bundle.path, *words, "--out", tmp_path / "out")
    assert code == 2
    assert "--images belongs to --from-review" in err


def test_a_calibration_that_fails_leaves_no_database_open(decided: Database, toy_bundle: Bundle) -> None:
    with pytest.raises(KeyboardInterrupt), clean_files(decided.path, toy_bundle) as handed:
        assert handed.paths
        raise KeyboardInterrupt
    assert handed.database._own.connection is None
