"""A real S3 API on loopback, moto's, that can be told to misbehave for objects by their names."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

HEADERS = [("Content-Type", "application/xml")]
BUSY = b"<Error><Code>ServiceUnavailable</Code><Message>busy</Message></Error>"


@dataclass
class Faults:
    """How often a GET of a name that ends so is answered badly, before it is answered well; `asked` counts all."""

    busy: dict[str, int] = field(default_factory=dict)
    half: dict[str, int] = field(default_factory=dict)
    slow: dict[str, int] = field(default_factory=dict)
    seconds: float = 3.0
    asked: Counter[str] = field(default_factory=Counter)

    def next_for(self, path: str) -> str:
        """The kind of fault that a GET meets now; empty for none."""
        for kind in ("busy", "half", "slow"):
            faults: dict[str, int] = getattr(self, kind)
            for name, left in faults.items():
                if path.endswith(name) and left > 0:
                    faults[name] = left - 1
                    return kind
        return ""


@dataclass(frozen=True)
class ObjectStore:
    """`endpoint` is its URL."""

    endpoint: str
    faults: Faults


class _Misbehaving:
    def __init__(self, app: Callable[..., Iterable[bytes]], faults: Faults) -> None:
        self.app, self.faults = app, faults

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "GET":
            return self.app(environ, start)
        self.faults.asked[path] += 1
        kind = self.faults.next_for(path)
        if kind == "busy":
            start("503 Slow Down", HEADERS)
            return [BUSY]
        if kind == "slow":
            time.sleep(self.faults.seconds)
        whole = self.app(environ, start)
        if kind != "half":
            return whole
        body = b"".join(whole)
        return [body[: len(body) // 2]]  # with the Content-Length of all of it


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Serve until the end of the `with` statement."""
    faults = Faults()
    app = _Misbehaving(DomainDispatcherApplication(create_backend_app), faults)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield ObjectStore(f"http://127.0.0.1:{server.server_port}", faults)
    finally:
        server.shutdown()
        thread.join()
