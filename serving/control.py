"""How one process of ours tells another what to do: a line of JSON each way, over a socket in a private folder.

Who may reach the socket is a matter of the folder's permissions, so nothing else is asked. The listener has a thread
for each call; `handle` gets the request and returns the answer, and a FieldmarkError of it is told as one.
"""

import contextlib
import json
import os
import socket
import socketserver
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bundle.errors import EndpointError, FieldmarkError, OptionError, ServerError

MAX_BYTES = 1 << 16  # of a line
LONGEST_PATH = 107  # bytes of a socket's path, as the kernel takes them
_ELSEWHERE = "Name another place for orders: --control SOCKET"
Handle = Callable[[dict[str, Any]], dict[str, Any]]


class Control:
    """Listens at `path` from `open` until `close`."""

    def __init__(self, path: Path, handle: Handle) -> None:
        self.path, self._handle = path, handle
        self._server: socketserver.BaseServer | None = None
        self._made: os.stat_result | None = None

    def open(self) -> None:
        """Listen; raises OptionError where no socket can be, or something else is."""
        check_free(self.path)
        handle = self._handle

        class Call(socketserver.StreamRequestHandler):
            timeout = 10  # seconds for the request to arrive

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # whoever asked has gone, or never asked
                    self.wfile.write(_answer(handle, self.rfile.readline(MAX_BYTES)))

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            block_on_close = False

        before = os.umask(0o177)
        try:
            self.path.unlink(missing_ok=True)  # of one that was killed
            self._server = Server(str(self.path), Call)
            self._made = self.path.lstat()
        except OSError as problem:
            raise OptionError(f"no socket can be made at {self.path} ({problem.strerror})") from None
        finally:
            os.umask(before)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def close(self) -> None:
        """Stop listening; safe to call twice."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            with contextlib.suppress(OSError):
                if self._made is not None and os.path.samestat(self._made, self.path.lstat()):
                    self.path.unlink()
            server.server_close()  # last: until then no other socket has the number of this inode


def tell(path: Path, verb: str, /, *, seconds: float, **facts: Any) -> dict[str, Any]:
    """What the process that listens at `path` answers; raises ServerError in its words, EndpointError for no answer."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(str(path))
            connection.sendall(json.dumps({"verb": verb, **facts}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline(MAX_BYTES)
    except TimeoutError:
        raise EndpointError(f"no answer at {path} within {seconds:g} seconds") from None
    except OSError as problem:
        reason = (problem.strerror or str(problem)).lower()
        hint = "Is it running? See its log, or name its --control SOCKET."
        raise EndpointError(f"nobody listens at {path} ({reason})", hint=hint) from None
    if not line.endswith(b"\n"):
        raise EndpointError(f"what listened at {path} ended before it answered", hint="See its log.")
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise EndpointError(
            f"what listens at {path} does not answer as a service of Fieldmark", hint="Is it the socket?"
        )
    if "error" in answer:
        raise ServerError(str(answer["error"]), hint=str(answer.get("hint", "")))
    return answer


def check_socket(path: Path) -> None:
    """Raise OptionError where a socket's path would be too long for the kernel."""
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise OptionError(
            f"{path} is too long for a socket: {len(os.fsencode(path))} bytes, and the most is {LONGEST_PATH}",
            hint="Name a shorter place; TMPDIR says where temporary ones are.",
        )


def check_free(path: Path) -> None:
    """Raise OptionError where no socket can be made at `path`: one at which nobody listens any more is no obstacle."""
    check_socket(path)
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OptionError(f"{path} is there already, and is no socket", hint=_ELSEWHERE)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1)
            connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return
    except OSError as problem:
        reason = (problem.strerror or str(problem)).lower()
        raise OptionError(f"no socket can be made at {path} ({reason})", hint=_ELSEWHERE) from None
    raise OptionError(f"somebody listens at {path} already", hint=_ELSEWHERE)


def _answer(handle: Handle, line: bytes) -> bytes:
    try:
        answer = handle(json.loads(line))
    except FieldmarkError as problem:
        answer = {"error": problem.what, "hint": problem.hint}
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        answer = {"error": f"no such order ({type(problem).__name__})"}
    return json.dumps(answer).encode() + b"\n"
