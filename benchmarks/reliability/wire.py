"""What comes over the wire: statuses with their reasons, and nothing from inside the service in any sentence."""

import contextlib
import re
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from benchmarks.reliability.deployment import Door
from serving.gateway.failures import DETAILS, read_details

# Stacks, places on disk and in memory, names of classes: what a stranger has no business with.
INSIDE = re.compile(
    r"Traceback|\.py\b|\.pbtxt|\.onnx|site-packages|/(?:home|root|tmp|usr|opt|work|var|proc|dev|etc)/|0x[0-9a-f]{6}"
    r"|<class|object at|stub process|\bline \d+"
)
_MOST = 1 << 20  # bytes of an answer that are looked at


class Heard:
    """Every text that came back, and those of them that tell something from inside; threads may share it."""

    def __init__(self) -> None:
        self.texts, self.leaks = 0, list[str]()
        self._lock = threading.Lock()

    def note(self, text: str) -> None:
        """Look at one more text."""
        with self._lock:
            self.texts += 1
            if found := INSIDE.search(text):
                self.leaks.append(text[max(0, found.start() - 60) : found.end() + 60])


def outcome(heard: Heard, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> tuple[Any, str]:
    """(answer, "OK") of a call, or (None, its status and reason)."""
    try:
        return call(*arguments, **keywords), "OK"
    except grpc.RpcError as problem:
        return None, status_of(problem, heard)


def status_of(problem: Any, heard: Heard) -> str:
    """Status and reason of a failed call, such as INVALID_ARGUMENT IMAGE_EMPTY; all that it says is looked at."""
    details: Any = dict(problem.trailing_metadata() or ()).get(DETAILS, b"")
    heard.note(f"{problem.details()} {details.decode('utf-8', 'replace') if isinstance(details, bytes) else ''}")
    reason = read_details(details, problem.details() or "").reason if isinstance(details, bytes) else ""
    return f"{problem.code().name} {reason}".strip()


def exchange(door: Door, pieces: Iterable[bytes], heard: Heard) -> str:
    """What an HTTP/1.1 request is answered, cut into pieces as it is sent: its status, or `closed`."""
    data = b""
    with contextlib.suppress(OSError, ssl.SSLError), door.connect() as line:
        line.settimeout(20)
        with contextlib.suppress(ConnectionError, ssl.SSLError):  # it may be refused before it is all sent
            for piece in pieces:
                line.sendall(piece)
        while len(data) < _MOST and (more := line.recv(65536)):
            data += more
            if b"\r\n\r\n" in data and _whole(data):
                break
    text = data.decode("utf-8", "replace")
    heard.note(text)
    return text.split(" ")[1] if text.startswith("HTTP/") else "closed"


def post(path: str, body: bytes, *headers: str) -> bytes:
    """An HTTP/1.1 request with a body of a known length."""
    fields = ("host: x", "content-type: application/json", f"content-length: {len(body)}", *headers)
    return "\r\n".join((f"POST {path} HTTP/1.1", *fields, "", "")).encode() + body


def _whole(data: bytes) -> bool:
    head, _, body = data.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head.lower())
    return found is not None and len(body) >= int(found[1])
