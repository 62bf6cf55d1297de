"""A tritonserver over a model repository that somebody else wrote, as a platform engineer would start it."""

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serving.processes import end_group, exited, launch
from serving.triton.command import copy_backend
from serving.triton.environment import find_environment
from serving.workspace import Workspace

SECONDS = 60


@dataclass
class Triton:
    """`url` of its gRPC port, and the lines that it has logged so far."""

    url: str
    process: "subprocess.Popen[str]"
    log: list[str] = field(default_factory=list)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            if exited(self.process.pid) or time.monotonic() > deadline:
                pytest.fail("waited in vain; the log ends with\n" + "\n".join(line[:300] for line in self.log[-30:]))
            time.sleep(0.05)

    def said(self, text: str) -> bool:
        return any(text in line for line in self.log)


@contextlib.contextmanager
def triton_over(models: Path, *options: str) -> Iterator[Triton]:
    """Start a tritonserver that has the Python backend and nothing of ours but the repository `models`."""
    environment, workspace = find_environment(), Workspace()
    copy_backend(workspace.path / "backends", environment)
    ports = dict(zip(("grpc", "http", "metrics"), _free_ports(3), strict=True))
    flags = [f"--{name}-port={port}" for name, port in ports.items()]
    flags += [f"--{name}-address=127.0.0.1" for name in ports]
    flags += [f"--model-repository={models}", f"--backend-directory={workspace.path / 'backends'}"]
    flags += [f"--backend-config=python,shm-region-prefix-name={workspace.path.name}"]
    command = [str(environment.binary), *flags, *options]
    process = launch(command, environment=environment.variables(), folder=workspace.path, lock=workspace.lock)
    triton = Triton(f"127.0.0.1:{ports['grpc']}", process)

    def read() -> None:
        with process.stdout or contextlib.nullcontext(()) as lines:
            triton.log.extend(line.rstrip() for line in lines)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        triton.wait_for(lambda: triton.said("Started GRPCInferenceService"))
        workspace.note_extras()
        yield triton
    finally:
        end_group(process, 0.5)  # it would wait for seconds on its models
        reader.join(timeout=5)
        workspace.remove()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
