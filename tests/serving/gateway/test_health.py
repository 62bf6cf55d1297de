"""Readiness tells the truth: SERVING only while a real inference is answered, whatever Triton says of itself."""

import os
import signal
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
from bundle.errors import EndpointError
from serving.gateway import failures
from serving.gateway.failures import DETAILS, read_details
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.server import Gateway
from serving.processes import group
from serving.triton.server import TritonServer
from tests.conftest import MakeToyBundle
from tests.serving.gateway.gateway_thread import encode, metric, running, stub_of
from tests.serving.triton.played import PlayedTriton, listen

pytestmark = pytest.mark.triton

GOOD = encode(np.full((40, 40, 3), 140, np.uint8))
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
NAME = "fieldmark.v1.Fieldmark"


def health(gateway: Gateway, name: str) -> int:
    with grpc.insecure_channel(gateway.url) as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def reason(stub: Any, network: str) -> str:
    try:
        stub.Classify(v1.ClassifyRequest(image=GOOD, network=network), timeout=20)
        return "OK"
    except grpc.RpcError as problem:
        return read_details(dict(problem.trailing_metadata())[DETAILS], "x").reason


def worker_of(server: TritonServer, network: str) -> int:
    """The process of a network's stub."""
    for pid in group(server.pid):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"python_backend_stub" in command and f"/{network}/".encode() in command:
            return pid
    raise LookupError(network)


@pytest.fixture
def own_server(toy_bundle: Bundle) -> Iterator[TritonServer]:
    """A Triton that a test may harm."""
    with TritonServer(toy_bundle, grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server


def test_all_is_well(gateway: Gateway) -> None:
    for name in ("", NAME, f"{NAME}/full", f"{NAME}/attention"):
        assert health(gateway, name) == SERVING
    with pytest.raises(grpc.RpcError) as problem:
        health(gateway, "nothing")
    assert problem.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_stopped_worker_is_seen_and_the_other_network_answers(own_server: TritonServer) -> None:
    """Triton's live, ready and model-ready all say yes meanwhile."""
    pid = worker_of(own_server, "full")
    with running(own_server.grpc_url, probe_seconds=0.5) as gateway, stub_of(gateway) as stub:
        os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: health(gateway, f"{NAME}/full") == NOT_SERVING)
            assert health(gateway, NAME) == health(gateway, "") == NOT_SERVING
            assert health(gateway, f"{NAME}/attention") == SERVING
            assert reason(stub, "full") == failures.NETWORK_UNAVAILABLE, "at once, without a wait"
            assert reason(stub, "attention") == "OK"
            assert metric(gateway, "serving", network="full") == 0
            about = {each.name: each.serving for each in stub.Describe(v1.DescribeRequest()).networks}
            assert about == {"full": False, "attention": True}
        finally:
            os.kill(pid, signal.SIGCONT)
        until(lambda: health(gateway, "") == SERVING)
        assert reason(stub, "full") == "OK"


def test_a_killed_triton_is_seen(own_server: TritonServer) -> None:
    with running(own_server.grpc_url, probe_seconds=0.5) as gateway, stub_of(gateway) as stub:
        os.killpg(own_server.pid, signal.SIGKILL)
        until(lambda: health(gateway, "") == NOT_SERVING)
        assert reason(stub, "full") == reason(stub, "attention") == failures.NETWORK_UNAVAILABLE


def test_a_triton_that_comes_back_with_another_bundle(
    toy_bundle: Bundle, make_toy_bundle: MakeToyBundle, tmp_path: Path
) -> None:
    other = make_toy_bundle(tmp_path / "other", name="other", alpha=0.2)
    server, address = listen(PlayedTriton(toy_bundle))
    with running(address, probe_seconds=0.2) as gateway, stub_of(gateway) as stub:
        assert stub.Classify(v1.ClassifyRequest(image=GOOD)).bundle_id == toy_bundle.bundle_id
        server.stop(0).wait()
        until(lambda: health(gateway, "") == NOT_SERVING)
        server, _ = listen(PlayedTriton(other), int(address.rpartition(":")[2]))
        until(lambda: health(gateway, "") == SERVING)
        answer = stub.Classify(v1.ClassifyRequest(image=GOOD))
        assert (answer.bundle_id, answer.adversarial.alpha) == (other.bundle_id, pytest.approx(0.2))
    server.stop(0).wait()


def test_a_bundle_that_this_version_does_not_know(played: PlayedTriton, played_url: str) -> None:
    known = {name: config.SerializeToString() for name, config in played.configs.items()}
    with running(played_url, probe_seconds=0.2) as gateway:
        for config in played.configs.values():
            config.parameters["bundle_id"].string_value = "0" * 64
            config.parameters["manifest"].string_value = '{"schema":3}'
        until(lambda: health(gateway, "") == NOT_SERVING)
        for name, config in played.configs.items():
            config.ParseFromString(known[name])
        until(lambda: health(gateway, "") == SERVING)
        assert gateway.death == ""


def test_another_bundle_than_the_one_insisted_on(
    toy_bundle: Bundle, make_toy_bundle: MakeToyBundle, tmp_path: Path
) -> None:
    other = make_toy_bundle(tmp_path / "other", name="other")
    server, address = listen(PlayedTriton(other))
    with pytest.raises(EndpointError, match="is expected"), running(address, bundle=toy_bundle):
        pass
    server.stop(0).wait()


def test_callers_answers_count_where_probes_wait(played: PlayedTriton, played_url: str) -> None:
    """Under load a probe may wait longer than its interval; a network that answers callers is no dead one."""
    with running(played_url, probe_seconds=0.3) as gateway, stub_of(gateway) as stub:

        def before(context: Any) -> None:
            while context.time_remaining() < 0.35 and context.is_active():  # a probe
                time.sleep(0.01)

        played.before = before
        stop = threading.Event()

        def keep_asking() -> None:
            while not stop.is_set():
                stub.Classify(v1.ClassifyRequest(image=GOOD, network="full"))

        thread = threading.Thread(target=keep_asking)
        thread.start()
        try:
            until(lambda: health(gateway, f"{NAME}/attention") == NOT_SERVING)
            for _ in range(20):
                assert health(gateway, f"{NAME}/full") == SERVING
                time.sleep(0.05)
        finally:
            stop.set()
            thread.join()


def test_health_says_no_before_the_gateway_stops(played_url: str) -> None:
    seen: list[int] = []
    with running(played_url, probe_seconds=30.0) as gateway:
        channel = grpc.insecure_channel(gateway.url)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=NAME))
        seen.append(int(next(watch).status))
        reader = threading.Thread(target=lambda: seen.append(int(next(watch).status)))
        reader.start()
    reader.join(timeout=10)
    channel.close()
    assert seen == [SERVING, NOT_SERVING]
