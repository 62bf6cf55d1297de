"""Where the metrics listen, and the health check of a container that reads them."""

import http.server
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle import Bundle
from bundle.errors import ServerError
from serving.gateway import health
from serving.gateway.metrics import Metrics
from serving.gateway.options import GatewayOptions
from tests.serving.gateway.gateway_thread import running
from tests.serving.triton.played import PlayedTriton

ROOT = Path(__file__).parents[3]


def url_of(port: int, host: str = "127.0.0.1") -> str:
    return f"http://{host}:{port}/metrics"


def test_they_stay_on_this_machine_unless_told_otherwise(played: PlayedTriton, played_url: str) -> None:
    """127.0.0.2 stands for another way in: it is this machine's, and not 127.0.0.1."""
    with running(played_url) as gateway, pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url_of(gateway.metrics_port, "127.0.0.2"), timeout=10)
    with running(played_url, metrics_host="0.0.0.0") as gateway:
        page = urllib.request.urlopen(url_of(gateway.metrics_port, "127.0.0.2"), timeout=10)
        assert b"fieldmark_gateway_serving" in page.read()


@pytest.mark.parametrize("host", ["no.such.address.invalid", "192.0.2.1", "a" * 70 + ".example", ""])
def test_an_address_that_is_not_ours(host: str) -> None:
    with pytest.raises((ServerError, ValueError), match="metrics"):
        Metrics().listen(GatewayOptions(workers=1, metrics_host=host).metrics_host, 0)


def test_healthy_while_every_network_serves(
    played: PlayedTriton,
    played_url: str,
    capsys: pytest.CaptureFixture[str],
    toy_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with running(played_url) as gateway:
        assert health.main(["--url", url_of(gateway.metrics_port)]) == 0
        assert capsys.readouterr().out == f"healthy: {', '.join(sorted(toy_bundle.manifest.networks))}\n"
        gateway.metrics.serving.labels("full").set(0)
        assert health.main(["--url", url_of(gateway.metrics_port)]) == 1
        assert capsys.readouterr().err == "unhealthy: no answer of full\n"


def test_it_runs_as_docker_runs_it() -> None:
    command = [sys.executable, "-m", "serving.gateway.health", "--url", "http://127.0.0.1:9/metrics"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("unhealthy: no gateway's metrics at http://127.0.0.1:9/metrics")
    assert run.stderr.count("\n") == 1


@pytest.fixture
def page() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a server, and the answers that it is to give, last first."""
    answers: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(answers.pop())

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield url_of(server.server_port), answers
        server.shutdown()
        thread.join(timeout=10)


OK = b"HTTP/1.0 200 OK\r\n\r\n"


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"\x00\xff not HTTP at all", "no gateway's metrics at"),
        (b"", "no gateway's metrics at"),
        (b"HTTP/1.0 503 Busy\r\n\r\n", "no gateway's metrics at"),
        (OK, "has no fieldmark_gateway_serving"),
        (OK + b"something_else 1\n", "has no fieldmark_gateway_serving"),
        (OK + b"\x00\x01{{{ \xff", "no gateway's metrics at"),
        (OK + b"fieldmark_gateway_serving 1\n", "no gateway's metrics at"),
        (OK + b"# TYPE fieldmark_gateway_serving gauge\n", "no answer of any network"),
        (OK + b'fieldmark_gateway_serving{network="full"} 0\n', "no answer of full"),
    ],
)
def test_what_is_no_gateway_is_unhealthy(
    answer: bytes, sentence: str, page: tuple[str, list[bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    page[1].append(answer)
    assert health.main(["--url", page[0]]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1
