"""`fieldmark gateway` as a process, and the examples of the documentation before it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

import fieldmark
from bundle import Bundle
from serving.gateway.client import FieldmarkClient
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.options import GatewayOptions, flag, is_loopback
from serving.gateway.probing import Prober
from serving.quarantine.reader import entries, read_image
from serving.triton.server import TritonServer
from tests.conftest import LABELS
from tests.serving.gateway.gateway_thread import encode

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "docs" / "examples"
GOOD = encode(np.full((40, 40, 3), 140, np.uint8))


def start(*arguments: str | Path) -> tuple["subprocess.Popen[str]", dict[str, Any]]:
    command = [sys.executable, "-m", "fieldmark", "gateway", *arguments, "--port", "0", "--metrics-port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        pytest.fail(process.communicate(timeout=10)[1])
    return process, json.loads(line)


@pytest.fixture(scope="module")
def url(toy_server: TritonServer, toy_bundle: Bundle) -> Iterator[str]:
    process, facts = start(toy_server.grpc_url, "--bundle", toy_bundle.path)
    yield facts["url"]
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert [json.loads(line)["event"] for line in log.splitlines()][-1] == "stopping"


@pytest.fixture
def photo(tmp_path: Path, toy_images: np.ndarray) -> Path:
    Image.fromarray(toy_images[2]).save(tmp_path / "bird.png")
    return tmp_path / "bird.png"


@pytest.mark.triton
def test_one_command_from_bundle_to_answer(toy_bundle: Bundle) -> None:
    process, facts = start(toy_bundle.path, "--quiet")
    try:
        assert facts["bundle_id"] == toy_bundle.bundle_id
        with FieldmarkClient(facts["url"]) as client:
            answer = client.classify(GOOD, explain=True)
        assert all(shown.png for shown in answer.explanation.prototypes)
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.triton
def test_what_is_kept_is_whole_when_the_command_has_ended(toy_server: TritonServer, tmp_path: Path) -> None:
    kept = ("--quarantine", tmp_path / "q", "--quarantine-sample", "1", "--audit-log", tmp_path / "audit.log")
    process, facts = start(toy_server.grpc_url, "--quiet", *kept)
    with FieldmarkClient(facts["url"]) as client:
        for _ in range(5):
            client.classify(GOOD)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30) == ("", "")
    found = list(entries(str(tmp_path / "q")))
    assert [read_image(str(tmp_path / "q"), each.entry) for each in found if each.entry] == 5 * [GOOD]
    assert len((tmp_path / "audit.log").read_text().splitlines()) == 5


@pytest.mark.triton
def test_a_triton_that_dies_under_its_gateway(toy_bundle: Bundle) -> None:
    process, _ = start(toy_bundle.path, "--quiet")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.killpg(int(children[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.startswith("error: tritonserver died")
    assert "Traceback" not in err


@pytest.mark.triton
def test_what_ends_the_prober_is_said(
    played_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(_: Prober) -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(Prober, "run", fail)
    with pytest.raises(SystemExit) as ended:
        fieldmark.main(["gateway", played_url, "--port", "0", "--metrics-port", "0", "--quiet"])
    assert ended.value.code == 1
    assert "prober died (RuntimeError: nobody foresaw this)" in capsys.readouterr().err


def example(*command: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=variables)


@pytest.mark.triton
def test_the_python_example(url: str, photo: Path) -> None:
    run = example(sys.executable, EXAMPLES / "classify.py", photo, url)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"{LABELS[2]}: ")
    assert "not flagged" in run.stdout
    photo.write_bytes(b"no image")
    run = example(sys.executable, EXAMPLES / "classify.py", photo, url)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("IMAGE_REFUSED: not an image")


@pytest.mark.triton
def test_the_shell_example(url: str, photo: Path) -> None:
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = example(EXAMPLES / "classify.sh", photo, url, PATH=tools)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["predictions"][0]["label"] == LABELS[2]
    photo.write_bytes(b"no image")
    run = example(EXAMPLES / "classify.sh", photo, url, PATH=tools)
    assert run.returncode != 0
    assert json.loads(run.stderr)["code"] == "invalid_argument"


@pytest.mark.triton
def test_the_node_example(url: str, photo: Path) -> None:
    node, modules = shutil.which("node"), os.environ.get("NODE_PATH", str(EXAMPLES / "node_modules"))
    if node is None or not Path(modules, "@grpc", "grpc-js").is_dir():
        pytest.skip("node or its gRPC is not here; 'npm install' in docs/examples, or NODE_PATH")
    run = example(node, EXAMPLES / "classify.js", photo, url, NODE_PATH=modules)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"{LABELS[2]}: ")
    photo.write_bytes(b"no image")
    run = example(node, EXAMPLES / "classify.js", photo, url, NODE_PATH=modules)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("INVALID_ARGUMENT: not an image")


# Bad options

FREE = ("--quiet", "--port", "0", "--metrics-port", "0")


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[Any, str]:
    with pytest.raises(SystemExit) as ended:
        fieldmark.main(["gateway", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return ended.value.code, err


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["localhost:1", "--host", "0.0.0.0"], 2, "can be reached by others"),
        (["localhost:1", "--host", "::"], 2, "can be reached by others"),
        (["localhost:1", "--host", "example.com"], 2, "can be reached by others"),
        ([*FREE, "localhost:1"], 1, "no server answers at localhost:1"),
        ([*FREE, "a b"], 1, "not the address of a gRPC server"),
        (["/nowhere/bundle"], 1, "there is no bundle"),
        (["localhost:1", "--bundle", "/nowhere/bundle"], 1, "there is no bundle"),
        ([*FREE, "localhost:1", "--connection-seconds", "2147484"], 2, "2147484 s are more than gRPC counts"),
        ([*FREE, "localhost:1", "--timeout", "2147460"], 2, "--timeout and --stall-seconds together"),
        ([*FREE, "localhost:1", "--host", "no.such.host.invalid", "--insecure"], 1, "cannot be used on no.such.host"),
        (["localhost:1", "--port", "70000"], 2, "--port 70000"),
        (["localhost:1", "--port", "8011"], 2, "are both 8011"),
        (["localhost:1", "--workers", "0"], 2, "--workers 0"),
        (["localhost:1", "--queue-size", "-1"], 2, "--queue-size -1"),
        (["localhost:1", "--timeout", "nan"], 2, "--timeout nan"),
        (["localhost:1", "--stall-seconds", "inf"], 2, "--stall-seconds inf"),
        (["localhost:1", "--drain-seconds", "-1"], 2, "--drain-seconds -1"),
        (["localhost:1", "--image-bytes", str(2**31)], 2, "more than a message"),
        (["localhost:1", "--triton-header", "/nowhere/secret"], 2, "no such file"),
        (["localhost:1", "--quarantine", "/dev/null/q"], 2, "--quarantine /dev/null/q: not a directory"),
        (["localhost:1", "--quarantine", "/dev/null"], 2, "is no folder"),
        (["localhost:1", "--quarantine", "nowhere://q"], 2, "is no place for a quarantine"),
        (["localhost:1", "--quarantine", ""], 2, "--quarantine names no place"),
        (["localhost:1", "--quarantine", "s3://q", "--quarantine-sample", "2"], 2, "--quarantine-sample 2"),
        (["localhost:1", "--quarantine-sample", "0.1"], 2, "--quarantine is not"),
        (["localhost:1", "--audit-log", "/nowhere/audit.log"], 2, "--audit-log /nowhere/audit.log: no such file"),
        (["localhost:1", "--audit-log", "/dev/null"], 2, "not a regular file"),
        (["localhost:1", "--audit-log", "a", "--audit-bytes", "1"], 2, "--audit-bytes 1"),
        (["localhost:1", "--audit-files", "3"], 2, "--audit-log is not"),
        ([*FREE, "localhost:1", "--triton-tls", "/nowhere"], 2, "no such file"),
        ([*FREE, "localhost:1", "--otlp", "nonsense"], 2, "is not the address of a collector"),
    ],
)
def test_a_bad_option(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str) -> None:
    found, err = run(capsys, *arguments)
    assert found == code
    assert words in err


@pytest.mark.triton
@pytest.mark.hostile
@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_that_is_taken(capfd: pytest.CaptureFixture[str], toy_server: TritonServer, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"--port": 0, "--metrics-port": 0, option: taken.getsockname()[1]}
        found, err = run(capfd, toy_server.grpc_url, "--quiet", *[str(each) for pair in ports.items() for each in pair])
    assert found == 1
    assert f"port {ports[option]}" in err
    assert option in err


@pytest.mark.triton
def test_another_bundle_is_insisted_on(
    capsys: pytest.CaptureFixture[str], toy_server: TritonServer, make_toy_bundle: Any, tmp_path: Path
) -> None:
    other = make_toy_bundle(tmp_path / "other", name="other")
    assert "is expected" in run(capsys, toy_server.grpc_url, "--bundle", other.path, *FREE)[1]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((host, True) for host in ("localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example.com", "", "1")),
    ],
)
def test_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_every_setting_has_a_flag() -> None:
    import typer

    from serving.gateway.cli import app

    command = typer.main.get_command(app).commands["gateway"]  # type: ignore[attr-defined]
    flags = {option for each in command.params for option in each.opts}
    assert {flag(name) for name in GatewayOptions.__dataclass_fields__} <= flags


@pytest.mark.triton
def test_the_gateway_loads_no_torch(url: str) -> None:
    script = "import sys, serving.gateway.server, serving.gateway.cli; print('torch' in sys.modules)"
    assert example(sys.executable, "-c", script).stdout == "False\n"
    with grpc.insecure_channel(url) as channel:
        answer = channel.unary_unary("/fieldmark.v1.Fieldmark/Describe")(v1.DescribeRequest().SerializeToString())
    assert v1.DescribeResponse.FromString(answer).name == "toy"
