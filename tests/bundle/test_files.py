"""Files and folders that exist whole or not at all: under exceptions, a full disk, Ctrl-C and somebody faster."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import bundle.files
from bundle.errors import DiskFull, OptionError
from bundle.files import (
    atomic_file,
    atomic_folder,
    exchange_texts,
    leftovers,
    open_regular,
    remove_folder,
    scratch,
    sha256_of,
    sha256_of_stream,
    write_text,
)

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1


class Stop(BaseException):
    """Not an Exception, as KeyboardInterrupt is none."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / "large").write_bytes(b"a" * 1_000_000 * 3)
    assert sha256_of(tmp_path / "abc") == ABC
    command = ["sha256sum", tmp_path / "large"]
    assert (
        sha256_of(tmp_path / "large") == subprocess.run(command, capture_output=True, check=True).stdout.decode()[:64]
    )


@pytest.mark.timeout(20)
def test_a_digest_of_no_more_than_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3_000_000))
    for most in (0, 1, 2**20, 2**20 + 1, 2_999_999, 3_000_000, 4_000_000):
        with open_regular(tmp_path / "file") as stream:
            assert sha256_of_stream(stream, most) == hashlib.sha256(bytes(min(most, 3_000_000))).hexdigest()
    with open("/dev/zero", "rb") as endless:
        assert sha256_of_stream(endless, 3_000_000) == sha256_of(tmp_path / "file")


@pytest.mark.timeout(20)
def test_open_regular_opens_nothing_else(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)
    with open_regular(tmp_path / "link") as stream:
        assert stream.read() == b"abc"
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "link", follow=False)


@pytest.mark.timeout(20)
def test_open_regular_asks_the_open_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the question and the answer a file may become a pipe."""
    (tmp_path / "file").write_bytes(b"abc")
    os.mkfifo(tmp_path / "pipe")
    truth = (tmp_path / "file").stat()
    monkeypatch.setattr(Path, "stat", lambda self, **_: truth)
    handles = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "pipe")
    assert len(os.listdir("/proc/self/fd")) == handles


# atomic_file


def test_file_takes_its_name_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "report.json"
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.parent == target.parent, "a rename is atomic only inside one file system"
        assert temporary.name.startswith("."), "and hidden from whoever lists the folder"
    assert target.read_text() == "new"
    assert names(target.parent) == ["report.json"]


@pytest.mark.parametrize("error", [ValueError, Stop, KeyboardInterrupt])
def test_file_keeps_the_old_content_when_the_body_fails(tmp_path: Path, error: type[BaseException]) -> None:
    write_text(tmp_path / "report.json", "old")
    with pytest.raises(error), atomic_file(tmp_path / "report.json") as temporary:
        temporary.write_text("half")
        raise error
    assert (tmp_path / "report.json").read_text() == "old"
    assert names(tmp_path) == ["report.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence(tmp_path: Path, number: int) -> None:
    sentence = r"no space left on the disk while writing .*report\.json\. Free some space"
    with pytest.raises(DiskFull, match=sentence), atomic_file(tmp_path / "report.json") as temporary:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))
    assert names(tmp_path) == []


def test_a_disk_that_is_full_at_the_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Late allocation: every write succeeds, and only the flush says that there was no room."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull):
        write_text(tmp_path / "report.json", "text")
    assert names(tmp_path) == []


def test_a_really_full_disk(tmp_path: Path) -> None:
    """/dev/full answers every write with ENOSPC."""
    with pytest.raises(DiskFull), atomic_file(tmp_path / "report.json") as temporary:
        temporary.symlink_to("/dev/full")
        temporary.write_text("text")
    assert names(tmp_path) == []


def test_the_bytes_are_flushed_before_the_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (order.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("rename"), replace(self, to)))
    write_text(tmp_path / "report.json", "text")
    assert order[0].endswith(".tmp")
    assert order[1:] == ["rename", str(tmp_path)], "and the folder, which holds the name, after it"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def cannot(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", cannot)
    write_text(tmp_path / "report.json", "text")
    assert names(tmp_path) == ["report.json"]


def test_another_disk_error_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        write_text(tmp_path / "report.json", "text")
    assert names(tmp_path) == []


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OptionError, match=r"report\.json is a folder"):
        write_text(tmp_path / "report.json", "text")
    assert names(tmp_path) == ["report.json"]


def test_threads_writing_one_file_do_not_meet(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                write_text(tmp_path / "state.json", str(number) * 10_000)
        except BaseException as problem:
            failures.append(problem)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(set((tmp_path / "state.json").read_text())) == 1, "one writer's text, whole"
    assert names(tmp_path) == ["state.json"]


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127])
def test_the_longest_name_there_is(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "text")
    assert names(tmp_path) == [name]


# A folder for the time being


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_until_a_folder_for_the_time_being_is_gone(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late it comes: hundreds of MB would stay, half removed."""

    def stop(_: int, __: object) -> None:
        raise Stop

    removed, before = shutil.rmtree, signal.signal(number, stop)

    def removed_while_it_comes(*given: object, **options: object) -> None:
        os.kill(os.getpid(), number)
        removed(*given, **options)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "rmtree", removed_while_it_comes)
    try:
        with pytest.raises(Stop), scratch("test") as folder:
            (folder / "model.onnx").write_bytes(b"x")
        with pytest.raises(Stop), atomic_folder(tmp_path / "whole") as temporary:
            (temporary / "model.onnx").write_bytes(b"x")
    finally:
        signal.signal(number, before)
    assert names(tmp_path) == ["whole"]


# atomic_folder


def fill(folder: Path, text: str) -> None:
    (folder / "marker.json").write_text(text)
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text(text)


def test_folder_takes_its_name_at_the_end(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "new" / "bundle") as temporary:
        fill(temporary, "new")
        assert not (tmp_path / "new" / "bundle").exists()
    assert (tmp_path / "new" / "bundle" / "deep" / "file").read_text() == "new"
    assert names(tmp_path / "new") == ["bundle"]


def test_folder_is_as_open_as_any_other(tmp_path: Path) -> None:
    """Whoever serves a bundle is seldom the user who wrote it."""
    (tmp_path / "ordinary").mkdir()
    with atomic_folder(tmp_path / "bundle") as temporary:
        fill(temporary, "new")
    assert (tmp_path / "bundle").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, Stop])
@pytest.mark.parametrize("replace", [False, True])
def test_folder_leaves_nothing_when_the_body_fails(tmp_path: Path, error: type[BaseException], replace: bool) -> None:
    if replace:
        with atomic_folder(tmp_path / "bundle") as temporary:
            fill(temporary, "old")
    with pytest.raises(error), atomic_folder(tmp_path / "bundle", replace=replace) as temporary:
        fill(temporary, "half")
        raise error
    assert names(tmp_path) == (["bundle"] if replace else [])
    assert not replace or (tmp_path / "bundle" / "deep" / "file").read_text() == "old"


def test_an_existing_folder_is_not_touched_without_replace(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(OptionError, match=r"bundle exists already\. .* --force"), atomic_folder(tmp_path / "bundle"):
        pytest.fail("the body must not run: it may take hours")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(OptionError, match="exists already"), atomic_folder(tmp_path / "dangling"):
        pytest.fail("the body must not run")


def test_somebody_faster_keeps_the_name(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="exists already"), atomic_folder(tmp_path / "bundle") as temporary:
        fill(temporary, "slow")
        (tmp_path / "bundle").mkdir()
        fill(tmp_path / "bundle", "fast")
    assert (tmp_path / "bundle" / "marker.json").read_text() == "fast"
    assert names(tmp_path) == ["bundle"]


def test_replace_exchanges_everything(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "bundle", replace=True, marker="marker.json") as temporary:
            fill(temporary, text)
            (temporary / text).touch()
    assert names(tmp_path) == ["bundle"]
    assert names(tmp_path / "bundle") == ["deep", "marker.json", "new"]


@pytest.mark.parametrize("spelling", ["precious", "precious/", "precious/../precious", "{absolute}", "."])
def test_replace_spares_what_was_made_by_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    """`--out . --force` in the home folder must not empty it."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    monkeypatch.chdir(tmp_path / "precious" if spelling == "." else tmp_path)
    path = Path(spelling.format(absolute=tmp_path / "precious"))
    with (
        pytest.raises(OptionError, match=r"holds other things and no marker\.json, so it is not replaced"),
        atomic_folder(path, replace=True, marker="marker.json"),
    ):
        pytest.fail("the body must not run")
    assert names(tmp_path / "precious") == ["thesis.tex"]


def test_replace_takes_an_empty_folder_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty", replace=True, marker="marker.json") as temporary:
        fill(temporary, "new")
    assert names(tmp_path / "empty") == ["deep", "marker.json"]
    (tmp_path / "file").write_text("text")
    with pytest.raises(OptionError, match="not a folder"), atomic_folder(tmp_path / "file", replace=True):
        pytest.fail("the body must not run")


def test_replacing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    """`current -> v1` becomes a folder of its own; v1 stays as it was."""
    (tmp_path / "v1").mkdir()
    fill(tmp_path / "v1", "old")
    (tmp_path / "current").symlink_to("v1")
    with atomic_folder(tmp_path / "current", replace=True, marker="marker.json") as temporary:
        fill(temporary, "new")
    assert not (tmp_path / "current").is_symlink()
    assert (tmp_path / "current" / "marker.json").read_text() == "new"
    assert (tmp_path / "v1" / "marker.json").read_text() == "old"
    assert names(tmp_path) == ["current", "v1"]


@pytest.mark.parametrize("moment", [1, 2])
def test_stopped_in_the_middle_of_replacing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """The old folder comes back, whichever of the two renames is interrupted."""
    (tmp_path / "bundle").mkdir()
    fill(tmp_path / "bundle", "old")
    calls: list[Path] = []
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == moment:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "bundle", replace=True) as temporary:
        fill(temporary, "new")
    assert names(tmp_path) == ["bundle"]
    assert (tmp_path / "bundle" / "deep" / "file").read_text() == "old"


def test_a_full_disk_while_filling_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="bundle"), atomic_folder(tmp_path / "bundle") as temporary:
        fill(temporary, "new")
        shutil.copyfile("/dev/null", temporary / "empty")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_a_folder_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OptionError, match="exists already"), atomic_folder(Path(".")):
        pytest.fail("the body must not run")


def test_the_folder_one_stands_in_can_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    fill(tmp_path / "here", "old")
    monkeypatch.chdir(tmp_path / "here")
    with atomic_folder(Path("."), replace=True, marker="marker.json") as temporary:
        fill(temporary, "new")
    assert names(tmp_path) == ["here"]
    assert (tmp_path / "here" / "marker.json").read_text() == "new"


KILLED: dict[str, Callable[[int], None]] = {
    "Ctrl-C": lambda pid: os.kill(pid, signal.SIGINT),
    "SIGTERM": lambda pid: os.kill(pid, signal.SIGTERM),
    "SIGKILL": lambda pid: os.kill(pid, signal.SIGKILL),
}


@pytest.mark.parametrize("way", KILLED)
def test_a_killed_process_leaves_no_folder_of_that_name(tmp_path: Path, way: str) -> None:
    """SIGKILL may leave hidden litter; nothing that a later run would take for whole."""
    script = """
import pathlib, sys, time, fieldmark
from bundle.files import atomic_folder
fieldmark._clean_up_on_sigterm()
with atomic_folder(pathlib.Path(sys.argv[1])) as folder:
    (folder / "manifest.json").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "bundle"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with process:
        assert process.stdout
        process.stdout.readline()
        KILLED[way](process.pid)
    assert process.returncode == {"Ctrl-C": -2, "SIGTERM": 143, "SIGKILL": -9}[way]
    assert [name for name in names(tmp_path) if not name.startswith(".")] == []
    if way != "SIGKILL":
        assert names(tmp_path) == []


def test_temporary_names_differ() -> None:
    made = {bundle.files._beside(Path("a/b")).name for _ in range(100)}
    assert len(made) == 100


def test_texts_are_exchanged_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever flush finds a full disk; the last two are of the folders, when all is exchanged."""
    paths = [tmp_path / "a" / "text", tmp_path / "b" / "text"]
    flush, flushes, seen = os.fsync, 0, set()

    def fsync(handle: int) -> None:
        nonlocal flushes
        flushes += 1
        if flushes == fatal:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    for path in paths:
        path.parent.mkdir()
    for fatal in (0, 1, 2, 3, 4):
        flushes = 0
        for path in paths:
            path.write_text("old")
        if fatal:
            with pytest.raises(OSError, match="No space left"):
                exchange_texts(dict.fromkeys(paths, "nëw"))
        else:
            exchange_texts(dict.fromkeys(paths, "nëw"))
        found = {path.read_text(encoding="utf-8") for path in paths}
        seen |= {(fatal, *found)}
        assert [names(path.parent) for path in paths] == [["text"], ["text"]]
    assert seen == {(0, "nëw"), (1, "old"), (2, "old"), (3, "nëw"), (4, "nëw")}


def test_a_folder_that_cannot_be_removed_whole_has_lost_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(Stop()))
    with pytest.raises(Stop):
        remove_folder(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    monkeypatch.undo()
    (left,) = leftovers(tmp_path)
    assert (left / "b").is_dir()
    remove_folder(left)
    assert names(tmp_path) == []


def test_leftovers_are_temporary_names_and_no_others(tmp_path: Path) -> None:
    for name in (".hidden", "a.tmp", ".a.tmp", ".a.123.tmp", "..a", "folder"):
        (tmp_path / name).touch()
    with pytest.raises(Stop), atomic_file(tmp_path / "a\nb") as temporary:
        temporary.touch()
        assert leftovers(tmp_path) == [temporary]
        raise Stop
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", ["a" * 300, "/".join(["b"] * 3000)])
def test_a_name_that_no_disk_takes_is_told_before_the_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"cannot be made: \d+ bytes of a name are too long"):
        bundle.files.check_free(tmp_path / name)
    bundle.files.check_free(tmp_path / ("a" * 250))
