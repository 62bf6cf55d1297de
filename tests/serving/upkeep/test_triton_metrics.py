"""Triton's metrics at a port of ours, when whoever asks does not wait for the answer."""

import http.client
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.upkeep.triton_metrics import HOST, TritonMetrics

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nnv_x 1\r\n"
GONE = struct.pack("ii", 1, 0)  # a closed connection is reset, and not only ended


@pytest.fixture
def triton(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket where the test answers as Triton does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "metrics"))
        listener.listen()
        listener.settimeout(20)
        yield listener


@pytest.fixture
def metrics(triton: socket.socket) -> Iterator[TritonMetrics]:
    metrics = TritonMetrics(Path(triton.getsockname()), 0)
    metrics.open()
    yield metrics
    metrics.close()


def wait_for_call(begun: bool) -> None:
    """Until a call has begun; else until every one is over, and whatever it had to say is said."""
    deadline = time.monotonic() + 20
    while any("process_request" in each.name for each in threading.enumerate()) != begun:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def connected(metrics: TritonMetrics) -> socket.socket:
    line = socket.create_connection((HOST, metrics.port), timeout=20)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, GONE)
    return line


def answer(triton: socket.socket) -> None:
    with triton.accept()[0] as line:
        line.recv(1 << 16)
        line.sendall(ANSWER)


@pytest.mark.hostile
@pytest.mark.parametrize("asked", [True, False], ids=["before the answer", "within the question"])
def test_who_hangs_up_leaves_no_traceback(
    metrics: TritonMetrics, triton: socket.socket, asked: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    with connected(metrics) as line:
        line.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + (b"\r\n" if asked else b""))
        heard = triton.accept()[0] if asked else None
        wait_for_call(begun=True)
    if heard is not None:
        with heard:
            heard.sendall(ANSWER)
    wait_for_call(begun=False)
    assert capfd.readouterr().err == ""
    threading.Thread(target=answer, args=(triton,), daemon=True).start()
    following = http.client.HTTPConnection(HOST, metrics.port, timeout=20)
    following.request("GET", "/metrics")
    assert following.getresponse().read() == b"nv_x 1\r\n"
    following.close()
