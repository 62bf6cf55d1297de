"""Streams: ids, errors of single images, and callers who read slowly, never, or not to the end."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from bundle import Bundle
from serving.client.local import LocalInference
from serving.gateway import failures
from serving.gateway.admission import Memory
from serving.gateway.failures import DETAILS, FAILURES, read_details
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.server import Gateway
from serving.triton.server import TritonServer
from tests.serving.gateway.gateway_thread import encode, metric, running, stub_of
from tests.serving.triton.played import PlayedTriton

pytestmark = [pytest.mark.triton, pytest.mark.hostile]

GOOD = encode(np.full((40, 40, 3), 140, np.uint8))
NARROW = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))  # a caller's window, so that it fills soon


def item(name: str, image: bytes = GOOD, **fields: Any) -> v1.ClassifyStreamRequest:
    return v1.ClassifyStreamRequest(id=name, request=v1.ClassifyRequest(image=image, **fields))


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def ending(stream: Any) -> tuple[grpc.StatusCode, str]:
    """Status code and reason that a stream ends with."""
    with pytest.raises(grpc.RpcError) as problem:
        for _ in stream:
            pass
    data: Any = dict(problem.value.trailing_metadata() or ()).get(DETAILS, b"")
    return problem.value.code(), read_details(data, "x").reason


class Counted:
    """An endless stream of requests that counts how many were taken."""

    def __init__(self, **fields: Any) -> None:
        self.taken, self._fields = 0, fields

    def __iter__(self) -> Iterator[v1.ClassifyStreamRequest]:
        while True:
            self.taken += 1
            yield item(f"{self.taken}", **self._fields)


def test_every_request_is_answered_once_by_its_id(stub: Any, toy_bundle: Bundle, toy_images: np.ndarray) -> None:
    names = {f"bird {number} ☃": number for number in range(60)}
    requests = [item(name, encode(toy_images[number % 20]), top_k=2) for name, number in names.items()]
    answers = list(stub.ClassifyStream(iter(requests)))
    assert sorted(each.id for each in answers) == sorted(names)
    scores = LocalInference(toy_bundle).infer(toy_images, "full")["instance_score"]
    for each in answers:
        assert each.response.adversarial.score == pytest.approx(scores[names[each.id] % 20], rel=1e-4)
        assert len(each.response.predictions) == 2


def test_a_bad_image_is_its_own_and_ids_may_repeat(stub: Any) -> None:
    requests = [item("same"), item("same", b"bad"), item("same"), item("", b""), item("i" * 128), item("☃" * 43)]
    answers = list(stub.ClassifyStream(iter(requests)))
    found = sorted((each.id, each.error.reason) for each in answers)
    assert found == [
        ("", failures.ID_TOO_LONG),
        ("", failures.IMAGE_EMPTY),
        ("i" * 128, ""),
        ("same", ""),
        ("same", ""),
        ("same", failures.IMAGE_REFUSED),
    ]


def test_an_empty_stream(stub: Any) -> None:
    assert list(stub.ClassifyStream(iter([]))) == []


def test_answers_come_before_the_last_request(stub: Any) -> None:
    sent: queue.Queue[Any] = queue.Queue()
    stream = stub.ClassifyStream(iter(sent.get, None))
    for name in ("one", "two"):
        sent.put(item(name))
        assert next(stream).id == name
    sent.put(None)
    assert list(stream) == []


def test_a_caller_that_never_reads_is_not_read_either(toy_server: TritonServer) -> None:
    with running(toy_server.grpc_url, stall_seconds=2.0, stream_window=4) as gateway, stub_of(gateway, *NARROW) as stub:
        endless = Counted(explain=True)
        stream = stub.ClassifyStream(iter(endless))
        until(lambda: metric(gateway, "streams") == 1)
        before = -1
        while before != endless.taken:  # until it stands still
            before = endless.taken
            time.sleep(0.5)
        answered = metric(gateway, "requests_total", method="ClassifyStream/request", code="OK", reason="")
        assert 4 <= answered < 2000
        assert metric(gateway, "in_flight", network="full") == 0, "it holds no place that others want"
        with stub_of(gateway) as other:
            assert other.Classify(v1.ClassifyRequest(image=GOOD)).predictions
        until(lambda: metric(gateway, "streams") == 0)
        assert metric(gateway, "stalled_streams") == 1
        assert ending(stream) == (grpc.StatusCode.ABORTED, failures.STREAM_NOT_READ), "once it reads again"
        ended = {"method": "ClassifyStream", "code": "ABORTED", "reason": failures.STREAM_NOT_READ}
        until(lambda: metric(gateway, "requests_total", **ended) == 1)
        assert metric(gateway, "stalled_streams") == 0


def test_a_caller_that_never_reads_and_hangs_up(toy_server: TritonServer) -> None:
    with running(toy_server.grpc_url, stall_seconds=0.5, stream_window=4) as gateway:
        with stub_of(gateway, *NARROW) as stub:
            stream = stub.ClassifyStream(iter(Counted(explain=True)))
            until(lambda: metric(gateway, "stalled_streams") == 1)
            stream.cancel()
            until(lambda: metric(gateway, "stalled_streams") == 0)
        with stub_of(gateway) as other:
            assert other.Classify(v1.ClassifyRequest(image=GOOD)).predictions


def test_a_slow_network_slows_the_caller(played: PlayedTriton, played_url: str) -> None:
    with running(played_url, probe_seconds=30.0, stream_window=3) as gateway, stub_of(gateway) as stub:
        gate = threading.Event()
        played.before = lambda context: gate.wait(20)
        stream = stub.ClassifyStream(item(f"{number}") for number in range(50))
        until(lambda: metric(gateway, "in_flight", network="full") == 3)
        time.sleep(0.3)
        assert metric(gateway, "in_flight", network="full") == 3
        assert metric(gateway, "waiting", network="full") == 0
        gate.set()
        assert len(list(stream)) == 50


def test_a_stream_waits_where_a_single_request_is_refused(played: PlayedTriton, played_url: str) -> None:
    settings = {"probe_seconds": 30.0, "concurrency": 1, "queue_size": 0}
    with running(played_url, **settings) as gateway, stub_of(gateway) as stub:
        gate = threading.Event()
        played.before = lambda context: gate.wait(20)
        stream = stub.ClassifyStream(item(f"{number}") for number in range(5))
        until(lambda: metric(gateway, "waiting", network="full") == 4)
        with pytest.raises(grpc.RpcError) as problem:
            stub.Classify(v1.ClassifyRequest(image=GOOD))
        assert problem.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        gate.set()
        assert {each.response.network for each in stream} == {"full"}


def test_a_caller_that_goes_away(gateway: Gateway) -> None:
    with stub_of(gateway) as stub:
        stream = stub.ClassifyStream(iter(Counted()))
        next(stream)
        stream.cancel()
    until(lambda: metric(gateway, "streams") == 0)
    until(lambda: metric(gateway, "in_flight", network="full") == 0)


def test_a_stream_with_a_deadline(stub: Any, gateway: Gateway) -> None:
    waiting = threading.Event()
    stream = stub.ClassifyStream(iter(lambda: waiting.wait(20) and None, None), timeout=0.5)
    assert ending(stream)[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    waiting.set()
    until(lambda: metric(gateway, "streams") == 0)


def test_a_stream_where_nothing_comes(toy_server: TritonServer) -> None:
    with running(toy_server.grpc_url, idle_seconds=0.3) as gateway, stub_of(gateway) as stub:
        waiting = threading.Event()
        stream = stub.ClassifyStream(iter(lambda: waiting.wait(20) and None, None))
        assert ending(stream) == (grpc.StatusCode.ABORTED, failures.STREAM_IDLE)
        waiting.set()


def test_more_streams_than_allowed(toy_server: TritonServer) -> None:
    with running(toy_server.grpc_url, streams=1) as gateway, stub_of(gateway) as stub:
        sent: queue.Queue[Any] = queue.Queue()
        first = stub.ClassifyStream(iter(sent.get, None))
        sent.put(item("one"))
        assert next(first).id == "one"
        assert ending(stub.ClassifyStream(iter([item("two")]))) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            failures.TOO_MANY_STREAMS,
        )
        sent.put(None)
        assert list(first) == []
        assert [each.id for each in stub.ClassifyStream(iter([item("three")]))] == ["three"]


def test_a_stream_ends_in_good_order_when_the_gateway_stops(played: PlayedTriton, played_url: str) -> None:
    sent: queue.Queue[Any] = queue.Queue()
    with stub_of_stopping(played, played_url) as (stub, gateway, stop):
        gate = threading.Event()
        played.before = lambda context: gate.wait(20)
        stream = stub.ClassifyStream(iter(sent.get, None))
        sent.put(item("in work"))
        until(lambda: metric(gateway, "in_flight", network="full") == 1)
        stop.set()
        until(lambda: gateway.stopping)
        gate.set()
        assert next(stream).id == "in work"
        assert ending(stream) == (grpc.StatusCode.UNAVAILABLE, failures.STOPPING)
    sent.put(None)


class stub_of_stopping:
    """A stub, its gateway, and an event that makes the gateway stop in another thread."""

    def __init__(self, played: PlayedTriton, url: str) -> None:
        self._url, self._stop, self._ready = url, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        with running(self._url, probe_seconds=30.0, drain_seconds=10.0) as self._gateway:
            self._ready.set()
            self._stop.wait(60)

    def __enter__(self) -> tuple[Any, Gateway, threading.Event]:
        self._thread.start()
        assert self._ready.wait(20)
        self._stub = stub_of(self._gateway)
        return self._stub.__enter__(), self._gateway, self._stop

    def __exit__(self, *_: Any) -> None:
        self._stub.__exit__(None, None, None)
        self._stop.set()
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()


def test_every_reason_of_a_stream_is_documented() -> None:
    for reason in (failures.STREAM_IDLE, failures.STREAM_NOT_READ, failures.TOO_MANY_STREAMS, failures.STOPPING):
        assert reason in FAILURES


def test_memory_of_streams_is_bounded() -> None:
    import asyncio

    async def fill() -> None:
        memory = Memory(100)
        with memory.hold(60):
            await memory.room()
            with memory.hold(60), pytest.raises(TimeoutError):
                await asyncio.wait_for(memory.room(), 0.05)
            await memory.room()
        assert memory.held == 0

    asyncio.run(fill())
