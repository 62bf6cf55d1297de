"""The audit log's file: whole lines, few files, whoever takes it away meanwhile."""

import os
import stat
from pathlib import Path

import pytest

from bundle.errors import OptionError
from serving.gateway.rotation import RotatedFile
from tests.serving.disks import fill


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def test_it_is_rotated_by_size_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    file = RotatedFile(path, most_bytes=100, files=3)
    for number in range(40):
        file.append(b"%03d %s\n" % (number, b"x" * 15))  # five of 20 bytes fill a file
    file.close()
    assert sorted(os.listdir(tmp_path)) == ["audit.log", "audit.log.1", "audit.log.2"]
    kept = [line for name in ("audit.log.2", "audit.log.1", "audit.log") for line in lines(tmp_path / name)]
    assert [int(line[:3]) for line in kept] == list(range(25, 40))
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in tmp_path.iterdir())


def test_one_file_begins_anew(tmp_path: Path) -> None:
    file = RotatedFile(tmp_path / "audit.log", most_bytes=100, files=1)
    for number in range(12):
        file.append(b"%03d %s\n" % (number, b"x" * 15))
    assert [int(line[:3]) for line in lines(tmp_path / "audit.log")] == [10, 11]
    assert os.listdir(tmp_path) == ["audit.log"]


def test_a_line_larger_than_a_file_has_one_of_its_own(tmp_path: Path) -> None:
    file = RotatedFile(tmp_path / "audit.log", most_bytes=10, files=3)
    for line in (b"a\n", b"b" * 50 + b"\n", b"c\n"):
        file.append(line)
    assert [lines(tmp_path / name) for name in ("audit.log.2", "audit.log.1", "audit.log")] == [
        [b"a"],
        [b"b" * 50],
        [b"c"],
    ]


def test_who_takes_it_away_gets_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    file = RotatedFile(path, most_bytes=1000, files=3)
    file.append(b"one\n")
    path.rename(tmp_path / "moved")
    file.append(b"two\n")
    path.unlink()
    file.append(b"three\n")
    assert (lines(tmp_path / "moved"), lines(path)) == ([b"one"], [b"three"])


def test_it_goes_on_where_the_last_process_stopped_also_inside_a_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_bytes(b"one\ntw")
    file = RotatedFile(path, most_bytes=1000, files=3)
    file.append(b"three\n")
    assert lines(path) == [b"one", b"tw", b"three"]


def test_a_full_disk_takes_no_half_of_a_line(small_disk: Path) -> None:
    path = small_disk / "audit.log"
    file = RotatedFile(path, most_bytes=10**6, files=3)
    file.append(b"before\n")
    ballast = fill(small_disk, 0)
    with pytest.raises(OSError, match="No space left"):
        file.append(b"x" * 10_000 + b"\n")
    file.append(b"short\n")  # the page that it has already
    ballast.unlink()
    file.append(b"after\n")
    assert lines(path) == [b"before", b"short", b"after"]


def test_a_folder_that_cannot_be_written_to_loses_lines_and_nothing_grows(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    file = RotatedFile(path, most_bytes=50, files=2)
    (tmp_path / "audit.log.1").mkdir()  # what a rename cannot replace, whoever asks
    file.append(b"x" * 40 + b"\n")
    for _ in range(3):
        with pytest.raises(OSError, match="directory"):
            file.append(b"y" * 40 + b"\n")
    assert lines(path) == [b"x" * 40]


@pytest.mark.hostile
def test_what_can_be_no_log_is_a_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    for path, words in (
        (tmp_path, "directory"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "none" / "audit.log", "no such file"),
        (tmp_path / "file" / "audit.log", "not a directory"),
        (Path("/dev/null"), "not a regular file"),
    ):
        with pytest.raises(OptionError, match=f"--audit-log .*{words}"):
            RotatedFile(path, most_bytes=10_000, files=2)
