"""Offline scoring: every file exactly once and in order, whatever stops the job, with the graph's own answers."""

import contextlib
import inspect
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from bundle import Bundle, ImageSpec
from bundle.errors import EndpointError, ImageError, InputError, MissingExtra, OptionError, ScoringError
from bundle.formats import formats
from scoring.columns import arrow
from scoring.inference import check_served, open_inference
from scoring.local.jobs import STATE, read_state
from scoring.local.score import ScoreOptions, Summary, score_source
from scoring.local.shards import FAILED, read_scores
from scoring.local.stretches import digest_of
from scoring.score_cli import SOME_FAILED
from scoring.sources import Source, SourceFile
from serving.client.local import LocalInference
from serving.client.prediction import Outputs, predictions
from tests.conftest import draw_toy

HERE = Path(__file__).parent
CLI = [sys.executable, "-m", "fieldmark", "score"]
BROKEN = {"photo-03.png": b"", "photo-11.png": b"not an image"}
COUNT = 20


class Faulty:
    """The real inference, with a fault at the seam: `before(n)` runs before the n-th call (from 0) and may raise."""

    def __init__(self, inference: LocalInference, before: Callable[[int], None] = lambda call: None) -> None:
        self.inference, self.before, self.calls = inference, before, 0
        self.manifest, self.bundle_id = inference.manifest, inference.bundle_id

    def infer(self, images: np.ndarray, network: str) -> Outputs:
        self.calls += 1
        self.before(self.calls - 1)
        return self.inference.infer(images, network)


def raise_at(calls: set[int], problem: BaseException) -> Callable[[int], None]:
    def before(call: int) -> None:
        if call in calls:
            raise problem

    return before


@pytest.fixture(scope="module")
def inference(toy_bundle: Bundle) -> LocalInference:
    return LocalInference(toy_bundle, threads=1)


@pytest.fixture(scope="module")
def photos(toy_images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty files, two of them no images. Read-only."""
    folder = tmp_path_factory.mktemp("photos")
    for index, image in enumerate(toy_images):
        name = f"photo-{index:02}.png"
        if name in BROKEN:
            (folder / name).write_bytes(BROKEN[name])
        else:
            Image.fromarray(image).save(folder / name)
    return folder


@pytest.fixture
def own_photos(photos: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(photos, tmp_path / "photos"))


def options(**changes: Any) -> ScoreOptions:
    return ScoreOptions(**{"shard_rows": 4, "batch": 3, "workers": 2, "pauses": (), **changes})


def naive(paths: list[str], inference: LocalInference, network: str = "full", alpha: float | None = None) -> list[dict]:
    """One file at a time, no threads, no batches."""
    rows = []
    for path in paths:
        try:
            image = inference.manifest.image.read(Path(path))
        except ImageError as problem:
            rows.append({"path": path, "status": "error", "error": str(problem), "label": None, "layer_scores": None})
            continue
        (answer,) = predictions(inference.infer(image[None], network), inference.manifest, network, alpha=alpha)
        rows.append({"path": path, "status": "ok", "error": None, **vars(answer)})
    return rows


def assert_rows(table: pa.Table, expected: list[dict]) -> None:
    rows = table.to_pylist()
    assert [row["path"] for row in rows] == [row["path"] for row in expected]
    for row, twin in zip(rows, expected, strict=True):
        for name in ("status", "error", "label", "is_adversarial", "p_value"):
            assert row[name] == pytest.approx(twin.get(name)), (row["path"], name)
        for name in ("probability", "instance_score", "layer_scores"):
            if twin["status"] == "ok":
                assert row[name] == pytest.approx(twin[name], rel=1e-5), (row["path"], name)
            else:
                assert row[name] is None


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.parquet"))}


def assert_tidy(out: Path) -> None:
    """Nothing but what the state lists."""
    state = read_state(out)
    names = {f"part-{record.number:06d}.parquet" for record in state.shards}
    failed = {FAILED} if state.errors else set()
    assert len(names) == len(state.shards)
    assert set(os.listdir(out)) == {STATE, ".fieldmark.lock", *names, *failed}


# what is written


def test_a_folder_gives_a_row_for_every_file(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    summary = score_source(photos, inference, tmp_path / "out", options())
    table = read_scores(tmp_path / "out")
    assert_rows(table, naive(sorted(map(str, photos.iterdir())), inference))
    assert (summary.rows, summary.errors, summary.shards, summary.scored) == (COUNT, 2, 5, COUNT)
    assert summary.flagged == sum(filter(None, table["is_adversarial"].to_pylist()))
    assert summary.images_per_second == pytest.approx(COUNT / summary.seconds)
    assert set(table["network"].to_pylist()) == {"full"}
    assert set(table["bundle_id"].to_pylist()) == {inference.bundle_id}
    state = read_state(tmp_path / "out")
    assert (state.complete, state.rows, state.errors, state.flagged) == (True, COUNT, 2, summary.flagged)
    assert_tidy(tmp_path / "out")


def test_network_and_alpha_reach_the_rows(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    score_source(photos, inference, tmp_path / "out", options(network="attention", alpha=0.6))
    table = read_scores(tmp_path / "out")
    twin = naive(sorted(map(str, photos.iterdir())), inference, "attention", 0.6)
    assert_rows(table, twin)
    flags = [row["is_adversarial"] for row in twin if row["status"] == "ok"]
    assert 0 < sum(flags) < len(flags), "this alpha must split the images, or it shows nothing"


def test_the_schema_is_pinned(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    score_source(photos, inference, tmp_path / "out", options(alpha=0.25))
    file = pq.ParquetFile(tmp_path / "out" / "part-000000.parquet")
    assert [f"{field.name}: {field.type}{'' if field.nullable else ' not null'}" for field in file.schema_arrow] == [
        "path: string not null",
        "path_bytes: binary",
        "status: string not null",
        "error: string",
        "label: string",
        "probability: float",
        "instance_score: float",
        "p_value: float",
        "is_adversarial: bool",
        "layer_scores: list<element: float>",
        "network: string not null",
        "bundle_id: string not null",
        "size: int64",
        "mtime_ns: int64",
    ]
    metadata = file.schema_arrow.metadata
    assert metadata[b"fieldmark.bundle_id"].decode() == inference.bundle_id
    assert metadata[b"fieldmark.network"] == b"full"
    assert metadata[b"fieldmark.alpha"] == b"0.25"
    assert metadata[b"fieldmark.version"]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert pq.read_table(tmp_path / "out").num_rows == COUNT, "a plain reader sees the shards and nothing else"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=30),
    shard_rows=st.integers(1, 12),
    batch=st.integers(1, 9),
    workers=st.integers(1, 4),
    data=st.data(),
)
def test_any_sizes_and_any_stops_give_every_line_once_and_in_order(
    photos: Path,
    inference: LocalInference,
    tmp_path_factory: pytest.TempPathFactory,
    chosen: list[int],
    shard_rows: int,
    batch: int,
    workers: int,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    source = folder / "list.txt"
    paths = [str(photos / f"photo-{index:02}.png") for index in chosen]
    source.write_text("\n".join(paths), encoding="utf-8")
    sizes = options(shard_rows=shard_rows, batch=batch, workers=workers)
    whole = Faulty(inference)
    summary = score_source(source, whole, folder / "whole", sizes)
    assert_rows(read_scores(folder / "whole"), naive(paths, inference))
    assert summary.rows == len(paths)
    assert summary.shards == -(-len(paths) // shard_rows)

    stops = data.draw(st.lists(st.integers(0, max(0, whole.calls - 1)), max_size=4), label="stops")
    for stop in stops:
        stopping = Faulty(inference, raise_at({stop}, KeyboardInterrupt()))
        try:
            score_source(source, stopping, folder / "stopped", sizes)
        except KeyboardInterrupt:
            assert_tidy(folder / "stopped")
    score_source(source, inference, folder / "stopped", sizes)
    assert parts(folder / "stopped") == parts(folder / "whole")
    assert read_state(folder / "stopped") == read_state(folder / "whole")


def test_a_stop_costs_at_most_one_shard(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    # A shard of 4 files takes two calls of at most 3 images, or one where a file is broken: 0 | 1 2 | 3 | 4 5 | 6 7
    fourth = Faulty(inference, raise_at({5}, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        score_source(photos, fourth, tmp_path / "out", options())
    assert read_state(tmp_path / "out").total("rows") == 12
    assert not read_state(tmp_path / "out").complete
    assert read_scores(tmp_path / "out").num_rows == 12

    summary = score_source(
        photos, inference, tmp_path / "out", options(), on_progress=lambda done, scored: seen.append((done, scored))
    )
    assert (summary.rows, summary.scored) == (COUNT, COUNT - 12)
    assert seen[0] == (4, 0)
    assert seen[-1] == (COUNT, COUNT - 12)
    assert seen == sorted(seen)


def test_a_finished_job_is_left_alone(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    score_source(photos, inference, tmp_path / "out", options())
    before = parts(tmp_path / "out"), os.stat(tmp_path / "out" / "part-000000.parquet").st_mtime_ns
    again = Faulty(inference)
    summary = score_source(photos, again, tmp_path / "out", options(batch=1, workers=1))
    assert again.calls == 0
    assert (summary.rows, summary.errors, summary.scored, summary.images_per_second) == (COUNT, 2, 0, 0.0)
    assert before == (parts(tmp_path / "out"), os.stat(tmp_path / "out" / "part-000000.parquet").st_mtime_ns)


def test_a_shard_that_was_lost_is_scored_again(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    score_source(photos, inference, tmp_path / "out", options())
    before = parts(tmp_path / "out")
    (tmp_path / "out" / "part-000001.parquet").unlink()
    (tmp_path / "out" / "part-000003.parquet").write_bytes(b"cut")
    with pytest.raises(ScoringError, match=r"part-000001.parquet cannot be read"):
        read_scores(tmp_path / "out")
    summary = score_source(photos, inference, tmp_path / "out", options())
    assert summary.scored == 8
    assert parts(tmp_path / "out") == before
    assert read_state(tmp_path / "out").complete


# killed, for real


def test_killed_at_any_line_that_touches_the_disk(photos: Path, toy_bundle: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "kill_points.py"), str(toy_bundle.path), str(photos), str(tmp_path), "24"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=HERE.parent.parent)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report["attempts"]) == 24
    whole = parts(tmp_path / "whole")
    (tmp_path / "whole" / "lines").unlink()
    for attempt in report["attempts"]:
        assert attempt["killed"] == -signal.SIGKILL, attempt
        assert attempt["finished"] == 0, attempt
        assert parts(tmp_path / attempt["out"]) == whole, attempt
        assert read_state(tmp_path / attempt["out"]) == read_state(tmp_path / "whole")
        assert_tidy(tmp_path / attempt["out"])


def test_the_command_killed_at_random_times(
    photos: Path, toy_bundle: Bundle, inference: LocalInference, tmp_path: Path
) -> None:
    """SIGKILL after a few more shards each time; the last run finishes, and nothing is lost or doubled."""
    source, out = tmp_path / "list.txt", tmp_path / "out"
    paths = [str(photos / f"photo-{index % COUNT:02}.png") for index in range(400)]
    source.write_text("\n".join(paths), encoding="utf-8")
    command = [*CLI, str(source), "--bundle", str(toy_bundle.path), "--out", str(out), "--shard-rows", "4", "--json"]
    rng, killed = random.Random(time.time_ns()), 0
    for _ in range(3):
        goal = len(list(out.glob("part-*"))) + rng.randint(1, 15)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(out.glob("part-*"))) < goal:
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.01)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed, "no run was alive long enough to be killed"
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == SOME_FAILED, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["errors"], summary["shards"], summary["out"]) == (400, 40, 100, str(out))
    assert read_scores(out)["path"].to_pylist() == paths
    score_source(source, inference, tmp_path / "whole", ScoreOptions(shard_rows=4))
    assert read_scores(out).equals(read_scores(tmp_path / "whole"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_says_how_to_continue(
    photos: Path, toy_bundle: Bundle, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    source, out = tmp_path / "list.txt", tmp_path / "out"
    source.write_text("\n".join(str(photos / f"photo-{index % COUNT:02}.png") for index in range(20_000)))
    command = [*CLI, str(source), "--bundle", str(toy_bundle.path), "--out", str(out), "--shard-rows", "8"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / "part-000002.parquet").exists():
        time.sleep(0.002)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == code, stderr
    state = read_state(out)
    rows, shards = state.total("rows"), len(state.shards)
    assert shards >= 2
    assert stderr == (
        f"stopped; {rows:,} files in {shards:,} shards are safe in {out}; run the same command again to continue.\n"
    )
    assert stdout == ""
    assert_tidy(out)


# what a folder belongs to


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"network": "attention"}, "its network is 'full', and this run has 'attention'"),
        ({"alpha": 0.5}, "its alpha is 0.05, and this run has 0.5"),
        ({"shard_rows": 5}, "its number of rows a shard is 4, and this run has 5"),
    ],
)
def test_other_settings_do_not_mix_into_a_folder(
    photos: Path, inference: LocalInference, tmp_path: Path, changes: dict, sentence: str
) -> None:
    score_source(photos, inference, tmp_path / "out", options())
    before = parts(tmp_path / "out")
    with pytest.raises(ScoringError, match=sentence) as caught:
        score_source(photos, inference, tmp_path / "out", options(**changes))
    assert "--restart" in str(caught.value)
    assert parts(tmp_path / "out") == before
    summary = score_source(photos, inference, tmp_path / "out", options(**changes, restart=True))
    assert summary.scored == summary.rows == COUNT
    assert_tidy(tmp_path / "out")


def test_another_bundle_or_source_does_not_mix_into_a_folder(
    photos: Path, own_photos: Path, inference: LocalInference, make_toy_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    score_source(photos, inference, tmp_path / "out", options())
    other = LocalInference(make_toy_bundle(tmp_path / "other", name="other"))
    with pytest.raises(ScoringError, match=f"its bundle is '{inference.bundle_id}', and this run has"):
        score_source(photos, other, tmp_path / "out", options())
    with pytest.raises(ScoringError, match="its SOURCE is "):
        score_source(own_photos, inference, tmp_path / "out", options())


def test_the_same_words_in_another_place_are_another_source(
    photos: Path, own_photos: Path, inference: LocalInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    score_source(Path("."), inference, tmp_path / "out", options())
    assert read_scores(tmp_path / "out")["path"][0].as_py() == "./photo-00.png"
    monkeypatch.chdir(own_photos)
    with pytest.raises(ScoringError, match="SOURCE's place is"):
        score_source(Path("."), inference, tmp_path / "out", options())


def test_files_that_changed_where_nothing_is_scored_yet_are_fine(
    own_photos: Path, inference: LocalInference, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        score_source(own_photos, Faulty(inference, raise_at({4}, KeyboardInterrupt())), tmp_path / "out", options())
    shutil.copy(own_photos / "photo-05.png", own_photos / "photo-18b.png")
    (own_photos / "photo-13.png").unlink()
    score_source(own_photos, inference, tmp_path / "out", options())
    assert_rows(read_scores(tmp_path / "out"), naive(sorted(map(str, own_photos.iterdir())), inference))


def test_a_second_process_is_refused(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    problems: list[BaseException] = []

    def second(call: int) -> None:
        if call == 2:
            try:
                score_source(photos, inference, tmp_path / "out", options(restart=True))
            except ScoringError as problem:
                problems.append(problem)

    summary = score_source(photos, Faulty(inference, second), tmp_path / "out", options())
    (problem,) = problems
    assert "another process is scoring into" in str(problem)
    assert summary.rows == COUNT
    assert_tidy(tmp_path / "out")


def test_what_a_killed_process_left_is_removed_and_nothing_else(
    photos: Path, inference: LocalInference, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        score_source(photos, Faulty(inference, raise_at({3}, KeyboardInterrupt())), tmp_path / "out", options())
    out = tmp_path / "out"
    left = [".part-000001.parquet.77.tmp", "._fieldmark.json.77.tmp", "part-000009.parquet"]
    for name in [*left, "notes.txt", "part-1.parquet"]:
        (out / name).write_bytes(b"half")
    score_source(photos, inference, out, options())
    assert not set(left) & set(os.listdir(out))
    assert {"notes.txt", "part-1.parquet"} <= set(os.listdir(out))


# endpoints


def test_a_lost_endpoint_ends_the_job_and_makes_no_error_rows(
    photos: Path, inference: LocalInference, tmp_path: Path
) -> None:
    lost = EndpointError("no server answers at localhost:8001", hint="Start one.")
    with pytest.raises(
        EndpointError, match=r"12 files in 3 shards are safe in .*; run the same command again"
    ) as caught:
        score_source(photos, Faulty(inference, raise_at({5, 6, 7}, lost)), tmp_path / "out", options(pauses=(0.0, 0.0)))
    assert caught.value.what == lost.what
    assert read_scores(tmp_path / "out").num_rows == 12
    score_source(photos, inference, tmp_path / "out", options())
    assert_rows(read_scores(tmp_path / "out"), naive(sorted(map(str, photos.iterdir())), inference))


def test_a_short_absence_is_waited_for(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    away = Faulty(inference, raise_at({1, 2}, EndpointError("overloaded")))
    summary = score_source(photos, away, tmp_path / "out", options(pauses=(0.0, 0.0)))
    assert (summary.rows, summary.errors) == (COUNT, 2)


def test_no_shard_is_written_once_the_endpoint_serves_another_bundle(
    photos: Path, inference: LocalInference, tmp_path: Path
) -> None:
    checks = iter([None, None, EndpointError("localhost:8001 serves another bundle")])

    def check() -> None:
        if problem := next(checks):
            raise problem

    with pytest.raises(EndpointError, match="serves another bundle"):
        score_source(photos, inference, tmp_path / "out", options(), check=check)
    assert len(parts(tmp_path / "out")) == 2


@pytest.mark.triton
def test_over_a_real_triton_that_changes_and_goes_away(
    photos: Path,
    toy_bundle: Bundle,
    inference: LocalInference,
    make_toy_bundle: Callable[..., Bundle],
    tmp_path: Path,
) -> None:
    from serving.triton.server import TritonServer

    def serve(bundle: Bundle, port: int) -> TritonServer:
        return TritonServer(bundle, grpc_port=port, http_port=0, metrics_port=0)

    out, other = tmp_path / "out", make_toy_bundle(tmp_path / "other", name="other")
    with contextlib.ExitStack() as servers:
        first = servers.enter_context(serve(toy_bundle, 0))
        url, port = first.grpc_url, first.grpc_port

        def swap(done: int, scored: int) -> None:
            if done == 8:
                first.stop()
                servers.enter_context(serve(other, port))

        over_triton = open_inference(toy_bundle, url)
        with pytest.raises(EndpointError, match=f"serves bundle {other.bundle_id[:12]}.*4 files in 1 shard are safe"):
            score_source(
                photos,
                over_triton,
                out,
                options(pauses=(0.1, 1.0, 1.0, 1.0)),
                on_progress=swap,
                check=lambda: check_served(toy_bundle, url),
            )
        with pytest.raises(EndpointError, match=f"serves bundle {other.bundle_id[:12]}"):
            open_inference(toy_bundle, url)
    arguments = (photos, "--bundle", toy_bundle.path, "--out", out, "--shard-rows", 4, "--url", url, "--json")
    lost = run(*arguments)
    assert lost.returncode == 1
    assert lost.stderr.startswith(f"error: no server answers at {url}")
    assert read_state(out).total("rows") == 4

    with serve(toy_bundle, port):
        done = run(*arguments)
    assert done.returncode == SOME_FAILED, done.stderr
    assert json.loads(done.stdout)["scored"] == COUNT - 4
    assert_rows(read_scores(out), naive(sorted(map(str, photos.iterdir())), inference))


# the source


def test_a_folder_is_walked_in_the_order_of_sorted_paths(tmp_path: Path) -> None:
    names = [
        "b.png",
        "a/z.JPG",
        "a/b/c.jpeg",
        "a-b.png",
        "a.png",
        "a0/q.webp",
        "é/ü ö.png",
        "a/b-.gif",
        "Z.tiff",
        "#.bmp",
    ]
    ignored = [".hidden.png", ".git/x.png", "a/.cache/y.png", "notes.txt", "a/png", "Thumbs.db"]
    for name in [*names, *ignored]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = [file.path for file in Source.open(tmp_path).files()]
    assert found == sorted(str(tmp_path / name) for name in names)


@given(first=st.lists(st.text("ab/", min_size=1)), second=st.lists(st.text("ab/", min_size=1)))
@example(first=["a", "bc"], second=["ab", "c"])
def test_two_lists_of_paths_share_a_digest_only_if_they_are_the_same(first: list[str], second: list[str]) -> None:
    digests = [digest_of(SourceFile(path, "anywhere") for path in paths) for paths in (first, second)]
    assert (digests[0] == digests[1]) == (first == second)


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "deep").mkdir(parents=True)
    (elsewhere / "inner").mkdir(parents=True)
    for path in (root / "deep" / "a.png", elsewhere / "b.png"):
        path.touch()
    (root / "deep" / "up").symlink_to(root)
    (root / "deep" / "self").symlink_to(".")
    (root / "twin").symlink_to(elsewhere)
    (elsewhere / "inner" / "back").symlink_to(elsewhere)
    (root / "itself.png").symlink_to(root / "itself.png")
    (root / "nowhere.png").symlink_to(root / "no such file")
    (root / "linked.png").symlink_to(elsewhere / "b.png")
    found = [os.path.relpath(file.path, root) for file in Source.open(root).files()]
    assert found == ["deep/a.png", "itself.png", "linked.png", "nowhere.png", "twin/b.png"]


def test_a_tree_deeper_than_the_interpreters_stack(tmp_path: Path) -> None:
    folders = [tmp_path / "t"]
    for _ in range(200):
        folders.append(folders[-1] / "d")
    for folder in folders:
        folder.mkdir()
    (folders[-1] / "a.png").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    try:
        found = [file.path for file in Source.open(folders[0]).files()]
    finally:
        sys.setrecursionlimit(limit)
    assert found == [str(folders[-1] / "a.png")]


def test_a_list_is_read_line_by_line(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    shutil.copy(photos / "photo-00.png", tmp_path / "ü b.png")
    shutil.copy(photos / "photo-01.png", tmp_path / "#1.png")
    shutil.copy(photos / "photo-01.png", tmp_path / " 2.png")
    good = ["#1.png", "ü b.png", "./#1.png", str(photos / "photo-02.png"), "ü b.png", " 2.png"]
    bad = ["gone.png", "http://x/y.jpg", "s3://bucket/#1.png", '"#1.png"', "# no comment"]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*good, "", "   ", *bad]).encode())
    summary = score_source(tmp_path / "list.txt", inference, tmp_path / "out", options())
    rows = read_scores(tmp_path / "out").to_pylist()
    assert [row["path"] for row in rows] == good + bad, "names are as they were written"
    assert [row["status"] for row in rows] == ["ok"] * len(good) + ["error"] * len(bad)
    assert [row["error"] for row in rows[len(good) :]] == [
        f"{tmp_path / 'gone.png'}: no such file",
        "http://x/y.jpg: a URL, and a list names files",
        "s3://bucket/#1.png: a URL, and a list names files",
        f'{tmp_path}/"#1.png": no such file',
        f"{tmp_path}/# no comment: no such file",
    ]
    assert summary.errors == len(bad)


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_names_that_are_not_utf8_survive(photos: Path, inference: LocalInference, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    names = [b"caf\xe9.png", b"gone\xff.png", "gr\u00fcn.png".encode()]
    for name in (names[0], names[2]):
        shutil.copy(photos / "photo-00.png", os.fsencode(folder) + b"/" + name)
    os.symlink("nowhere", os.fsencode(folder) + b"/" + names[1])
    source = folder
    if kind == "list":
        source = folder / "list.txt"
        source.write_bytes(b"\n".join(names))
    score_source(source, inference, tmp_path / "out", options(shard_rows=2))
    score_source(source, inference, tmp_path / "out", options(shard_rows=2))
    prefix = b"" if kind == "list" else os.fsencode(folder) + b"/"
    rows = read_scores(tmp_path / "out").to_pylist()
    assert [row["path"].removeprefix(prefix.decode()) for row in rows] == ["caf\\xe9.png", "gone\\xff.png", "grün.png"]
    assert [row["path_bytes"] for row in rows] == [prefix + names[0], prefix + names[1], None]
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert rows[1]["error"].endswith("gone\\xff.png: no such file")


def test_a_folder_that_cannot_be_listed_is_a_row(
    own_photos: Path, inference: LocalInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_photos / "closed").mkdir()
    original = os.scandir

    def scandir(path: str) -> Iterator[os.DirEntry[str]]:
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    score_source(own_photos, inference, tmp_path / "out", options())
    rows = read_scores(tmp_path / "out").to_pylist()
    assert len(rows) == COUNT + 1
    assert rows[0]["error"] == f"{own_photos / 'closed'}: the folder cannot be listed (Permission denied)"


def test_a_source_that_goes_away_ends_the_job(own_photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    def unmount(call: int) -> None:
        if call == 1:
            own_photos.rename(tmp_path / "away")

    with pytest.raises(ScoringError, match="can no longer be reached"):
        score_source(own_photos, Faulty(inference, unmount), tmp_path / "out", options(batch=1, shard_rows=2))
    assert "no such file" not in str(read_scores(tmp_path / "out")["error"].to_pylist())
    (tmp_path / "away").rename(own_photos)
    score_source(own_photos, inference, tmp_path / "out", options(batch=1, shard_rows=2))
    assert read_state(tmp_path / "out").total("errors") == 2


def test_the_memory_of_a_list_does_not_grow_with_its_length(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        (tmp_path / "list.txt").write_text("".join(f"folder/of/images/{index:09}.jpg\n" for index in range(count)))
        tracemalloc.start()
        try:
            assert sum(1 for _ in Source.open(tmp_path / "list.txt").files()) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    # the least of a few: threads that other tests left behind allocate too
    assert min(peak(50_000) for _ in range(5)) < peak(500) + 20_000


def test_decoding_runs_ahead_but_not_without_bound(
    photos: Path, inference: LocalInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "list.txt"
    source.write_text("\n".join([str(photos / "photo-00.png")] * 200))
    decoded, used, ahead, lock = 0, 0, [], threading.Lock()
    original = ImageSpec.read

    def read(self: ImageSpec, path: Path) -> np.ndarray:
        nonlocal decoded
        with lock:
            decoded += 1
        return original(self, path)

    def before(call: int) -> None:
        nonlocal used
        used += 5
        time.sleep(0.005)
        ahead.append(decoded - used)

    monkeypatch.setattr(ImageSpec, "read", read)
    score_source(source, Faulty(inference, before), tmp_path / "out", options(batch=5, shard_rows=50))
    assert used == 200
    assert max(ahead) <= 2 * 5 + 1
    assert max(ahead) > 0, "nothing was decoded while inference ran"


# the command


def run(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [*CLI, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


def test_more_flags_than_clean_images_raise_are_told_after_the_table(toy_bundle: Bundle, tmp_path: Path) -> None:
    for folder, noise in (("clean", 0), ("noisy", 45)):
        (tmp_path / folder).mkdir()
        for index in range(24):
            pixels = draw_toy(index % 5, 6000 + index) + np.random.default_rng(index).normal(0, noise, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / folder / f"{index}.png")
    words = ("--bundle", toy_bundle.path, "--network", "full")
    for kind in ("--out", "--table"):
        noisy = run(tmp_path / "noisy", *words, kind, tmp_path / f"noisy{kind}").stdout
        assert re.search(r"\d\.\d% are flagged; of clean images like those .* at most \d", " ".join(noisy.split()))
        assert "of clean images" not in run(tmp_path / "clean", *words, kind, tmp_path / f"clean{kind}").stdout


def test_the_command_prints_a_table_and_then_that_it_is_complete(
    photos: Path, toy_bundle: Bundle, tmp_path: Path
) -> None:
    arguments = (photos, "--bundle", toy_bundle.path, "--out", tmp_path / "out", "--alpha", "0.6")
    done = run(*arguments, TTY_COMPATIBLE="1", COLUMNS="200")
    assert done.returncode == SOME_FAILED, done.stderr
    flagged = read_state(tmp_path / "out").total("flagged")
    for word in ("files", "ok", "errors", "flagged", "images/s", "seconds", "shards", "18", f"{flagged / 18:.1%}"):
        assert word in done.stdout
    assert "20/20" in done.stderr
    assert "images/s" in done.stderr
    again = run(*arguments)
    assert again.returncode == SOME_FAILED
    assert "complete already" in again.stdout
    assert again.stderr.splitlines() == [
        f"error: {photos / 'photo-03.png'}: the file is empty",
        f"error: {photos / 'photo-11.png'}: not an image, or an unknown format. Accepted are {', '.join(formats())}.",
        f"these could not be scored; all are listed in {tmp_path / 'out' / FAILED}",
    ]


def test_the_command_says_what_is_next(photos: Path, toy_bundle: Bundle, tmp_path: Path) -> None:
    """What waits to be looked at, the drift of what nobody must look at, a table's list; nothing where no score is."""
    (tmp_path / "one").mkdir()
    shutil.copy(photos / "photo-00.png", tmp_path / "one")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.png").write_bytes(b"no image")
    out, table, bundle = tmp_path / "out", tmp_path / "table", ("--bundle", toy_bundle.path)
    named = f"--bundle {toy_bundle.path}"
    for source, options, following in (
        ("one", ("--out", out, "--alpha", 0.01), [f"next: fieldmark drift {out} {named}"]),
        (
            "one",
            ("--out", tmp_path / "loose", "--alpha", 0.99),
            [f"next: fieldmark review {tmp_path / 'loose'} {named}"],
        ),
        ("one", ("--table", table), [f"next: fieldmark flags {table}"]),
        ("one", ("--table", table), [f"next: fieldmark flags {table}"]),  # where nothing is new
        ("none", ("--out", tmp_path / "nothing"), []),
        ("none", ("--table", tmp_path / "empty"), []),
    ):
        done = run(tmp_path / source, *bundle, *options)
        assert [line for line in done.stdout.splitlines() if line.startswith("next: ")] == following


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--network", "half"], 2, "the bundle carries no network 'half'. It carries: "),
        (["--alpha", "0"], 2, "--alpha 0 is not between 0 and 1"),
        (["--alpha", "nan"], 2, "--alpha nan is not between 0 and 1"),
        (["--alpha", "0.001"], 2, "--alpha 0.001 is below 0.01, the smallest p-value this bundle can give"),
        (["--batch", "0"], 2, "--batch 0 is not at least 1"),
        (["--shard-rows", "0"], 2, "--shard-rows 0 is not between 1 and 1,000,000"),
        (["--workers", "0"], 2, "--workers 0 is not between 1 and 256"),
        (["--url", "localhost:1"], 1, "no server answers at localhost:1"),
    ],
)
def test_options_that_cannot_work_are_a_sentence_and_leave_nothing(
    photos: Path, toy_bundle: Bundle, tmp_path: Path, arguments: list[str], code: int, sentence: str
) -> None:
    done = run(photos, "--bundle", toy_bundle.path, "--out", tmp_path / "out", *arguments)
    assert done.returncode == code
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_without_pyarrow_the_extra_is_named(
    photos: Path, inference: LocalInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow.cache_clear()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    try:
        with pytest.raises(MissingExtra, match=r"'scoring' extra \(pyarrow is not installed\)"):
            score_source(photos, inference, tmp_path / "out", options())
    finally:
        arrow.cache_clear()
    assert not (tmp_path / "out").exists()


def test_importing_the_command_loads_nothing_heavy() -> None:
    code = (
        "import sys, scoring.score_cli; print(sorted({'pyarrow', 'onnxruntime', 'torch', 'grpc'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_source_without_images_is_named(inference: LocalInference, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no images"):
        score_source(tmp_path / "empty", inference, tmp_path / "out", options())
    assert not (tmp_path / "out").exists()


def test_options_are_checked_where_they_are_made() -> None:
    with pytest.raises(OptionError, match="--shard-rows"):
        ScoreOptions(shard_rows=1_000_001)


def test_a_summary_is_of_the_whole_job(photos: Path, inference: LocalInference, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        score_source(photos, Faulty(inference, raise_at({4}, KeyboardInterrupt())), tmp_path / "out", options())
    resumed: Summary = score_source(photos, inference, tmp_path / "out", options())
    whole = score_source(photos, inference, tmp_path / "whole", options())
    assert (resumed.rows, resumed.errors, resumed.flagged) == (whole.rows, whole.errors, whole.flagged)
    assert resumed.scored < whole.scored
