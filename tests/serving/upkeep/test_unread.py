"""Nobody reads stderr, and its pipe is full: what died is replaced, and who is told to end does."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bundle import Bundle
from bundle.errors import RequestRefused
from serving.gateway.client import FieldmarkClient
from serving.triton.server import TritonServer
from tests.serving.upkeep.served import FREE, GOOD, ROOT, SECONDS

pytestmark = pytest.mark.triton


@pytest.fixture
def full() -> Iterator[int]:
    """A pipe's end to write to, which takes no byte more."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writes, b"\n" * 4096)
    os.set_blocking(writes, True)
    yield writes
    os.close(reads)
    os.close(writes)


@contextlib.contextmanager
def running(verb: str, *arguments: str | Path, errors: int) -> Iterator[dict[str, Any]]:
    """The facts of a service that ends in good order when the body has ended."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # that hides a lock
    process = subprocess.Popen(
        [sys.executable, "-m", "fieldmark", verb, *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=errors,
        env={**variables, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield json.loads(process.stdout.readline() if process.stdout else "")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()


def test_a_service_mends_itself_and_ends(toy_bundle: Bundle, full: int) -> None:
    with running("serve", toy_bundle.path, *FREE, "--log", errors=full) as facts:
        os.killpg(facts["triton_pid"], signal.SIGKILL)
        deadline = time.monotonic() + SECONDS
        with FieldmarkClient(facts["url"]) as client:
            while not answered(client):
                assert time.monotonic() < deadline, "nobody replaced it"
                time.sleep(0.5)


def answered(client: FieldmarkClient) -> bool:
    try:
        return bool(client.classify(GOOD, timeout=5).network)
    except RequestRefused:
        return False


def test_a_gateway_ends(toy_server: TritonServer, full: int) -> None:
    with running("gateway", toy_server.grpc_url, "--port", "0", "--metrics-port", "0", errors=full):
        pass
