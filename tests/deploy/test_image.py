"""The images, really built from the Dockerfile and run: `make image-test`, by nobody else (it takes minutes).

As root, with buildah and debootstrap. The root is read-only, the user nobody's, /tmp small: as compose and Kubernetes
start it. What is replaced is the base, since no registry may be at hand: a Debian with its Python, from apt's mirror.
Of the gpu image that proves the gateway's half; NVIDIA's Triton was not there.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from bundle import Bundle, tensors
from bundle.errors import FieldmarkError
from serving.gateway.client import FieldmarkClient
from tests.deploy.builder import Builder, Image, mirror, missing
from tests.serving.gateway.gateway_thread import encode

pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]

FREE = ("--port=0", "--grpc-port=0", "--metrics-port=0", "--gateway-metrics-port=0")


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """What builds both, and nothing left of it afterwards: it takes gigabytes."""
    if lacking := missing(("buildah", "debootstrap", "unshare", "setpriv", "apt-get")):
        pytest.skip(f"an image is built here only with {', '.join(lacking)}")
    if not mirror():
        pytest.skip("this machine's apt knows no Debian bookworm")
    made = Builder(folder=tmp_path_factory.mktemp("image"))
    try:
        made.prepare()
        yield made
    finally:
        shutil.rmtree(made.folder)


@pytest.fixture(scope="session")
def baked(builder: Builder, toy_bundle: Bundle) -> Image:
    """The cpu image with the toy bundle in it."""
    return builder.build("cpu", bundle=toy_bundle.path)


@pytest.fixture(scope="session")
def beside(builder: Builder, toy_bundle: Bundle) -> Image:
    """The gpu image with the toy bundle in it, over a base without a Triton."""
    return builder.build("gpu", bundle=toy_bundle.path)


@pytest.fixture(scope="session")
def served(baked: Image) -> Iterator[dict[str, Any]]:
    """What a container that runs `fieldmark serve` says of itself; drained at the end, and then it ended well."""
    with baked.start([*baked.config["Entrypoint"], *baked.config["Cmd"], *FREE, "--json"]) as process:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield json.loads(line) | {"container": process.pid}
        os.kill(processes(process.pid)[1], signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors


def processes(container: int) -> dict[int, int]:
    """Of the living processes inside, the number there and the number on this machine; `container` has started all."""
    (first,) = Path(f"/proc/{container}/task/{container}/children").read_text().split()
    space, found = Path(f"/proc/{first}/ns/pid").readlink(), dict[int, int]()
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # one that has ended meanwhile, or that nobody has buried yet
            inside = re.findall(r"^NSpid:.*\t(\d+)$", (each / "status").read_text(), re.MULTILINE)
            if inside and (each / "ns" / "pid").readlink() == space:
                found[int(inside[0])] = int(each.name)
    return found


def test_it_starts_what_the_deployments_start(baked: Image, toy_bundle: Bundle) -> None:
    assert baked.config["Entrypoint"] == ["python3", "-m", "fieldmark"]
    assert baked.config["Cmd"] == ["serve", "/bundle"]
    assert baked.config["User"] == "10001:10001"
    assert set(baked.config["ExposedPorts"]) == {"8010/tcp", "8011/tcp"}
    assert Bundle.open(baked.root / "bundle").bundle_id == toy_bundle.bundle_id


def test_it_holds_no_torch_no_tests_and_nothing_of_the_build(baked: Image) -> None:
    home = baked.root / "opt" / "fieldmark"
    assert sorted(each.name for each in home.iterdir()) == ["bundle", "fieldmark.py", "server.lock", "serving", "venv"]
    packages = {each.name for each in home.glob("venv/lib/python3*/site-packages/*")}
    assert {"pytriton", "onnxruntime", "grpc", "prometheus_client", "envoy", "cryptography"} <= packages
    assert not {"torch", "pytest", "sklearn"} & packages
    assert not (baked.root / "etc" / "pip.conf").exists()
    assert not (baked.root / "root" / ".cache").exists()


def test_it_runs_as_nobody_on_a_read_only_root(baked: Image) -> None:
    run = baked.run(["sh", "-c", "id -u; grep -h NoNewPrivs /proc/self/status; touch /opt/fieldmark/x; touch /tmp/x"])
    assert run.stdout.split() == ["10001", "NoNewPrivs:", "1"]
    assert run.stderr.count("\n") == 1
    assert "Read-only file system" in run.stderr


def test_it_answers_fieldmark_v1(served: dict[str, Any], toy_bundle: Bundle, toy_images: np.ndarray) -> None:
    assert served["bundle_id"] == toy_bundle.bundle_id
    with FieldmarkClient(served["url"]) as client:
        for network in toy_bundle.manifest.networks:
            here = onnxruntime.InferenceSession(toy_bundle.model(network), providers=["CPUExecutionProvider"])
            for index in range(5):
                answer = client.classify(encode(toy_images[index]), network=network)
                (p_value,) = here.run([tensors.P_VALUE], {tensors.IMAGE: toy_images[index][None]})[0]
                assert answer.predictions[0].label == toy_bundle.manifest.labels[index]
                assert answer.adversarial.p_value == pytest.approx(p_value)
        noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        assert client.classify(encode(noise)).adversarial.flagged


def test_fieldmark_classify_runs_in_it(baked: Image, served: dict[str, Any], toy_bundle: Bundle) -> None:
    prototype = toy_bundle.manifest.prototypes[0]
    run = baked.run(
        ["python3", "-m", "fieldmark", "classify", f"/bundle/{prototype.image}", "--json", "--url", served["grpc_url"]]
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["label"] == toy_bundle.manifest.labels[prototype.label]


def test_its_health_check_tells_the_truth(baked: Image, served: dict[str, Any]) -> None:
    kind, *command = baked.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    well = baked.run([*command, "--url", served["gateway_metrics_url"]])
    assert (well.returncode, well.stdout) == (0, "healthy: attention, full\n")
    ill = baked.run([*command, "--url", "http://127.0.0.1:9/metrics"])
    assert (ill.returncode, ill.stdout) == (1, "")
    assert ill.stderr.startswith("unhealthy: no gateway's metrics at http://127.0.0.1:9/metrics")


def test_envoy_runs_in_it(baked: Image) -> None:
    run = baked.run(
        [
            "python3",
            "-c",
            "from serving.envoy.process import find_envoy as f; import os; os.execv(f(), ['envoy', '--version'])",
        ]
    )
    assert run.returncode == 0, run.stderr
    assert "envoy  version: " in run.stdout


def test_a_killed_triton_is_replaced_where_serve_is_the_first_process(served: dict[str, Any]) -> None:
    """Nobody else is there to take care of what it leaves behind."""
    before = processes(served["container"])
    os.kill(before[served["triton_pid"]], signal.SIGKILL)
    deadline = time.monotonic() + 90
    while set(processes(served["container"])) <= set(before):
        assert time.monotonic() < deadline, "nothing new was started"
        time.sleep(0.2)
    image = encode(np.full((40, 40, 3), 140, np.uint8))
    with FieldmarkClient(served["url"], timeout=5) as client:
        while time.monotonic() < deadline:
            with contextlib.suppress(FieldmarkError):
                assert client.classify(image).bundle_id == served["bundle_id"]
                return
    pytest.fail("it did not answer again")


def test_a_tmp_where_nothing_may_run_is_named(baked: Image) -> None:
    """Docker's own --tmpfs forbids it."""
    run = baked.run([*baked.config["Entrypoint"], *baked.config["Cmd"], *FREE], tmpfs="noexec")
    assert run.returncode == 1
    assert run.stderr.startswith("error: nothing may be run in /tmp")
    assert "--tmpfs /tmp:exec" in run.stderr


# The gpu image, but for its Triton


def test_its_gateway_answers_before_another_triton(
    beside: Image, served: dict[str, Any], toy_bundle: Bundle, toy_images: np.ndarray
) -> None:
    ports = ["--port=0", "--metrics-port=0"]
    words = [
        "python3",
        "-m",
        "fieldmark",
        "gateway",
        served["grpc_url"],
        "--bundle=/bundle",
        *ports,
        "--quiet",
        "--json",
    ]
    with beside.start(words) as process:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        with FieldmarkClient(json.loads(line)["url"]) as client:
            answer = client.classify(encode(toy_images[3]), explain=True)
        assert answer.predictions[0].label == toy_bundle.manifest.labels[3]
        os.kill(processes(process.pid)[1], signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")


def test_it_starts_the_triton_that_is_not_there(beside: Image) -> None:
    assert beside.config["User"] == "10001:10001"
    run = beside.run([*beside.config["Entrypoint"], *beside.config["Cmd"]], tmpfs="noexec")
    assert run.returncode == 1
    assert "tritonserver cannot be started" in run.stderr
    packages = {each.name for each in (beside.root / "opt" / "fieldmark" / "packages").iterdir()}
    assert {"grpc", "prometheus_client", "envoy", "cryptography"} <= packages
    assert not {"pytriton", "onnxruntime", "torch"} & packages
    kind, *command = beside.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    assert beside.run([*command[:-1], "127.0.0.1:9"]).stderr.startswith("unhealthy: no server answers")
