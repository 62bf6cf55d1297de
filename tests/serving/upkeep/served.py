"""`fieldmark serve` as a process that tests look at, and callers of it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bundle import Bundle
from bundle.errors import RequestRefused
from serving.gateway.client import FieldmarkClient
from serving.processes import command_of, group
from tests.serving.gateway.gateway_thread import encode

ROOT = Path(__file__).parents[3]
GOOD = encode(np.full((40, 40, 3), 140, np.uint8))
SECONDS = 90  # to wait for what takes five to ten on an idle machine
FREE = ("--port", "0", "--metrics-port", "0", "--gateway-metrics-port", "0")


class Served:
    """`fieldmark serve --log` in a process of its own: its addresses, and what it has told so far."""

    def __init__(self, bundle: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "fieldmark", "serve", str(bundle), "--json", "--log", *FREE, *options]
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            pytest.fail(f"it did not start: {self.lines}")
        self.facts: dict[str, Any] = json.loads(line)

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it has told under this name."""
        found = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [each for each in found if each["event"] == name]

    def stub(self, network: str) -> int:
        """Process id of a network's worker."""
        place = f"/models/{network}/"
        (found,) = [pid for pid in group(self.facts["triton_pid"]) if place in command_of(pid)]
        return found

    def health(self, network: str) -> str:
        """What fieldmark.v1 says of a network, or gRPC where it says nothing."""
        with grpc.insecure_channel(self.facts["url"], options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            request = health_pb2.HealthCheckRequest(service=f"fieldmark.v1.Fieldmark/{network}")
            try:
                status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=3).status
            except grpc.RpcError as problem:
                return str(problem.code().name)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail("waited in vain: " + "\n".join(line[:300] for line in self.lines[-20:]))
            time.sleep(0.1)

    def answers(self, network: str) -> bool:
        """Whether one call, without another try, gets an answer."""
        with FieldmarkClient(self.facts["url"], timeout=5) as client:
            try:
                return client.classify(GOOD, network=network).network == network
            except RequestRefused:
                return False

    def join(self) -> None:
        """Wait until all that it told is here; it must have ended."""
        self._reader.join(timeout=10)

    def _read(self) -> None:
        with contextlib.suppress(ValueError):
            self.lines.extend(iter(self.process.stderr.readline, "")) if self.process.stderr else None


@contextlib.contextmanager
def serving(bundle: Bundle, *options: str, environment: dict[str, str] | None = None) -> Iterator[Served]:
    served = Served(bundle.path, *options, environment=environment)
    try:
        yield served
    finally:
        served.process.send_signal(signal.SIGTERM)
        try:
            served.process.wait(timeout=40)
        finally:
            served.process.kill()


class Caller:
    """Calls one network through fieldmark.v1 all the time, and keeps what was not answered."""

    def __init__(self, served: Served, network: str) -> None:
        self.answered, self.failed = 0, list[str]()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._call, args=(served.facts["url"], network))

    def _call(self, url: str, network: str) -> None:
        with FieldmarkClient(url) as client:
            while not self._ended.wait(0.05):
                try:
                    client.classify(GOOD, network=network)
                    self.answered += 1
                except RequestRefused as problem:
                    self.failed.append(str(problem))

    def __enter__(self) -> "Caller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def gateway_pid(served: Served) -> int:
    children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
    (found,) = [int(pid) for pid in children if "fieldmark gateway" in command_of(int(pid))]
    return found
