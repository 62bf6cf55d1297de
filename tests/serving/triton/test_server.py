"""A real tritonserver: its answers, its manners under bad requests, and how it starts and goes."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from benchmarks.reliability.brittle import brittle_bundle
from bundle import Bundle, tensors
from bundle.errors import EndpointError, OptionError, ServerError
from serving.client.remote import TritonInference
from serving.processes import exits_within, group
from serving.triton.command import useful_line
from serving.triton.config import available_cores, share_cores
from serving.triton.environment import find_environment, inspect_environment
from serving.triton.server import TritonServer
from serving.workspace import sweep
from tests.serving.upkeep.remade import remade

pytestmark = pytest.mark.triton

ROOT = Path(__file__).parents[3]
FREE = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}  # with HTTP, which is off unless a port is given


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def inference(toy_server: TritonServer) -> Iterator[TritonInference]:
    with TritonInference.connect(toy_server.grpc_url) as client:
        yield client


@pytest.fixture
def private_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of this test alone, so that whatever stays behind in it is ours."""
    folder = tmp_path / "t"  # short: there are sockets in it
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")  # ONNX Runtime leaves a trace here if it is not told to be silent
    return folder


def traces(temporary: Path) -> list[str]:
    """What is left of the servers that had `temporary` for their temporary files."""
    found = [str(path) for path in temporary.iterdir()]
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(temporary).encode() in line.read_bytes():
                found.append(line.read_text().replace("\0", " "))
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} seconds in vain")
        time.sleep(0.02)


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", tensors.NETWORKS)
def test_every_batch_size_equals_onnx_runtime_bit_for_bit(
    inference: TritonInference, toy_bundle: Bundle, network: str
) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = share_cores(available_cores())[1]
    session = onnxruntime.InferenceSession(toy_bundle.model(network), options, providers=["CPUExecutionProvider"])
    names = list(tensors.OUTPUTS[network])
    for count in range(1, 65):
        images = noise(count, seed=count)
        answers = inference.infer(images, network)
        for name, expected in zip(names, session.run(names, {tensors.IMAGE: images}), strict=True):
            assert answers[name].dtype == expected.dtype
            np.testing.assert_array_equal(answers[name], expected, err_msg=f"{name} at batch {count}")


def test_requests_that_meet_in_the_queue_get_their_own_answers(
    toy_server: TritonServer, inference: TritonInference
) -> None:
    """Requests of one to three images, sent before the first is answered, share executions and are split again."""
    images = noise(120)
    expected = inference.infer(images, "full")
    client = triton.InferenceServerClient(toy_server.grpc_url)

    def collect(results: dict[Any, Any], done: threading.Semaphore, span: Any, result: Any, error: Any) -> None:
        results[span] = error or result
        done.release()

    def executions() -> int:
        stats = client.get_inference_statistics("full").model_stats[0]
        return int(stats.execution_count)

    for _ in range(10):
        before, results, done = executions(), dict[Any, Any](), threading.Semaphore(0)
        starts = list(range(0, 120, 6))
        for start in starts:
            for low, high in ((start, start + 1), (start + 1, start + 3), (start + 3, start + 6)):
                image = triton.InferInput("image", [high - low, 32, 32, 3], "UINT8")
                image.set_data_from_numpy(images[low:high])

                client.async_infer("full", [image], partial(collect, results, done, (low, high)))
        assert all(done.acquire(timeout=30) for _ in range(3 * len(starts)))
        for (low, high), result in results.items():
            assert not isinstance(result, Exception), result
            for name in ("probabilities", "layer_scores", "attention", "prototype_indices", "prototype_similarities"):
                np.testing.assert_allclose(result.as_numpy(name), expected[name][low:high], rtol=1e-5, atol=1e-6)
        if executions() - before < len(results):
            return
    pytest.fail("in ten bursts of sixty requests no two shared an execution")


def test_many_clients_at_once(toy_server: TritonServer, inference: TritonInference) -> None:
    images = noise(64)
    expected = inference.infer(images, "attention")["layer_scores"]
    problems: list[BaseException | str] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        try:
            with TritonInference.connect(toy_server.grpc_url) as client:
                for _ in range(15):
                    rows = random.integers(0, 64, random.integers(1, 9))
                    answer = client.infer(images[rows], "attention")["layer_scores"]
                    if not np.allclose(answer, expected[rows], rtol=1e-5):
                        problems.append(f"client {seed} got somebody else's answer")
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert problems == []


# --- manners ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Request:
    """A request as no client of ours would send it."""

    shape: tuple[int, ...] = (1, 32, 32, 3)
    dtype: str = "UINT8"
    name: str = "image"
    model: str = "full"
    output: str = ""
    data: bytes | None = None


MALFORMED = {
    "another size": Request(shape=(1, 16, 16, 3)),
    "no batch": Request(shape=(32, 32, 3)),
    "too many": Request(shape=(65, 32, 32, 3)),
    "none": Request(shape=(0, 32, 32, 3)),
    "negative": Request(shape=(-1, 32, 32, 3), data=b"abc"),
    "floats": Request(dtype="FP32"),
    "strings": Request(dtype="BYTES"),
    "an unknown type": Request(dtype="UINT99"),
    "another input": Request(name="img"),
    "another model": Request(model="../full"),
    "another output": Request(output="secret"),
    "too little data": Request(data=b"abc"),
    "too much data": Request(data=bytes(4000)),
    "no data": Request(data=b""),
}


@pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_requests_get_a_clean_refusal(
    toy_server: TritonServer, inference: TritonInference, request_: Request
) -> None:
    image = triton.InferInput(request_.name, request_.shape, request_.dtype)
    image._raw_content = bytes(int(np.prod(request_.shape))) if request_.data is None else request_.data
    outputs = [triton.InferRequestedOutput(request_.output)] if request_.output else None
    client = triton.InferenceServerClient(toy_server.grpc_url)
    with pytest.raises(InferenceServerException) as problem:
        client.infer(request_.model, [image], outputs=outputs, client_timeout=10)
    assert problem.value.status() in ("StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND")
    for leak in ("Traceback", "File ", ".py", "/tmp", str(ROOT), tempfile.gettempdir()):
        assert leak not in problem.value.message()
    assert inference.infer(noise(1), "full")["p_value"].shape == (1,)


def test_only_the_outputs_asked_for_are_sent(toy_server: TritonServer) -> None:
    image = triton.InferInput("image", (1, 32, 32, 3), "UINT8")
    image.set_data_from_numpy(noise(1))
    client = triton.InferenceServerClient(toy_server.grpc_url)
    answer = client.infer("full", [image], outputs=[triton.InferRequestedOutput("p_value")]).get_response()
    assert [output.name for output in answer.outputs] == ["p_value"]
    everything = client.infer("full", [image]).get_response()
    assert [output.name for output in everything.outputs] == list(tensors.OUTPUTS["full"])


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get_model_repository_index(),
        lambda client: client.load_model("full", config="{}"),
        lambda client: client.unload_model("full"),
        lambda client: client.register_system_shared_memory("a", "/a", 1),
        lambda client: client.update_trace_settings("full", {}),
        lambda client: client.update_log_settings({"log_verbose_level": 9}),
    ],
    ids=["index", "load", "unload", "shared memory", "trace", "logging"],
)
def test_what_a_client_has_no_business_with_is_refused(toy_server: TritonServer, call: Callable[[Any], Any]) -> None:
    with pytest.raises(InferenceServerException, match="restricted"):
        call(triton.InferenceServerClient(toy_server.grpc_url))


def test_http_and_metrics_answer_and_are_restricted_too(toy_server: TritonServer, inference: TritonInference) -> None:
    inference.infer(noise(1), "full")
    with urllib.request.urlopen(f"{toy_server.http_url}/v2/health/ready", timeout=10) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError) as problem:
        urllib.request.urlopen(f"{toy_server.http_url}/v2/repository/index", data=b"", timeout=10)
    assert problem.value.code == 403
    with urllib.request.urlopen(toy_server.metrics_url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    counts = [line for line in lines if line.startswith('nv_inference_request_success{model="full"')]
    assert float(counts[0].split()[-1]) >= 1


def test_it_listens_on_loopback_alone(toy_server: TritonServer) -> None:
    listening = set()
    inodes = {os.readlink(link) for link in Path(f"/proc/{toy_server.pid}/fd").iterdir() if link.is_symlink()}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{toy_server.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                host, port = fields[1].split(":")
                listening.add((host.removeprefix("0000000000000000FFFF0000"), int(port, 16)))
    ports = {toy_server.grpc_port, toy_server.http_port, toy_server.metrics_port}
    assert listening == {("0100007F", port) for port in ports}


def test_a_graph_that_fails_on_one_image(toy_bundle: Bundle, tmp_path: Path) -> None:
    """ONNX Runtime's words stay in the log; the client gets one sentence, and the next request its answer."""
    brittle = brittle_bundle(toy_bundle, tmp_path)
    log: list[str] = []
    with TritonServer(brittle, **FREE, on_log=log.append) as server:
        with TritonInference.connect(server.grpc_url) as client:
            good = np.full((1, 32, 32, 3), 7, np.uint8)
            assert client.infer(good, "full")["p_value"].shape == (1,)
            with pytest.raises(EndpointError) as problem:
                client.infer(np.full((2, 32, 32, 3), 255, np.uint8), "full")
            assert "could not answer (the network could not be run on this request" in str(problem.value)
            assert client.infer(good, "full")["p_value"].shape == (1,)
        wait_for(lambda: any("indices element out of data bounds" in line for line in log))


# --- coming and going ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serve(bundle: Path, temporary: Path, *options: str, python: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """`fieldmark serve` in a process of its own, from any folder, killed if the test left it."""
    process = subprocess.Popen(
        [python or sys.executable, "-m", "fieldmark", "serve", str(bundle), "--json"]
        + [f"--{name.replace('_', '-')}=0" for name in (*FREE, "port", "gateway_metrics_port")]
        + list(options),
        cwd=temporary.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ready(process: subprocess.Popen[str]) -> dict[str, Any]:
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return json.loads(line)


@pytest.mark.parametrize(("number", "whose"), [(signal.SIGTERM, "server's"), (signal.SIGINT, "client's")])
def test_serve_runs_and_stops_without_a_trace(toy_bundle: Bundle, private_temp: Path, number: int, whose: str) -> None:
    """From the server environment, which has numpy 1.26 and no torch, as well as from the client's."""
    python = find_environment().python if whose == "server's" else None
    with serve(toy_bundle.path, private_temp, "--no-gateway", python=python) as process:
        facts = ready(process)
        assert facts["bundle_id"] == toy_bundle.bundle_id
        assert facts["triton_version"] == "2.51.0"
        assert facts["pid"] == process.pid
        assert sorted(facts["networks"]) == sorted(tensors.NETWORKS)
        with TritonInference.connect(facts["grpc_url"], expect_bundle=toy_bundle.bundle_id) as client:
            assert client.infer(noise(3), "attention")["p_value"].shape == (3,)
        assert urllib.request.urlopen(facts["metrics_url"], timeout=10).status == 200
        folders = [each.name for each in private_temp.iterdir()]
        assert len(traces(private_temp)) >= 4  # folders of serve and Triton, the server, a stub for each network
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert errors == ""
    assert traces(private_temp) == []
    assert not [each for name in folders for each in Path("/dev/shm").glob(f"{name}*")]


def test_serve_killed_outright_leaves_no_process_and_its_folder_is_swept(
    toy_bundle: Bundle, private_temp: Path
) -> None:
    with serve(toy_bundle.path, private_temp) as process:
        ready(process)
        folders = sorted(private_temp.iterdir())
        sweep()
        assert all(folder.exists() for folder in folders), "a living server's folder was swept"
        process.kill()
        process.wait()
        wait_for(lambda: sorted(traces(private_temp)) == [str(folder) for folder in folders])
        # An exiting process loses its command line a moment before its descriptors, and with them the lock.
        wait_for(lambda: sweep() is None and not any(folder.exists() for folder in folders))
        assert traces(private_temp) == []
        assert not [each for folder in folders for each in Path("/dev/shm").glob(f"{folder.name}*")]


def test_serve_interrupted_while_starting(toy_bundle: Bundle, private_temp: Path, tmp_path: Path) -> None:
    slow = tmp_path / "python"
    slow.write_text(f'#!/bin/sh\ntouch "{tmp_path}/asked"\nsleep 0.5\nexec "{find_environment().python}" "$@"\n')
    slow.chmod(0o755)
    with serve(toy_bundle.path, private_temp, "--triton-python", str(slow)) as process:
        wait_for((tmp_path / "asked").exists)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert output == ""
    assert errors == "stopped before the server was ready; nothing was left behind\n"
    assert traces(private_temp) == []


def test_a_killed_worker_is_a_sentence_at_the_client(toy_bundle: Bundle, private_temp: Path) -> None:
    with TritonServer(toy_bundle, **FREE) as server, TritonInference.connect(server.grpc_url) as client:
        server.check()
        for pid in group(server.pid):
            if pid != server.pid:
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(EndpointError, match=r"a worker process of the server at .* has died"):
            client.infer(noise(1), "full")
        with pytest.raises(ServerError, match="a worker process of the server died"):
            server.check()
        os.kill(server.pid, signal.SIGKILL)  # it would wait its whole exit timeout for the dead
    assert traces(private_temp) == []


def test_a_server_killed_in_mid_flight_is_a_sentence_at_the_client(toy_bundle: Bundle, private_temp: Path) -> None:
    with TritonServer(toy_bundle, **FREE) as server, TritonInference.connect(server.grpc_url) as client:
        for pid in group(server.pid):
            if pid != server.pid:
                os.kill(pid, signal.SIGSTOP)  # so that the request is under way for as long as we like
        threading.Timer(0.4, os.kill, (server.pid, signal.SIGKILL)).start()
        with pytest.raises(EndpointError, match="stopped before it answered"):
            client.infer(noise(1), "full")
        assert exits_within(server.pid, 30)  # its connections close before it has ended
        with pytest.raises(ServerError, match="tritonserver died"):
            server.check()
    assert traces(private_temp) == []


def test_a_server_that_dies_a_moment_after_its_workers_is_the_one_that_is_named(toy_bundle: Bundle) -> None:
    with TritonServer(toy_bundle, **FREE) as server:
        stubs = [pid for pid in group(server.pid) if pid != server.pid]
        for pid in stubs:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: set(group(server.pid)) == {server.pid})  # the kernel takes its time on a busy machine
        threading.Timer(0.2, os.kill, (server.pid, signal.SIGKILL)).start()
        with pytest.raises(ServerError, match="tritonserver died"):
            server.check()
    with pytest.raises(ServerError, match="tritonserver died: it is not running"):
        server.check()


@pytest.mark.parametrize("field", FREE)
def test_a_port_in_use_is_named_before_anything_starts(
    toy_bundle: Bundle, private_temp: Path, field: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ServerError) as problem:
            TritonServer(toy_bundle, **{**FREE, field: port}).start()
    assert f"port {port} for " in str(problem.value)
    assert f"--{field.replace('_', '-')} N" in str(problem.value)
    assert traces(private_temp) == []


def test_one_port_for_two_things(toy_bundle: Bundle, private_temp: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OptionError, match="need different ports"):
        TritonServer(toy_bundle, grpc_port=port, http_port=port, metrics_port=0).start()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "999.0.0.1", "::1"])
def test_a_host_that_is_none(toy_bundle: Bundle, host: str) -> None:
    with pytest.raises(OptionError, match="--host"):
        TritonServer(toy_bundle, host=host, **FREE).start()


def test_a_host_of_another_machine(toy_bundle: Bundle) -> None:
    with pytest.raises(ServerError, match=r"cannot be used on 192\.0\.2\.1"):
        TritonServer(toy_bundle, host="192.0.2.1", **FREE).start()


def test_a_graph_that_is_none(toy_bundle: Bundle, private_temp: Path, tmp_path: Path) -> None:
    broken = Bundle.open(remade(toy_bundle, tmp_path / "broken", files={"full/model.onnx": b"not a graph"}))
    with pytest.raises(ServerError) as problem:
        TritonServer(broken, **FREE).start()
    assert "tritonserver could not start: failed to load 'full' version 1: " in str(problem.value)
    assert "\n" not in str(problem.value)
    assert traces(private_temp) == []


def test_a_server_that_is_not_ready_in_time(toy_bundle: Bundle, private_temp: Path) -> None:
    with pytest.raises(ServerError, match=r"was not ready within 0\.01 seconds"):
        TritonServer(toy_bundle, **FREE, start_seconds=0.01).start()
    assert traces(private_temp) == []


def test_serve_refuses_a_bundle_with_one_flipped_byte(toy_bundle: Bundle, private_temp: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(toy_bundle.path, damaged)
    data = bytearray((damaged / "attention/model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / "attention/model.onnx").write_bytes(data)
    with serve(damaged, private_temp) as process:
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert output == ""
    assert errors.startswith(f"error: {damaged}/attention/model.onnx does not match its SHA-256")
    assert errors.count("\n") == 1
    assert traces(private_temp) == []


# --- the server environment ------------------------------------------------------------------------------------------


def test_the_server_environment_holds_no_torch() -> None:
    ask = "import importlib.util; print([n for n in ('torch', 'sklearn', 'onnx') if importlib.util.find_spec(n)])"
    answer = subprocess.run([find_environment().python, "-c", ask], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_a_python_without_the_wheel() -> None:
    with pytest.raises(ServerError) as problem:
        inspect_environment(Path(sys.executable))
    assert "does not hold the nvidia-pytriton wheel. Make one with 'make setup'" in str(problem.value)


def test_the_variable_names_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FIELDMARK_TRITON_PYTHON", str(tmp_path / "absent"))
    with pytest.raises(ServerError, match=r"absent is not a Python that runs \(No such file or directory\)"):
        find_environment()


def test_no_environment_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FIELDMARK_TRITON_PYTHON", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    with pytest.raises(ServerError) as problem:
        find_environment()
    assert "there is no Triton here" in str(problem.value)
    assert "make setup" in str(problem.value)
    assert "'.[server]'" in str(problem.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"numpy": "2.1.0"}, "holds numpy 2.1.0, and Triton's Python stub needs numpy below 2"),
        ({"numpy": ""}, "holds numpy (none)"),
        ({"onnxruntime": ""}, "holds no onnxruntime"),
        ({"python": "3.99"}, "has no stub for Python 3.99"),
        ({"library": "libpython3.11.a"}, "was built without a shared library"),
    ],
)
def test_an_environment_that_lacks_something(tmp_path: Path, change: dict[str, str], expected: str) -> None:
    environment = find_environment()
    answer = {
        "wheel": str(environment.wheel),
        "packages": [],
        "python": environment.stub.parent.name,
        "library": f"libpython{environment.stub.parent.name}.so.1.0",
        "library_folder": "",
        "numpy": "1.26.4",
        "onnxruntime": "1.22.0",
    }
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(answer)}\nEND\n")
    python.chmod(0o755)
    assert inspect_environment(python).stub == environment.stub
    python.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(answer | change)}\nEND\n")
    with pytest.raises(ServerError) as problem:
        inspect_environment(python)
    assert expected in str(problem.value)


LOG = [
    'I1124 06:16:06.600000 10726 x.cc:1] "an everyday line"',
    'E1124 06:16:06.606896 10726 server.cc:241] "CudaDriverHelper has not been initialized."',
    "+------+",
    'E1124 06:16:06.700000 10726 model_lifecycle.cc:642] "failed to load \'full\' version 1: Internal: no \\"x\\"; "',
    'E1124 06:16:06.800000 10726 y.cc:1] "a later one"',
]


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (LOG, "failed to load 'full' version 1: Internal: no \"x\""),
        (LOG[:3] + LOG[4:], "a later one"),
        (LOG[:3], ""),
        (["tritonserver: unknown option '--x'", "Usage: ...", "\t--help"], "tritonserver: unknown option '--x'"),
        ([], ""),
    ],
)
def test_the_useful_line_of_a_log(log: list[str], expected: str) -> None:
    assert useful_line(deque(log)) == expected
