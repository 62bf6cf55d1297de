"""A real tritonserver that serves one bundle: started, proved by real inferences, watched, stopped without a trace.

    with TritonServer(bundle, grpc_port=0, metrics_port=0) as server:
        TritonInference.connect(server.grpc_url)

Its HTTP is off unless a port is given: one body of a few megabytes ends this version of Triton. The server's group of
processes is tritonserver and one Python stub for each instance of a network. All of them, and one temporary folder,
belong to a TritonServer and go with it; if its process is killed outright, the kernel tells tritonserver to end, and
the folder is swept by the next start.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bundle import Bundle
from bundle.errors import EndpointError, OptionError, ServerError
from serving.child import Child
from serving.client.prediction import check_runtime
from serving.client.remote import UNIX, TritonInference
from serving.control import check_socket
from serving.processes import (
    alive,
    command_of,
    ending,
    ending_of_other,
    exited,
    exits_within,
    group,
    halted,
)
from serving.triton.command import (
    GRPC_SOCKET,
    METRICS_SOCKET,
    MODELS,
    TRACE_VARIABLES,
    copy_backend,
    flags,
    plain_line,
    useful_line,
)
from serving.triton.config import MODEL_FILES, PYTHON, Settings, available_cores
from serving.triton.environment import TritonEnvironment, find_environment
from serving.triton.repository import write_repository
from serving.workspace import Workspace, sweep

START_SECONDS = 120.0
STOP_SECONDS = 10.0
DYING_SECONDS = 1.0
EVERYWHERE = "0.0.0.0"


class TritonServer(Child):
    """One tritonserver and its folder. Port 0 takes any free one. Start it from a thread that outlives it.

    `traces` is the URL of a collector, for the spans that Triton makes of requests which are traced.
    It may be started again after `stop`, and is then found at the same ports. With `sockets`, an empty folder, gRPC and
    metrics listen at sockets in it instead: who may not enter the folder cannot reach them.
    """

    who, stop_seconds = "the server", STOP_SECONDS

    def __init__(
        self,
        bundle: Bundle,
        *,
        host: str = "127.0.0.1",
        grpc_port: int = 8001,
        http_port: int | None = None,
        metrics_port: int = 8002,
        sockets: Path | None = None,
        triton_python: Path | None = None,
        start_seconds: float = START_SECONDS,
        traces: str = "",
        on_log: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(on_log, lines=2000)
        self.bundle, self.host, self.start_seconds, self.traces = bundle, host, start_seconds, traces
        self.grpc_port, self.http_port, self.metrics_port = grpc_port, http_port, metrics_port
        self.sockets, self.triton_version = sockets, ""
        self._triton_python = triton_python
        self._workers: dict[str, set[int]] = {}

    @property
    def grpc_url(self) -> str:
        if self.sockets is not None:
            return f"{UNIX}{self.sockets / GRPC_SOCKET}"
        return f"{self.host}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        """Empty where HTTP is off."""
        return "" if self.http_port is None else f"http://{self.host}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        """Empty where they are at a socket."""
        if self.sockets is not None:
            return ""
        return f"http://{self.host}:{self.metrics_port}/metrics"

    def start(self, *, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Start and wait until every network answers a real inference; raises ServerError, and then nothing is left.

        `cancelled` is asked while waiting; when it says yes, the server is stopped and this returns.
        """
        environment = find_environment(self._triton_python)
        address = _resolve(self.host)
        try:
            self._choose_ports(address)
            sweep()
            self._workspace = Workspace()
            self._fill(self._workspace.path, environment)
            self._spawn(self._workspace, environment, address)
            self._wait_until_ready(address, cancelled)
        except BaseException:
            self.stop()
            raise
        if cancelled():
            self.stop()

    def check(self) -> None:
        """Raise ServerError if tritonserver or one of its stubs has died (its own health stays at 200 when one has)."""
        workers = {network: self.worker_ended(network) for network in self.bundle.manifest.networks}
        if cause := self.ended():  # asked after the workers: it waits for the end of a server that has lost one
            raise ServerError(f"tritonserver died: {cause}", hint="Start it again.")
        for network, cause in workers.items():
            if cause:
                what = f"a worker process of the server died ({network}: {cause})"
                raise ServerError(what, hint="Start it again; see the machine's memory.")

    def ended(self) -> str:
        """How tritonserver has ended, in words; empty while it runs."""
        if self._process is None:
            return "it is not running"
        workers_live = all(alive(pid, self._process.pid) for pids in self._workers.values() for pid in pids)
        # a dying server takes its workers along, some of them a moment before itself: then it is the one to name
        if not exits_within(self._process.pid, 0 if workers_live else DYING_SECONDS):
            return ""
        cause = ending(self._process.pid)
        # What kills a server by a signal leaves no line in its log, and an older line would name the wrong thing.
        last = (
            "" if cause.startswith("killed") or not self._log else f"; its log ends with: {plain_line(self._log[-1])}"
        )
        return f"{cause}{last}"

    def worker_ended(self, network: str) -> str:
        """How one of a network's worker processes has ended, in words; empty while all of them live."""
        if self._process is None:  # then the server itself is what has ended
            return ""
        dead = [pid for pid in self._workers.get(network, ()) if not alive(pid, self.pid)]
        return ending_of_other(dead[0]) if dead else ""

    def halted(self, network: str) -> set[int]:
        """Those of a network's worker processes that live and do not run, as after SIGSTOP."""
        return {pid for pid in self._workers.get(network, ()) if halted(pid)}

    def workers(self, network: str) -> set[int]:
        """Process ids of a network's stubs, the living ones."""
        if self._workspace is None:
            return set()
        place = f"{self._workspace.path / MODELS / network}/"
        return {pid for pid in group(self.pid) if place in command_of(pid)}

    def note_workers(self) -> None:
        """The workers that are there now are those that should be there from now on."""
        self._workers = {network: self.workers(network) for network in self.bundle.manifest.networks}

    def reload(self, network: str) -> None:
        """Have Triton load a network anew, beside the other one, with worker processes of its own; returns at once.

        Triton looks every second whether a file of its repository is newer. No call to it does the same, so nobody who
        reaches its ports can make it load anything.
        """
        if self._workspace is not None:
            os.utime(self._workspace.path / MODELS / network / "1" / MODEL_FILES[PYTHON])

    def _fill(self, folder: Path, environment: TritonEnvironment) -> None:
        """The model repository, and the backend that runs it."""
        check_runtime(self.bundle.manifest, environment.onnxruntime)
        copy_backend(folder / "backends", environment)
        models = write_repository(self.bundle, folder / MODELS, Settings(cores=available_cores()))
        for network in self.bundle.manifest.networks:
            # Where a file has this name, Python keeps no compiled code there: to Triton that is a newer file, for which
            # it would load the network once more.
            (models / network / "1" / "__pycache__").touch()

    def _choose_ports(self, address: str) -> None:
        """Turn 0 into a free port; raise ServerError for a port that is taken, before anything is started."""
        names = {"grpc_port": "gRPC", "http_port": "HTTP", "metrics_port": "metrics"}
        if self.sockets is not None:
            del names["grpc_port"], names["metrics_port"]
            for name in (GRPC_SOCKET, METRICS_SOCKET):
                check_socket(self.sockets / name)
                (self.sockets / name).unlink(missing_ok=True)  # of the server before
        asked = [getattr(self, field) for field in names if getattr(self, field)]
        if len(set(asked)) < len(asked):
            raise OptionError("gRPC, HTTP and metrics need different ports", hint="0 takes any free one.")
        with contextlib.ExitStack() as held:  # all at once, so that no port is chosen twice
            for field, name in names.items():
                port = getattr(self, field)
                if port is None:
                    continue
                listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    listener.bind((address, port))
                    listener.listen(1)
                except OSError as problem:
                    option = "--" + field.replace("_", "-")
                    raise ServerError(
                        f"port {port} for {name} cannot be used on {self.host} ({problem.strerror})",
                        hint=f"Stop what listens there, or choose another port: {option} N (0 takes any free one).",
                    ) from None
                setattr(self, field, listener.getsockname()[1])

    def _spawn(self, workspace: Workspace, environment: TritonEnvironment, address: str) -> None:
        folder = workspace.path
        ports = {"grpc": self.grpc_port, "http": self.http_port, "metrics": self.metrics_port}
        command = [str(environment.binary), *flags(folder, address, ports, sockets=self.sockets, traces=self.traces)]
        self._log.clear()  # what an earlier server said explains nothing now
        self._launch(command, environment.variables() | TRACE_VARIABLES, workspace)

    def _wait_until_ready(self, address: str, cancelled: Callable[[], bool]) -> None:
        """Ask each network for a real answer: READY alone is no proof that one can be had."""
        reached = "127.0.0.1" if address == EVERYWHERE else address
        url = f"{reached}:{self.grpc_port}" if self.sockets is None else self.grpc_url
        deadline, last = time.monotonic() + self.start_seconds, "no answer yet"
        while not cancelled():
            if self._process is None or exited(self._process.pid):
                raise ServerError(f"tritonserver could not start{self._last_words()}", hint="See 'serve --verbose'.")
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the server was not ready within {self.start_seconds:g} seconds ({last})",
                    hint="Give a slow machine longer with --start-timeout.",
                )
            try:
                with TritonInference.connect(url, timeout=10, expect_bundle=self.bundle.bundle_id) as inference:
                    self._probe(inference)
                    self.triton_version = inference.triton_version
                for port in (self.http_port, None if self.sockets else self.metrics_port):  # these open last
                    if port is not None:
                        socket.create_connection((reached, port), timeout=5).close()
                self.note_workers()
                if self._workspace is not None:
                    self._workspace.note_extras()
                return
            except (EndpointError, OSError) as problem:
                last = problem.what if isinstance(problem, EndpointError) else "a port is not open yet"
                time.sleep(0.1)

    def _probe(self, inference: TritonInference) -> None:
        spec = self.bundle.manifest.image
        image = np.random.default_rng(0).integers(0, 256, (1, spec.height, spec.width, 3), dtype=np.uint8)
        for network in self.bundle.manifest.networks:
            total = float(inference.infer(image, network)["probabilities"].sum())
            if not abs(total - 1) < 0.01:
                raise ServerError(
                    f"the server answers nonsense: probabilities of {network!r} sum to {total:g}",
                    hint="Make the server environment again: make setup",
                )

    def _last_words(self) -> str:
        if self._reader is not None:
            self._reader.join(timeout=1)
        line = useful_line(self._log)
        return f": {line}" if line else ""


def _resolve(host: str) -> str:
    """The numeric IPv4 address of `host`, which is what Triton's listeners want."""
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError):
        raise OptionError(
            f"--host {host!r} is not a name or an IPv4 address", hint="Try 127.0.0.1, or 0.0.0.0 for every interface."
        ) from None
