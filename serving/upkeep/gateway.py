"""The gateway as a process of its own, before the server that `fieldmark serve` has started: kept up, and drained."""

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from bundle import Bundle
from bundle.errors import EndpointError, FieldmarkError, OptionError, ServerError
from serving.client.remote import channel_options
from serving.control import tell
from serving.gateway.options import CLOSE_SECONDS
from serving.processes import end_group, ending, launch
from serving.upkeep.keeper import PATIENCE_SECONDS, STEP_SECONDS, Stopped, Trouble

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
PROBE_SECONDS = 2.0
MARGIN_SECONDS = CLOSE_SECONDS + 2.0  # that a drained gateway has to end
MOVE_SECONDS = 20.0  # for every network behind the next Triton to answer a probe
SETTLE_SECONDS = 60.0
WHO = "the gateway"
_SILENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class GatewayProcess:
    """`fieldmark gateway TRITON OPTIONS`, found at the same ports however often it is replaced. It is a `Service`.

    `options` are those of the command line, `ports` its own and that of its metrics; port 0 becomes the port that the
    first one took. `on_log` gets each line of its log. It is told at the socket `control` to move; whoever replaces it
    finds the Triton that it was told of last. Start it from a thread that outlives it.
    """

    def __init__(
        self,
        triton: str,
        bundle: Path,
        options: Sequence[str],
        *,
        control: Path | None,
        ports: tuple[int, int],
        drain_seconds: float,
        on_log: Callable[[str], None] | None = None,
    ) -> None:
        self.facts: dict[str, Any] = {}  # as it prints them when it is ready
        self.drain_seconds = drain_seconds
        self._triton, self._bundle, self._options, self._on_log = triton, bundle, options, on_log
        self._control = control
        self._shadow: dict[str, Any] = {}
        self._ports = ports
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._errors: deque[str] = deque(maxlen=1)
        self._heard = 0.0
        self._away = ""  # why there is no process

    @property
    def _everywhere(self) -> bool:
        return str(self.facts["url"]).startswith(("0.0.0.0:", "[::]:"))

    @property
    def pid(self) -> int:
        """Its process id; raises ServerError while there is none."""
        if self._process is None:
            raise ServerError(f"{WHO} is not running")
        return self._process.pid

    def start(self, *, stopped: Stopped = lambda: False) -> None:
        """Start it and wait until it is ready; raises ServerError or OptionError in its words, and leaves nothing."""
        self._away = "it could not be started"
        port, metrics_port = self._ports
        ours = ["--port", str(port), "--metrics-port", str(metrics_port), "--drain-seconds", f"{self.drain_seconds:g}"]
        # What is behind counts, so that nobody moves the gateway away from where it is looked after.
        ours += ["--bundle", str(self._bundle)]
        if self._control is not None:
            ours += ["--control", str(self._control)]
        command = [sys.executable, "-m", "fieldmark", "gateway", self._triton, *self._options, *ours, "--json"]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._errors.clear()
        self._process = launch(
            command, environment={**os.environ, "PYTHONPATH": path}, folder=Path.cwd(), errors=subprocess.PIPE
        )
        self._reader = threading.Thread(target=self._read_log, args=(self._process,), daemon=True)
        self._reader.start()
        try:
            facts = self._told(self._process, stopped)
        except BaseException:
            self.stop(0)
            raise
        if not facts:
            self.stop(0)
            return
        self.facts = facts
        found = (self.facts["url"], self.facts["metrics_url"].removesuffix("/metrics"))
        self._ports = (int(found[0].rpartition(":")[2]), int(found[1].rpartition(":")[2]))
        self._heard = time.monotonic()

    def move(self, triton: str, bundle: Bundle) -> None:
        """Have it answer from another Triton; raises ServerError or EndpointError, and then it has not moved."""
        try:
            self._tell("move", MOVE_SECONDS, triton=triton, bundle=str(bundle.path))
        except EndpointError:
            self.stop(0)  # nobody knows where it is now: the next one is where the last one was
            self._away = "an order to move got no answer"
            raise
        self._triton, self._bundle = triton, bundle.path

    def settle(self) -> None:
        """Wait until it has its last answer from where it was before; raises ServerError or EndpointError."""
        self._tell("settle", SETTLE_SECONDS)

    def shadow(self, triton: str, bundle: Bundle | None, share: float) -> None:
        """Have it ask another Triton the same of a share of the requests, of none if 0; raises as `move` does."""
        self._shadow = {"triton": triton, "bundle": str(bundle.path), "share": share} if bundle else {}
        self._tell("shadow", MOVE_SECONDS, **(self._shadow or {"share": 0}))

    def status(self) -> dict[str, Any]:
        """What it answers from, and what it has found of the shadow; raises ServerError or EndpointError."""
        return self._tell("status", PROBE_SECONDS)

    def look(self) -> list[Trouble]:
        """Whether it has ended, or does not answer its health check; what that says is not asked."""
        if self._process is None:
            return [Trouble(who=WHO, cause=self._away, mend=self._replace)]
        if cause := ending(self._process.pid):
            return [Trouble(who=WHO, cause=self._last_words() or cause, mend=self._replace)]
        if self._answers():
            self._heard = time.monotonic()
        seconds = time.monotonic() - self._heard
        if seconds < PATIENCE_SECONDS:
            return []
        return [Trouble(who=WHO, cause=f"no answer for {seconds:.0f} s", mend=self._replace)]

    def stop(self, seconds: float | None = None) -> None:
        """Drain it for `seconds` (None: as long as it was told to), and end it; safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            end_group(process, self.drain_seconds + MARGIN_SECONDS if seconds is None else seconds)
            if process.stdout is not None:
                process.stdout.close()
        if self._reader is not None:
            self._reader.join(timeout=5)
            self._reader = None

    def _replace(self, stopped: Stopped) -> str:
        self.stop(0)
        try:
            self.start(stopped=stopped)
        except FieldmarkError as problem:
            raise ServerError(problem.what) from None
        if self._shadow and not stopped():
            with contextlib.suppress(FieldmarkError):  # what cannot answer is not compared with; `status` says so
                self._tell("shadow", MOVE_SECONDS, **self._shadow)
        return ""

    def _tell(self, verb: str, seconds: float, **facts: Any) -> dict[str, Any]:
        if self._control is None:
            raise ServerError(f"{WHO} takes no orders")
        return tell(self._control, verb, seconds=seconds, **facts)

    def _told(self, process: "subprocess.Popen[str]", stopped: Stopped) -> dict[str, Any]:
        """What it prints when it is ready; empty when `stopped` says so before."""
        deadline = time.monotonic() + START_SECONDS
        while process.stdout is not None and not stopped():
            if select.select([process.stdout], [], [], STEP_SECONDS)[0]:
                if line := process.stdout.readline():
                    return _facts(line)
                cause = self._last_words()
                kind = OptionError if process.wait() == OptionError.exit_code else ServerError
                raise kind(cause or f"{WHO} could not start: exit code {process.returncode}")
            if time.monotonic() > deadline:
                raise ServerError(f"{WHO} was not ready within {START_SECONDS:g} seconds")
        return {}

    def _read_log(self, process: "subprocess.Popen[str]") -> None:
        with process.stderr or contextlib.nullcontext(()) as lines:
            for line in lines:
                if line.startswith("error: "):
                    self._errors.append(line.removeprefix("error: ").rstrip())
                elif self._on_log is not None:
                    self._on_log(line.rstrip())

    def _last_words(self) -> str:
        """The sentence that it ended with, if it did."""
        if self._reader is not None:
            self._reader.join(timeout=1)
        return self._errors[0] if self._errors else ""

    def _answers(self) -> bool:
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        url = f"127.0.0.1:{self._ports[0]}" if self._everywhere else self.facts["url"]
        with grpc.insecure_channel(url, options=channel_options(url)) as channel:
            try:
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PROBE_SECONDS)
            except grpc.RpcError as problem:
                return problem.code() not in _SILENT  # any other word is a word
        return True


def _facts(line: str) -> dict[str, Any]:
    """What it has printed; raises OptionError where it was asked for something else, as by --help."""
    try:
        facts = json.loads(line)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise OptionError(
            f"{WHO} has printed something else than where it listens",
            hint="Behind the -- stand its options alone: 'fieldmark gateway --help' names them.",
        )
    return facts
