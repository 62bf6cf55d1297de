"""One source is one table however it is spelt, and what has no score in it is a list that `score` takes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bundle import Bundle
from scoring.table.failures import FAILED
from tests.scoring.conftest import Score

ROWS = 22


@pytest.fixture
def here(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which `photos` and `lists` are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    return tmp_path


def test_a_folder_by_any_of_its_names_is_the_same(score: Score, here: Path) -> None:
    assert score("photos", "table").rows == ROWS
    for name in ("photos", "./photos/", "lists/../photos", here / "photos", f"file://{here}/photos"):
        assert score(name, "table").rows == 0, name


def sources(here: Path) -> dict[str, Path]:
    """One of each kind, by a relative name; those that lie in a folder name files from there."""
    names = sorted(path.relative_to(here) for path in (here / "photos").rglob("*.png") if path.name[0] != ".")
    (here / "lists" / "list.txt").write_text("".join(f"../{name}\n" for name in names))
    lines = "".join(f"{number},../{name}\n" for number, name in enumerate(names))
    (here / "lists" / "all.csv").write_text(f"id,path\n{lines}")
    return {"folder": Path("photos"), "list": Path("lists/list.txt"), "catalogue": Path("lists/all.csv")}


@pytest.mark.parametrize("kind", ["folder", "list", "catalogue"])
def test_what_failed_is_a_source(score: Score, here: Path, kind: str) -> None:
    assert score(sources(here)[kind], "table").unscored == 1
    (line,) = Path("table", FAILED).read_text().splitlines()
    assert os.path.isabs(line)
    assert os.path.normpath(line) == str(here / "photos" / "b" / "broken.png")
    shutil.copy("photos/noise.png", "photos/b/broken.png")
    again = score(Path("table", FAILED), "second")
    assert (again.rows, again.errors) == (1, 0)


def test_the_list_is_of_all_runs_and_goes_with_the_last(score: Score, here: Path) -> None:
    score("photos", "table")
    broken, other = here / "photos" / "b" / "broken.png", here / "photos" / "a" / "99.png"
    other.write_bytes(b"no image")
    summary = score("photos", "table")
    assert (summary.errors, summary.unscored) == (1, 2)
    assert Path("table", FAILED).read_text() == f"{other}\n{broken}\n"
    shutil.copy("photos/noise.png", broken)
    assert score("photos", "table").unscored == 1
    assert Path("table", FAILED).read_text() == f"{other}\n"
    other.unlink()
    summary = score("photos", "table")
    assert (summary.unscored, summary.failed_list) == (0, None)
    assert not Path("table", FAILED).exists()


def test_the_list_is_true_whatever_a_run_before_has_left(
    score: Score, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died behind its commit; or it was of a version that never took a list away."""
    with monkeypatch.context() as patch:
        patch.setattr("scoring.table.job.list_failed", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            score("photos", "table")
    assert not Path("table", FAILED).exists()
    assert score("photos", "table").unscored == 1
    shutil.copy("photos/noise.png", "photos/b/broken.png")
    score("photos", "table")
    Path("table", FAILED).write_text("photos/b/broken.png\n")
    assert score("photos", "table").unscored == 0
    assert not Path("table", FAILED).exists()


def test_the_exit_code_tells_of_files_that_failed_before(toy_bundle: Bundle, here: Path) -> None:
    command = [sys.executable, "-m", "fieldmark", "score", "photos", "--bundle", toy_bundle.path, "--table", "table"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2))
    assert (first.returncode, second.returncode) == (4, 4)
    assert "Nothing is new or has changed" in second.stdout
    said = " ".join(second.stderr.split())
    assert said == f"1 of earlier runs could not be scored; all are listed in {here / 'table' / FAILED}"
    shutil.copy("photos/noise.png", "photos/b/broken.png")
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_name_with_a_line_break_has_no_line_and_is_counted(score: Score, here: Path) -> None:
    shutil.copy("photos/noise.png", "photos/b/broken.png")
    Path("photos", "line\nbreak.png").write_bytes(b"no image")
    for _ in range(2):
        assert score("photos", "table").unscored == 1
        assert Path("table", FAILED).read_text() == ""
