"""The same command again: what is new or changed is scored, nothing else is, and what is gone has no row."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle import Bundle
from bundle.errors import InputError, ScoringError
from scoring.local.jobs import read_state
from scoring.local.score import ScoreOptions, Summary, score_source
from scoring.local.shards import FAILED, read_scores
from serving.client.local import LocalInference
from serving.client.prediction import Outputs

HERE = Path(__file__).parent
COUNT = 20


class Counting:
    """The real inference; counts the images that it is asked for, and may stop the job at the n-th call."""

    def __init__(self, inference: LocalInference, stop: int = -1) -> None:
        self.inference, self.stop = inference, stop
        self.manifest, self.bundle_id = inference.manifest, inference.bundle_id
        self.images = self.calls = 0

    def infer(self, images: np.ndarray, network: str) -> Outputs:
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        self.images += len(images)
        return self.inference.infer(images, network)


@pytest.fixture(scope="module")
def inference(toy_bundle: Bundle) -> LocalInference:
    return LocalInference(toy_bundle, threads=1)


@pytest.fixture
def photos(toy_images: np.ndarray, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(COUNT):
        write(folder / f"{index:02}.png", toy_images[index])
    return folder


def write(path: Path, image: np.ndarray) -> None:
    Image.fromarray(image).save(path)


def score(source: Path, inference: Any, out: Path, **changes: Any) -> Summary:
    return score_source(source, inference, out, ScoreOptions(**{"shard_rows": 4, "batch": 3, "workers": 2, **changes}))


def names(out: Path) -> list[str]:
    return [Path(path).name for path in read_scores(out)["path"].to_pylist()]


def assert_as_if_new(source: Path, inference: LocalInference, out: Path, **changes: Any) -> None:
    """The rows are those of a job that has never seen anything else, bit by bit but for the place in a batch."""
    fresh = out.with_name(f"{out.name}-fresh")
    score(source, inference, fresh, restart=True, **changes)
    found, expected = read_scores(out), read_scores(fresh)
    for name in ("path", "path_bytes", "status", "error", "label", "size", "mtime_ns"):
        assert found[name].to_pylist() == expected[name].to_pylist(), name
    for name in ("instance_score", "p_value", "probability"):
        np.testing.assert_allclose(
            *(np.array(table[name].to_pylist(), float) for table in (found, expected)), rtol=1e-5
        )
    assert read_state(out).complete
    assert {path.name for path in out.glob("part-*")} == {
        f"part-{each.number:06}.parquet" for each in read_state(out).shards
    }


def test_added_changed_and_removed_files(
    photos: Path, inference: LocalInference, toy_images: np.ndarray, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    score(photos, inference, out)
    shutil.copy(photos / "07.png", photos / "07b.png")
    write(photos / "13.png", toy_images[0])
    (photos / "16.png").unlink()
    counting = Counting(inference)
    summary = score(photos, counting, out)
    assert counting.images == 2
    assert (summary.scored, summary.rows) == (2, COUNT)
    assert_as_if_new(photos, inference, out)
    again = Counting(inference)
    assert score(photos, again, out).scored == again.images == 0


def test_every_file_overwritten_in_place_is_scored_again(
    photos: Path, inference: LocalInference, toy_images: np.ndarray, tmp_path: Path
) -> None:
    score(photos, inference, tmp_path / "out")
    before = read_scores(tmp_path / "out")
    for index in range(COUNT):
        write(photos / f"{index:02}.png", toy_images[COUNT - 1 - index])
    assert score(photos, inference, tmp_path / "out").scored == COUNT
    assert read_scores(tmp_path / "out")["instance_score"].to_pylist() != before["instance_score"].to_pylist()
    assert_as_if_new(photos, inference, tmp_path / "out")


def test_a_file_that_only_got_another_time_is_scored_again(
    photos: Path, inference: LocalInference, tmp_path: Path
) -> None:
    score(photos, inference, tmp_path / "out")
    os.utime(photos / "05.png", ns=(1, 1))
    counting = Counting(inference)
    score(photos, counting, tmp_path / "out")
    assert counting.images == 1


def test_many_edits_one_after_the_other(
    photos: Path, inference: LocalInference, toy_images: np.ndarray, tmp_path: Path
) -> None:
    rng, out = random.Random(3), tmp_path / "out"
    score(photos, inference, out)
    for turn in range(12):
        expected = 0
        for _ in range(rng.randint(0, 6)):
            here = sorted(photos.iterdir())
            kind = rng.choice(["add", "remove", "remove"]) if len(here) > 2 else "add"
            if kind == "add":
                name = photos / f"{rng.randint(0, COUNT):02}-{turn}-{rng.randint(0, 999)}.png"
                expected += not name.exists()
                write(name, toy_images[rng.randrange(COUNT)])
            else:
                gone = rng.choice(here)
                expected -= f"-{turn}-" in gone.name
                gone.unlink()
        counting = Counting(inference)
        score(photos, counting, out)
        assert counting.images == expected
        assert names(out) == sorted(os.listdir(photos))
    assert_as_if_new(photos, inference, out)


def test_a_list_whose_lines_change(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    source, out = tmp_path / "list.txt", tmp_path / "out"
    lines = [f"photos/{index % COUNT:02}.png" for index in range(50)]  # names twice, and no order
    source.write_text("\n".join(lines))
    score(source, inference, out)
    lines[10:10] = ["photos/00.png", "gone.png", "http://x/y.jpg"]
    del lines[33]
    source.write_text("\n".join([*lines, "photos/03.png"]))
    counting = Counting(inference)
    summary = score(source, counting, out)
    assert read_scores(out)["path"].to_pylist() == [*lines, "photos/03.png"]
    assert (summary.rows, summary.errors) == (53, 2)
    assert counting.images <= 8, "what stands twice in a list is looked for near its place only"
    assert_as_if_new(source, inference, out)


def test_what_disappears_in_whole_and_comes_back(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    score(photos, inference, tmp_path / "out")
    kept = tmp_path / "kept"
    kept.mkdir()
    for index in range(3, COUNT):
        (photos / f"{index:02}.png").rename(kept / f"{index:02}.png")
    summary = score(photos, inference, tmp_path / "out")
    assert (summary.rows, summary.scored, summary.shards) == (3, 0, 1)
    assert_as_if_new(photos, inference, tmp_path / "out")
    for path in kept.iterdir():
        path.rename(photos / path.name)
    assert score(photos, inference, tmp_path / "out").scored == COUNT - 3
    assert_as_if_new(photos, inference, tmp_path / "out")


def test_an_empty_source_takes_no_row_away(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    """A disk that is not mounted is an empty folder."""
    score(photos, inference, tmp_path / "out")
    photos.rename(tmp_path / "away")
    photos.mkdir()
    with pytest.raises(InputError, match="holds no images"):
        score(photos, inference, tmp_path / "out")
    assert len(names(tmp_path / "out")) == COUNT


# trust


def test_a_flipped_byte_is_refused_and_scored_anew(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    out = tmp_path / "out"
    score(photos, inference, out)
    part = out / "part-000002.parquet"
    whole = part.read_bytes()
    for place in range(0, len(whole), len(whole) // 7):
        part.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ScoringError, match=r"part-000002.parquet cannot be read \(its SHA-256"):
            read_scores(out)
        counting = Counting(inference)
        assert score(photos, counting, out).scored == counting.images == 4
        assert part.read_bytes() == whole


def test_a_damaged_shard_gives_no_rows_to_a_changed_stretch(
    photos: Path, inference: LocalInference, tmp_path: Path
) -> None:
    score(photos, inference, tmp_path / "out")
    part = tmp_path / "out" / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:-9] + b"\0" * 9)
    shutil.copy(photos / "05.png", photos / "05b.png")
    assert score(photos, inference, tmp_path / "out").scored == 5
    assert_as_if_new(photos, inference, tmp_path / "out")


# stops


@pytest.mark.parametrize("stop", range(6))
def test_stopped_while_scoring_again(
    photos: Path, inference: LocalInference, toy_images: np.ndarray, tmp_path: Path, stop: int
) -> None:
    out = tmp_path / "out"
    score(photos, inference, out)
    for index in (1, 6, 7, 12, 19):
        write(photos / f"{index:02}.png", toy_images[(index + 1) % COUNT])
    for index in (4, 13):
        (photos / f"{index:02}.png").unlink()
    for index in (8, 11, 15):
        shutil.copy(photos / f"{index:02}.png", photos / f"{index:02}b.png")
    try:
        score(photos, Counting(inference, stop), out)
    except KeyboardInterrupt:
        assert not read_state(out).complete or read_scores(out).num_rows == COUNT, "nothing was begun, or it shows"
    score(photos, inference, out)
    assert_as_if_new(photos, inference, out)


def test_killed_at_any_line_that_touches_the_disk_while_scoring_again(
    photos: Path, inference: LocalInference, toy_bundle: Bundle, toy_images: np.ndarray, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    score(photos, inference, first)
    for index in (1, 6, 12):
        write(photos / f"{index:02}.png", toy_images[index + 1])
    for index in (4, 16, 17, 18, 19):
        (photos / f"{index:02}.png").unlink()
    shutil.copy(photos / "08.png", photos / "08b.png")
    (photos / "09.png").write_bytes(b"")
    command = [sys.executable, str(HERE / "kill_points.py"), toy_bundle.path, photos, tmp_path, "24", first]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=120, cwd=HERE.parent.parent
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report["attempts"]) == 24
    for attempt in report["attempts"]:
        assert (attempt["killed"], attempt["finished"]) == (-signal.SIGKILL, 0), attempt
        out = tmp_path / attempt["out"]
        table, whole = read_scores(out), read_scores(tmp_path / "whole")
        assert table["path"].to_pylist() == whole["path"].to_pylist()
        assert table.drop_columns(["layer_scores", "instance_score", "probability"]).equals(
            whole.drop_columns(["layer_scores", "instance_score", "probability"])
        )
        assert not [name for name in os.listdir(out) if name.endswith(".tmp")]
        assert (out / FAILED).read_text() == f"{photos / '09.png'}\n"


# files that failed


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_the_list_of_failed_files_is_a_source(
    photos: Path, inference: LocalInference, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    strange = ["#1.png", "[bold]x[red].png", os.fsdecode(b"caf\xe9.png"), " 2.png"]
    for name in strange:
        (photos / name).write_bytes(b"no image")
    source = Path("photos")
    if kind == "list":
        source = Path("photos/list.txt")
        source.write_bytes(os.fsencode("\n".join(sorted(name for name in os.listdir(photos) if name.endswith("png")))))
    summary = score(source, inference, tmp_path / "out")
    assert summary.errors == len(summary.failed) == len(strange)
    listed = (tmp_path / "out" / FAILED).read_bytes().splitlines()
    assert listed == sorted(os.fsencode(photos / name) for name in strange)
    for name in strange:
        shutil.copy(photos / "00.png", photos / name)
    assert score(tmp_path / "out" / FAILED, inference, tmp_path / "second").errors == 0
    assert score(source, inference, tmp_path / "out").errors == 0
    assert not (tmp_path / "out" / FAILED).exists()


def test_a_summary_names_the_first_ten_failed_files(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    for index in range(12):
        (photos / f"{index:02}.png").write_bytes(b"")
    summary = score(photos, inference, tmp_path / "out")
    assert [Path(path).name for path, _ in summary.failed] == [f"{index:02}.png" for index in range(10)]
    assert summary.failed[0][1] == f"{photos / '00.png'}: the file is empty"
    assert len((tmp_path / "out" / FAILED).read_text().splitlines()) == summary.errors == 12
