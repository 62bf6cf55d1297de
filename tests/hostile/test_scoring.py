"""Offline scoring of bad files and lists, into bad folders and full disks: rows or a sentence, never a traceback."""

import errno
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle import Bundle
from bundle.errors import DiskFull, InputError, ScoringError
from scoring.local.jobs import STATE, read_state
from scoring.local.score import ScoreOptions, score_source
from scoring.local.shards import read_scores
from scoring.sources import MAX_LINE_BYTES, Source
from serving.client.local import LocalInference

pytestmark = pytest.mark.hostile

CLI = [sys.executable, "-m", "fieldmark", "score"]
OPTIONS = ScoreOptions(shard_rows=4, batch=3, workers=2)


@pytest.fixture(scope="module")
def inference(toy_bundle: Bundle) -> LocalInference:
    return LocalInference(toy_bundle, threads=1)


@pytest.fixture
def photos(toy_images: np.ndarray, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, image in enumerate(toy_images):
        Image.fromarray(image).save(folder / f"photo-{index:02}.png")
    return folder


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*CLI, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def assert_sentence(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and holds none of them."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))


def hostile_files(good: bytes) -> dict[str, Callable[[Path], object]]:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    return {
        "animated.gif": lambda path: frames[0].save(path, save_all=True, append_images=frames[1:]),
        "broken-link.jpg": lambda path: path.symlink_to("nowhere"),
        "cut.png": lambda path: path.write_bytes(good[: len(good) // 2]),
        "empty.jpg": lambda path: path.write_bytes(b""),
        "fifo.jpg": os.mkfifo,
        "huge.png": lambda path: path.write_bytes(png_header(30_000, 30_000)),
        "link-to-itself.png": lambda path: path.symlink_to(path),
        "long" + "g" * 247 + ".png": lambda path: path.write_bytes(b"x"),
        "one-pixel.png": lambda path: Image.new("RGB", (1, 1)).save(path),
        "text.jpg": lambda path: path.write_text("not an image\n"),
        "[bold]markup[red].jpg": lambda path: path.write_text("not an image\n"),
        "line\nbreak.jpg": lambda path: path.write_text("not an image\n"),
    }


def test_every_hostile_file_is_an_error_row_and_the_job_goes_on(
    photos: Path, inference: LocalInference, tmp_path: Path
) -> None:
    made = hostile_files((photos / "photo-00.png").read_bytes())
    for name, make in made.items():
        make(photos / name)
    summary = score_source(photos, inference, tmp_path / "out", OPTIONS)
    rows = read_scores(tmp_path / "out").to_pylist()
    assert (summary.rows, summary.errors) == (20 + len(made), len(made))
    failed = {Path(row["path"]).name: row for row in rows if row["status"] == "error"}
    assert set(failed) == set(made)
    for name, row in failed.items():
        assert name in row["error"]
        assert "Traceback" not in row["error"]
        answers = ("label", "probability", "instance_score", "p_value", "is_adversarial", "layer_scores")
        assert [row[answer] for answer in answers] == [None] * len(answers)
        assert row["bundle_id"] == inference.bundle_id


def test_a_folder_of_nothing_but_broken_files_is_scored(inference: LocalInference, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(9):
        (tmp_path / "photos" / f"{index}.jpg").write_bytes(b"x")
    summary = score_source(tmp_path / "photos", inference, tmp_path / "out", OPTIONS)
    assert (summary.rows, summary.errors, summary.flagged) == (9, 9, 0)
    done = run(tmp_path / "photos", "--bundle", inference.bundle.path, "--out", tmp_path / "out2")
    assert done.returncode == 1, "all of them failed"
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 9


# sources


def test_no_such_source(toy_bundle: Bundle, tmp_path: Path) -> None:
    done = run(tmp_path / "gone", "--bundle", toy_bundle.path, "--out", tmp_path / "out")
    assert_sentence(done, "there is no folder or list file at", "gone")
    assert not (tmp_path / "out").exists()


def test_no_such_bundle(photos: Path, tmp_path: Path) -> None:
    done = run(photos, "--bundle", tmp_path / "gone", "--out", tmp_path / "out")
    assert_sentence(done, "there is no bundle at", "gone")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.txt", b"", "names no images"),
        ("blank.txt", b"\n\n   \n", "names no images"),
        ("image.png", b"any", "is not a list of paths"),
        ("utf16.txt", "bird.png\n".encode("utf-16"), "is not a list of paths"),
        ("binary.bin", bytes(range(256)) * 8, "is not a list of paths"),
    ],
)
def test_a_file_that_is_no_list(
    inference: LocalInference, tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        score_source(tmp_path / name, inference, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_pipe_is_no_list(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="neither a folder nor a regular file"):
        Source.open(tmp_path / "pipe")


def test_a_line_without_end_is_a_sentence(inference: LocalInference, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"bird.png\n" + b"x" * (MAX_LINE_BYTES + 1))
    with pytest.raises(InputError, match=r"line 2 is longer than 65,536 bytes"):
        score_source(tmp_path / "list.txt", inference, tmp_path / "out", OPTIONS)


def test_lines_that_no_file_can_have_are_rows(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    lines = [b"photos/photo-00.png", b"x" * 5000, b"..", b"photos", b"/", b"a" * 4200 + b"\0b"]
    (tmp_path / "list.txt").write_bytes(b"\n".join(lines))
    summary = score_source(tmp_path / "list.txt", inference, tmp_path / "out", OPTIONS)
    rows = read_scores(tmp_path / "out").to_pylist()
    assert [row["path"] for row in rows] == [line.decode() for line in lines]
    assert [row["status"] for row in rows] == ["ok"] + ["error"] * 5
    assert summary.errors == 5


# outputs


def test_the_output_is_a_file(photos: Path, toy_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    done = run(photos, "--bundle", toy_bundle.path, "--out", tmp_path / "out")
    assert_sentence(done, "cannot write", "(File exists)", "another --out")
    assert (tmp_path / "out").read_text() == "mine"


def test_the_output_holds_someone_elses_parts(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-000000.parquet").write_bytes(b"precious")
    for restart in (False, True):
        with pytest.raises(ScoringError, match=f"holds part-000000.parquet, but no {STATE}"):
            score_source(photos, inference, tmp_path / "out", ScoreOptions(restart=restart))
    assert (tmp_path / "out" / "part-000000.parquet").read_bytes() == b"precious"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": "2"}',
        '{"format": 2}',
        "\ud800".encode("utf-8", "surrogatepass"),
        "[" * 100_000,
        '{"format": 2, "version": "1", "job": {}, "shards": []}',
        '{"format": 1, "version": "1", "shards": [], "job": {"source": "a", "source_at": "b", "bundle_id": "c", '
        '"network": "full", "alpha": 0.1, "shard_rows": 4}}',
        '{"format": 99}',
    ],
)
def test_a_damaged_state_is_a_sentence_and_can_be_restarted(
    photos: Path, inference: LocalInference, tmp_path: Path, text: str | bytes
) -> None:
    score_source(photos, inference, tmp_path / "out", OPTIONS)
    (tmp_path / "out" / STATE).write_bytes(text.encode() if isinstance(text, str) else text)
    sentence = r"is damaged|was scored by another version of fieldmark: its format is (1|99), and this one reads 2"
    with pytest.raises(ScoringError, match=rf"({sentence}).*--restart") as caught:
        score_source(photos, inference, tmp_path / "out", OPTIONS)
    assert "\n" not in str(caught.value)
    with pytest.raises(ScoringError, match=sentence):
        read_scores(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("part-*"))) == 5, "a refusal must not touch what is there"
    again = ScoreOptions(shard_rows=4, restart=True)
    assert score_source(photos, inference, tmp_path / "out", again).scored == 20


def test_scores_of_a_folder_that_holds_none(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ScoringError, match="holds no scores"):
            read_scores(folder)


def test_a_damaged_part_is_a_sentence(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    score_source(photos, inference, tmp_path / "out", OPTIONS)
    part = tmp_path / "out" / "part-000002.parquet"
    part.write_bytes(b"\0" * part.stat().st_size)
    with pytest.raises(ScoringError, match=r"part-000002.parquet cannot be read"):
        read_scores(tmp_path / "out")


# full disks


def test_a_full_disk_ends_the_job_and_resuming_works(
    photos: Path, toy_bundle: Bundle, inference: LocalInference, small_disk: Path, tmp_path: Path
) -> None:
    out, ballast = small_disk / "out", small_disk / "ballast"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    ballast.write_bytes(b"x" * (free - 40 * 1024))  # room for a few shards of this job, not for five
    arguments = (photos, "--bundle", toy_bundle.path, "--out", out, "--shard-rows", "4", "--batch", "3")
    done = run(*arguments)
    assert_sentence(done, "no space left on the disk while writing", "Free some space")

    state = read_state(out)
    assert 0 < len(state.shards) < 5, "the ballast must leave room for some shards, not for all"
    assert not state.complete
    assert read_scores(out).num_rows == 4 * len(state.shards)
    assert not [name for name in os.listdir(out) if name.endswith(".tmp")]
    assert_sentence(run(*arguments), "no space left on the disk")

    ballast.unlink()
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    score_source(photos, inference, tmp_path / "whole", OPTIONS)
    assert read_scores(out).equals(read_scores(tmp_path / "whole"))


def test_a_disk_that_fills_at_any_write_ends_the_job_and_resuming_works(
    photos: Path, inference: LocalInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same without a mount: each flush to disk of the job, one after the other, finds no space."""
    flush, flushes = os.fsync, 0

    def full_at(fatal: int) -> Callable[[int], None]:
        def fsync(descriptor: int) -> None:
            nonlocal flushes
            flushes += 1
            if flushes == fatal:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(descriptor)

        return fsync

    monkeypatch.setattr(os, "fsync", full_at(-1))
    score_source(photos, inference, tmp_path / "whole", OPTIONS)
    needed, whole = flushes, read_scores(tmp_path / "whole")
    assert needed >= 1 + 5 * 2 + 1, "the first state; each shard and its state; the last state"
    for fatal in range(1, needed + 1):
        out, flushes = tmp_path / f"out-{fatal}", 0
        monkeypatch.setattr(os, "fsync", full_at(fatal))
        with pytest.raises(DiskFull, match="no space left on the disk"):
            score_source(photos, inference, out, OPTIONS)
        assert not [name for name in os.listdir(out) if name.endswith(".tmp")]
        monkeypatch.setattr(os, "fsync", flush)
        score_source(photos, inference, out, OPTIONS)
        assert read_scores(out).equals(whole)


def test_a_disk_too_full_for_a_folder_is_a_sentence(
    photos: Path, inference: LocalInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(DiskFull, match=r"no space left on the disk while writing .*out"):
        score_source(photos, inference, tmp_path / "out", OPTIONS)


def test_a_disk_that_fails_in_another_way_is_a_sentence(
    photos: Path, inference: LocalInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_source(photos, inference, tmp_path / "out", OPTIONS)
    (tmp_path / "out" / "part-000004.parquet").unlink()

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(ScoringError, match=r"cannot write .*part-000004.parquet \(Input/output error\)"):
        score_source(photos, inference, tmp_path / "out", OPTIONS)
    with pytest.raises(ScoringError, match=r"cannot write .*_fieldmark.json \(Input/output error\)"):
        score_source(photos, inference, tmp_path / "out2", OPTIONS)
