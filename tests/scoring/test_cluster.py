"""The distributed job on a real Ray of two workers: same rows as the local job, whoever is killed meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import numpy as np
import pytest
from deltalake import DeltaTable
from PIL import Image

from bundle import Bundle
from bundle.errors import ScoringError
from scoring.answers import Asking
from scoring.cluster import connection
from scoring.cluster.crew import _gathered
from scoring.table.crew_of_one import CrewOfOne
from scoring.table.job import TableOptions, score_into_table
from scoring.table.runs import RUNS
from serving.client.local import LocalInference
from tests.keys import write_keys
from tests.scoring.cluster_process import RayProcess, free_port, ray_cluster
from tests.scoring.table.object_store import object_store

IMAGES, CHUNK, BATCH = 480, 4, 4
CLI = [sys.executable, "-m", "fieldmark", "score"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayProcess]:
    with ray_cluster() as found:
        yield found


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, toy_images: np.ndarray) -> Path:
    """Enough images to be killed among them, three of them noise, one of them none. Read-only."""
    folder = tmp_path_factory.mktemp("many")
    random = np.random.default_rng(1)
    for index in range(IMAGES):
        target = folder / f"{index % 5}" / f"{index:03d}.png"
        target.parent.mkdir(exist_ok=True)
        pixels = toy_images[index % 20] if index % 80 else random.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(target)
    (folder / "0" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def undisturbed(toy_bundle: Bundle, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of the local job."""
    table = tmp_path_factory.mktemp("undisturbed") / "table"
    options = TableOptions(asking=Asking(network="full", batch=BATCH), chunk_rows=CHUNK)
    score_into_table(
        str(photos), toy_bundle, str(table), options, CrewOfOne(inference=LocalInference(toy_bundle, threads=1))
    )
    return rows_in(table)


def rows_in(table: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = DeltaTable(table).to_pyarrow_table().to_pylist()
    return sorted(({k: v for k, v in row.items() if k != "day"} for row in found), key=lambda row: row["id"])


def records(table: Path) -> list[Path]:
    """Chunks that are done."""
    return sorted((table / RUNS).glob("*/done/*.json"))


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(toy_bundle: Bundle, photos: Path) -> Iterator[Start]:
    """`start(table, address)` runs the verb beside this process."""
    begun: list[subprocess.Popen[str]] = []

    def run(
        table: Path | str, to: RayProcess | str, *, client: bool = False, source: Path | str = photos
    ) -> "subprocess.Popen[str]":
        address, environment = (
            (to, {}) if isinstance(to, str) else (to.client if client else to.address, to.environment)
        )
        shape = ["--shard-rows", str(CHUNK), "--batch", str(BATCH), "--json"]
        command = [*CLI, str(source), "--bundle", str(toy_bundle.path), "--table", str(table), "--cluster", address]
        pipe = subprocess.PIPE
        known = {**os.environ, **environment}
        process = subprocess.Popen([*command, *shape], stdout=pipe, stderr=pipe, text=True, env=known)
        begun.append(process)
        return process

    yield run
    for process in begun:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def ended(process: "subprocess.Popen[str]", code: int, seconds: float = 120) -> tuple[str, str]:
    out, errors = process.communicate(timeout=seconds)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    return out, errors


def test_a_worker_is_killed_and_nobody_sees_it(
    cluster: RayProcess, start: Start, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    table = tmp_path / "table"
    process = start(table, cluster)
    wait_for(lambda: len(records(table)) >= 3, process)
    os.kill(cluster.workers()[0], signal.SIGKILL)
    out, _ = ended(process, 4)
    assert json.loads(out)["rows"] == IMAGES + 1
    assert rows_in(table) == undisturbed


def test_a_killed_driver_goes_on_where_it_was(
    cluster: RayProcess, start: Start, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    table = tmp_path / "table"
    process = start(table, cluster)
    wait_for(lambda: len(records(table)) >= 3, process)
    process.kill()
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in records(table)}
    assert len(before) < len(undisturbed) // CHUNK
    assert not (table / "_delta_log").exists()
    again = start(table, cluster)
    rival = start(table, cluster)  # one of two is refused, whichever it is
    codes = {again.wait(120), rival.wait(120)}
    assert codes == {1, 4}
    assert any("another process is scoring into" in each.communicate()[1] for each in (again, rival))
    assert rows_in(table) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was done is not done again"


@pytest.mark.faults
def test_a_killed_raylet_ends_the_job_in_one_sentence(
    start: Start, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    table = tmp_path / "table"
    with ray_cluster() as lost:
        process = start(table, lost)
        wait_for(lambda: len(records(table)) >= 3, process)
        os.kill(lost.raylet, signal.SIGKILL)
        _, errors = ended(process, 1, 180)
    assert "What was finished is safe" in errors
    assert not (table / "_delta_log").exists()
    ended(start(table, "local"), 4)
    assert rows_in(table) == undisturbed


@pytest.mark.faults
def test_from_another_machine(
    cluster: RayProcess, start: Start, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Through Ray's client, which is how a laptop reaches a cluster."""
    ended(start(tmp_path / "table", cluster, client=True), 4)
    assert rows_in(tmp_path / "table") == undisturbed


@pytest.mark.faults
def test_a_disk_that_fills_up_in_a_worker(
    cluster: RayProcess, start: Start, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    """A small file system of its own, which takes root to make."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system of 400 kB cannot be mounted here")
    try:
        table = disk / "table"
        _, errors = ended(start(table, cluster), 1)
        assert "no space left on the disk while writing" in errors
        assert not (table / "_delta_log").exists()
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        ended(start(table, cluster), 4)
        assert rows_in(table) == undisturbed
    finally:
        subprocess.run(["umount", disk], check=False)


@pytest.mark.faults
def test_from_bucket_to_bucket(
    start: Start, photos: Path, undisturbed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects and table in a store that is busy and breaks off, while a worker is killed."""
    with object_store() as store:
        known = {
            "AWS_ENDPOINT_URL": store.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name, value in known.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        for bucket in ("archive", "lake"):
            client.create_bucket(Bucket=bucket)
        for file in photos.rglob("*.png"):
            client.put_object(Bucket="archive", Key=f"a/{file.relative_to(photos)}", Body=file.read_bytes())
        store.faults.busy.update({"0/005.png": 2, "1/011.png": 1})
        store.faults.half.update({"2/017.png": 1})
        with ray_cluster(**known) as cluster:
            process = start("s3://lake/scores", cluster, source="s3://archive/a")
            wait_for(lambda: bool(cluster.workers()), process)
            wait_for(lambda: len(store.faults.asked) > 40, process)
            os.kill(cluster.workers()[0], signal.SIGKILL)
            ended(process, 4, 240)
        options = {"aws_endpoint": store.endpoint, "allow_http": "true", "aws_region": "us-east-1"}
        rows = DeltaTable("s3://lake/scores", storage_options=options).to_pyarrow_table().to_pylist()
    rows.sort(key=lambda row: row["id"])
    names = ("id", "run", "status", "label", "probability", "instance_score", "p_value", "layer_scores", "size")
    assert [[row[name] for name in names] for row in rows] == [[row[name] for name in names] for row in undisturbed]


def test_what_a_worker_cannot_begin_with_is_told(start: Start, tmp_path: Path) -> None:
    """Its nodes trust a key, and the bundle is not signed."""
    table, (_, public) = tmp_path / "table", write_keys(tmp_path)
    with ray_cluster(FIELDMARK_PUBLIC_KEY=str(public)) as strict:
        _, errors = ended(start(table, strict), 1)
    assert f"is not signed, and a signature by the key {public} is required" in " ".join(errors.split())
    assert not (table / "_delta_log").exists()


def test_a_worker_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without this package: what Ray says of it is played."""
    ray = connection.ray_library()
    problem = ray.exceptions.ActorDiedError()
    problem._actor_init_failed = True
    problem.error_msg = "The actor died because of an error raised in its creation task\nModuleNotFoundError: scoring\n"

    def get(_: Any) -> Any:
        raise problem

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(ScoringError, match=r"^a worker cannot be started \(ModuleNotFoundError: scoring\)\. Start the"):
        _gathered([])


@pytest.mark.hostile
def test_a_cluster_of_another_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions of Ray cannot be here at once, so what it says then is played."""

    def init(**_: Any) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.12.1")

    monkeypatch.setattr(connection, "ray_library", lambda: SimpleNamespace(init=init))
    with (
        pytest.raises(ScoringError, match=r"at auto runs another version of Ray or Python.*from the image"),
        connection.connected("auto", None, 1, 10**8),
    ):
        pass


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("address", "code", "sentence"),
    [
        ("127.0.0.1:{free}", 1, "no Ray answers at 127.0.0.1:"),
        ("somewhere", 2, "--cluster 'somewhere' is no address"),
        ("ray://127.0.0.1:99999", 1, "no Ray answers at ray://127.0.0.1:99999"),
    ],
)
def test_where_no_ray_answers(start: Start, tmp_path: Path, address: str, code: int, sentence: str) -> None:
    _, errors = ended(start(tmp_path / "table", address.format(free=free_port())), code)
    assert errors.startswith(f"error: {sentence}")
    assert not (tmp_path / "table").exists()


@pytest.mark.hostile
def test_something_else_answers(start: Start, tmp_path: Path) -> None:
    with object_store() as store:
        _, errors = ended(start(tmp_path / "table", store.endpoint.removeprefix("http://")), 1)
    assert errors.startswith("error: no Ray answers at 127.0.0.1:")
    assert "what answers is something else" in errors


@pytest.mark.hostile
def test_without_its_token(cluster: RayProcess, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    _, errors = ended(start(tmp_path / "table", cluster.address), 1)
    assert f"error: the Ray at {cluster.address} does not let this job in. Its token is looked for" in errors


def test_a_worker_of_another_version(
    cluster: RayProcess, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver says that it is another fieldmark than the cluster has."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'fieldmark' in sys.argv[0:3] or '-m' in sys.orig_argv:\n"
        "    import importlib.metadata as m\n    old = m.version\n"
        "    m.version = lambda name: '9.9' if name == 'fieldmark' else old(name)\n"
    )
    table = tmp_path / "table"
    _, errors = ended(start(table, cluster), 1)
    assert "and here is 9.9 on" in errors
    shutil.rmtree(table)
