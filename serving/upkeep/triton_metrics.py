"""Triton's metrics at a port, fetched from the socket where it listens: Triton's own port dies of a large body.

Only `GET /metrics` is answered, nothing that a caller sends goes on to Triton, and the port stays when the server
behind it is another.
"""

import contextlib
import http.client
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bundle.errors import ServerError

HOST = "127.0.0.1"
SECONDS = 5.0  # for Triton to answer, and for a caller to ask
_TYPE = "text/plain; charset=utf-8"


class TritonMetrics:
    """Listens from `open` until `close`; `place` is the socket where Triton is asked."""

    def __init__(self, place: Path, port: int) -> None:
        self.place, self.port = place, port
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/metrics"

    def open(self) -> None:
        """Listen; raises ServerError for a port that is taken."""
        metrics = self

        class Call(BaseHTTPRequestHandler):
            timeout = SECONDS

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # whoever asked has gone
                    super().handle()

            def do_GET(self) -> None:
                code, body = metrics.fetch() if self.path.partition("?")[0] == "/metrics" else (404, b"")
                self.send_response(code)
                self.send_header("Content-Type", _TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nothing: who asks is a machine, every few seconds."""

        try:
            self._server = ThreadingHTTPServer((HOST, self.port), Call)
        except OSError as problem:
            raise ServerError(
                f"port {self.port} for metrics cannot be used on {HOST} ({problem.strerror})",
                hint="Stop what listens there, or choose another port: --metrics-port N (0 takes any free one).",
            ) from None
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def fetch(self) -> tuple[int, bytes]:
        """(status, text) of Triton's answer; 503 where there is none."""
        connection = http.client.HTTPConnection("localhost", timeout=SECONDS)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
                line.settimeout(SECONDS)
                line.connect(str(self.place))
                connection.sock = line
                connection.request("GET", "/metrics")
                answer = connection.getresponse()
                return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 503, b""

    def close(self) -> None:
        """Stop listening; safe to call twice."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
