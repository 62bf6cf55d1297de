"""A real tritonserver that serves one bundle: started, proved by real inferences, watched, stopped without a trace.

    with TritonServer(bundle, grpc_port=0, http_port=0, metrics_port=0) as server:
        TritonInference.connect(server.grpc_url)

The server's group of processes is tritonserver and one Python stub for each instance of a network. All of them, and one
temporary folder, belong to a TritonServer and go with it; if its process is killed outright, the kernel tells
tritonserver to end, and the folder is swept by the next start.
"""

import contextlib
import re
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bundle import Bundle
from bundle.errors import EndpointError, OptionError, ServerError
from serving.client import TritonInference
from serving.environment import TritonEnvironment, find_environment
from serving.processes import alive, end_group, exited, exits_within, group, launch
from serving.repository import write_repository
from serving.triton_config import Settings, available_cores
from serving.workspace import Workspace, sweep

START_SECONDS = 120.0
STOP_SECONDS = 10.0
DYING_SECONDS = 1.0
_RESTRICTED = "shared-memory,model-repository,trace,logging"
EVERYWHERE = "0.0.0.0"


class TritonServer:
    """One tritonserver and its folder. Port 0 takes any free one. Start it from a thread that outlives it."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        host: str = "127.0.0.1",
        grpc_port: int = 8001,
        http_port: int = 8000,
        metrics_port: int = 8002,
        triton_python: Path | None = None,
        start_seconds: float = START_SECONDS,
        on_log: Callable[[str], None] | None = None,
    ) -> None:
        self.bundle, self.host, self.start_seconds = bundle, host, start_seconds
        self.grpc_port, self.http_port, self.metrics_port = grpc_port, http_port, metrics_port
        self.triton_version = ""
        self._triton_python, self._on_log = triton_python, on_log
        self._log: deque[str] = deque(maxlen=2000)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._workspace: Workspace | None = None
        self._workers: list[int] = []

    @property
    def grpc_url(self) -> str:
        return f"{self.host}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://{self.host}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self.host}:{self.metrics_port}/metrics"

    @property
    def pid(self) -> int:
        """Process id of tritonserver; it leads the group of its stubs."""
        if self._process is None:
            raise ServerError("the server is not running")
        return self._process.pid

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
        workers_live = self._process is not None and all(alive(pid, self._process.pid) for pid in self._workers)
        # a dying server takes its workers along, some of them a moment before itself: then it is the one to name
        if self._process is None or exits_within(self._process.pid, 0 if workers_live else DYING_SECONDS):
            raise ServerError(f"tritonserver died{self._last_words()}", hint="Start it again.")
        if not workers_live:
            raise ServerError("a worker process of the server died", hint="Start it again; see the machine's memory.")

    def stop(self) -> None:
        """End every process of the server and remove what it wrote; safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            end_group(process, STOP_SECONDS)
        if self._reader is not None:
            self._reader.join(timeout=5)
            self._reader = None
        if self._workspace is not None:
            self._workspace.remove()
            self._workspace = None

    def __enter__(self) -> "TritonServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _fill(self, folder: Path, environment: TritonEnvironment) -> None:
        """The model repository, and the backend that runs it."""
        copy_backend(folder / "backends", environment)
        write_repository(self.bundle, folder / "models", Settings(cores=available_cores()))

    def _choose_ports(self, address: str) -> None:
        """Turn 0 into a free port; raise ServerError for a port that is taken, before anything is started."""
        names = {"grpc_port": "gRPC", "http_port": "HTTP", "metrics_port": "metrics"}
        asked = [getattr(self, field) for field in names if getattr(self, field)]
        if len(set(asked)) < len(asked):
            raise OptionError("gRPC, HTTP and metrics need three different ports", hint="0 takes any free one.")
        with contextlib.ExitStack() as held:  # all at once, so that no port is chosen twice
            for field, name in names.items():
                port = getattr(self, field)
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
        secret = restriction()
        options = {
            "model-repository": folder / "models",
            "model-control-mode": "none",  # the other modes can load code that a request brings along
            "strict-readiness": "true",
            "exit-on-error": "true",
            "exit-timeout-secs": "5",
            "backend-directory": folder / "backends",
            "backend-config": f"python,shm-region-prefix-name={folder.name}",
            "grpc-address": address,
            "grpc-port": self.grpc_port,
            "http-address": address,
            "http-port": self.http_port,
            "metrics-address": address,
            "metrics-port": self.metrics_port,
            "allow-gpu-metrics": "false",
            "metrics-config": "summary_latencies=true",
            "grpc-restricted-protocol": secret,
            "http-restricted-api": secret,
        }
        flags = ["--disable-auto-complete-config", *(f"--{name}={value}" for name, value in options.items())]
        command = [str(environment.binary), *flags]
        self._process = launch(command, environment=environment.variables(), folder=folder, lock=workspace.lock)
        self._reader = threading.Thread(target=self._read_log, args=(self._process,), daemon=True)
        self._reader.start()

    def _read_log(self, process: "subprocess.Popen[str]") -> None:
        with process.stdout or contextlib.nullcontext(()) as lines:
            for line in lines:
                self._log.append(line.rstrip())
                if self._on_log is not None:
                    self._on_log(line.rstrip())

    def _wait_until_ready(self, address: str, cancelled: Callable[[], bool]) -> None:
        """Ask each network for a real answer: READY alone is no proof that one can be had."""
        url = f"{'127.0.0.1' if address == EVERYWHERE else address}:{self.grpc_port}"
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
                for port in (self.http_port, self.metrics_port):  # these open last
                    socket.create_connection((url.partition(":")[0], port), timeout=5).close()
                self._workers = group(self._process.pid)
                if self._workspace is not None:
                    self._workspace.note_extras()
                return
            except (EndpointError, OSError) as problem:
                last = problem.what if isinstance(problem, EndpointError) else "HTTP or metrics port not open"
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


def copy_backend(folder: Path, environment: TritonEnvironment) -> None:
    """The Python backend with the stub of the environment's Python, into a folder of backends."""
    backend = folder / "python"
    shutil.copytree(environment.backend, backend, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(environment.stub, backend / environment.stub.name)
    (backend / environment.stub.name).chmod(0o755)  # installers do not always keep the executable bit


def restriction() -> str:
    """Triton's flag value that shuts the calls which change or tap the server, behind a secret that nobody is told."""
    return f"{_RESTRICTED}:fieldmark-key={secrets.token_urlsafe(24)}"


def useful_line(log: "deque[str]") -> str:
    """The line of a tritonserver log that says why it died, without time stamp and place in its source."""
    errors = [line for line in log if re.match(r"E\d{4} ", line) and "CudaDriverHelper" not in line]  # no GPU: no error
    loads = [line for line in errors if "failed to load" in line]
    plain = [line for line in log if line.strip() and not re.match(r"[EIW]\d{4} |[|+ \t]", line)]
    line = (loads or errors or plain or [""])[0]
    text = re.sub(r"^E\d{4} [\d:.]+ \d+ [\w.]+:\d+\] ", "", line)
    return text.strip().strip('"').rstrip("; ").replace('\\"', '"').replace("\\n", " ")[:300]


def _resolve(host: str) -> str:
    """The numeric IPv4 address of `host`, which is what Triton's listeners want."""
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError):
        raise OptionError(
            f"--host {host!r} is not a name or an IPv4 address", hint="Try 127.0.0.1, or 0.0.0.0 for every interface."
        ) from None
