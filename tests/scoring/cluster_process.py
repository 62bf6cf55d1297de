"""A Ray cluster of this machine for tests: two cores, its processes, and what kills them."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scoring.cluster.connection import SETTINGS


@dataclass(frozen=True)
class RayProcess:
    """`address` is what a job on this machine connects to, `client` what one elsewhere does.

    `environment` holds what lets it in.
    """

    address: str
    client: str
    raylet: int
    environment: dict[str, str]

    def workers(self) -> list[int]:
        """Processes in which a Worker of ours lives."""
        return [pid for pid in children(self.raylet) if b"ray::Worker" in title(pid)]


def children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


def title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def ray_cluster(**environment: str) -> Iterator[RayProcess]:
    """A head of two cores on free ports, until the end of the `with` statement; `environment` is its workers' too."""
    port, client, agent = free_port(), free_port(), free_port()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *("--port", str(port), "--ray-client-server-port", str(client)),
            *("--dashboard-agent-listen-port", str(agent), "--include-dashboard", "False", "--num-cpus", "2"),
            *("--object-store-memory", "100000000", "--include-log-monitor", "False", "--temp-dir", folder),
        ]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, **SETTINGS, **token, **environment},
        )
        try:
            assert process.stdout is not None
            said = ""
            while "Ray runtime started" not in said:
                line = process.stdout.readline()
                assert line, f"Ray did not start: {said}"
                said += line
            raylet = next(pid for pid in children(process.pid) if b"/raylet" in title(pid).split(b"\0")[0])
            yield RayProcess(f"127.0.0.1:{port}", f"ray://127.0.0.1:{client}", raylet, token)
        finally:
            everybody = [process.pid, *children(process.pid)]
            for pid in [*everybody, *(each for parent in everybody for each in children(parent))]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
