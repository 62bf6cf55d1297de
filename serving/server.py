"""A real tritonserver that serves one bundle: started, proved by real inferences, watched, stopped without a trace.

    with TritonServer(bundle, grpc_port=0, http_port=0, metrics_port=0) as server:
        TritonInference.connect(server.grpc_url)

The server's group of processes is tritonserver and one Python stub for each instance of a network. All of them, and one
temporary folder, belong to a TritonServer and go with it; if its process is killed outright, the kernel tells
tritonserver to end, and the folder is swept by the next start.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
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
from serving.repository import write_repository

START_SECONDS = 120.0
STOP_SECONDS = 10.0
PREFIX = "fieldmark-serve-"
_SHARED_MEMORY = Path("/dev/shm")
_RESTRICTED = "shared-memory,model-repository,trace,logging"
EVERYWHERE = "0.0.0.0"

# Run by a fresh Python, which then becomes tritonserver. 1 is PR_SET_PDEATHSIG: end when the parent does, however it
# ends. The parent may have died before that call, so look at it once. A `preexec_fn` would fork this process with all
# its gRPC threads instead.
_LAUNCH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]): sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


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
        self._folder: Path | None = None
        self._lock: int | None = None
        self._workers: list[int] = []
        self._extras: set[Path] = set()

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
            self._make_folder(environment)
            self._choose_ports(address)
            self._spawn(environment, address)
            self._wait_until_ready(address, cancelled)
        except BaseException:
            self.stop()
            raise
        if cancelled():
            self.stop()

    def check(self) -> None:
        """Raise ServerError if tritonserver or one of its stubs has died (its own health stays at 200 when one has)."""
        if self._process is None or _exited(self._process.pid):
            raise ServerError(f"tritonserver died{self._last_words()}", hint="Start it again.")
        if not all(_alive(worker, self._process.pid) for worker in self._workers):
            raise ServerError("a worker process of the server died", hint="Start it again; see the machine's memory.")

    def stop(self) -> None:
        """End every process of the server and remove what it wrote; safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while not _exited(process.pid) and time.monotonic() < deadline:
                time.sleep(0.02)
            # Until it is waited for, the leader's number cannot be given to strangers, so this hits only our stubs.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._reader is not None:
            self._reader.join(timeout=5)
            self._reader = None
        if len(self._extras) == 1:  # surely ours, and not of a server that started beside it
            with contextlib.suppress(OSError):
                self._extras.pop().rmdir()
        if self._folder is not None:
            _remove(self._folder)
            self._folder = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "TritonServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _make_folder(self, environment: TritonEnvironment) -> None:
        """The model repository and the Python backend with the stub of the environment's Python, in one folder."""
        sweep()
        self._folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        # The server's processes inherit this lock, so the folder counts as used until the last of them is gone.
        self._lock = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        backend = self._folder / "backends" / "python"
        shutil.copytree(environment.backend, backend, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(environment.stub, backend / environment.stub.name)
        (backend / environment.stub.name).chmod(0o755)  # installers do not always keep the executable bit
        write_repository(self.bundle, self._folder / "models")

    def _choose_ports(self, address: str) -> None:
        """Turn 0 into a free port; raise ServerError for a port that is taken, before anything is started."""
        names = {"grpc_port": "gRPC", "http_port": "HTTP", "metrics_port": "metrics"}
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

    def _spawn(self, environment: TritonEnvironment, address: str) -> None:
        folder = self._folder
        if folder is None or self._lock is None:
            raise ServerError("the server's folder is not ready")
        secret = f"{_RESTRICTED}:fieldmark-key={secrets.token_urlsafe(24)}"
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
        command = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), str(environment.binary)]
        command += ["--disable-auto-complete-config", *(f"--{name}={value}" for name, value in options.items())]
        self._extras = _extras()
        self._process = subprocess.Popen(
            command,
            env=environment.variables(),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches fieldmark alone, which then stops the server in good order
            pass_fds=(self._lock,),
        )
        self._reader = threading.Thread(target=self._read_log, args=(self._process,), daemon=True)
        self._reader.start()

    def _read_log(self, process: "subprocess.Popen[str]") -> None:
        for line in process.stdout or ():
            self._log.append(line.rstrip())
            if self._on_log is not None:
                self._on_log(line.rstrip())

    def _wait_until_ready(self, address: str, cancelled: Callable[[], bool]) -> None:
        """Ask each network for a real answer: READY alone is no proof that one can be had."""
        url = f"{'127.0.0.1' if address == EVERYWHERE else address}:{self.grpc_port}"
        deadline, last = time.monotonic() + self.start_seconds, "no answer yet"
        while not cancelled():
            if self._process is None or _exited(self._process.pid):
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
                    self._workers = _group(self._process.pid)
                    self._extras = _extras() - self._extras
                    return
            except EndpointError as problem:
                last = problem.what
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


def useful_line(log: "deque[str]") -> str:
    """The line of a tritonserver log that says why it died, without time stamp and place in its source."""
    errors = [line for line in log if re.match(r"E\d{4} ", line) and "CudaDriverHelper" not in line]  # no GPU: no error
    loads = [line for line in errors if "failed to load" in line]
    plain = [line for line in log if line.strip() and not re.match(r"[EIW]\d{4} |[|+ \t]", line)]
    line = (loads or errors or plain or [""])[0]
    text = re.sub(r"^E\d{4} [\d:.]+ \d+ [\w.]+:\d+\] ", "", line)
    return text.strip().strip('"').replace('\\"', '"').replace("\\n", " ")[:300]


def sweep() -> None:
    """Remove the folders of servers whose every process is gone, which only a killed process leaves behind."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder / "lock", os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)
            finally:
                os.close(lock)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for region in _SHARED_MEMORY.glob(f"{folder.name}*"):  # a killed tritonserver cannot remove its own
        region.unlink(missing_ok=True)


def _extras() -> set[Path]:
    """Empty folders of this fixed name that every tritonserver makes for itself, and a killed one leaves behind."""
    return set(Path("/tmp").glob("python_env_*"))


def _exited(pid: int) -> bool:
    """Whether a child has ended, without reaping it: its number stays ours."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _group(leader: int) -> list[int]:
    """Living processes of a process group."""
    everyone = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [pid for pid in everyone if _alive(pid, leader)]


def _alive(pid: int, leader: int) -> bool:
    try:
        state, _, group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return False
    return int(group) == leader and state not in "ZX"


def _resolve(host: str) -> str:
    """The numeric IPv4 address of `host`, which is what Triton's listeners want."""
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError):
        raise OptionError(
            f"--host {host!r} is not a name or an IPv4 address", hint="Try 127.0.0.1, or 0.0.0.0 for every interface."
        ) from None
