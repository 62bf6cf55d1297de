"""The queue before a network: who goes on, who waits, who is sent away, and that no place is ever lost."""

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from bundle.errors import RequestRefused
from serving.gateway import failures
from serving.gateway.admission import Admission
from serving.gateway.failures import DETAILS, read_details
from serving.gateway.generated import fieldmark_pb2 as v1
from tests.serving.gateway.gateway_thread import encode, metric, running, stub_of
from tests.serving.triton.played import PlayedTriton

GOOD = encode(np.full((40, 40, 3), 140, np.uint8))


def make(**changes: int) -> Admission:
    return Admission(**{"concurrency": 2, "queue_size": 2, "queue_bytes": 100, **changes})


async def holding(admission: Admission, gate: asyncio.Event, size: int = 1, seconds: float = 10.0, **how: Any) -> None:
    async with admission.enter(size, seconds, **how):
        await gate.wait()


def test_as_many_as_allowed_work_the_next_wait_and_the_rest_is_refused() -> None:
    async def play() -> None:
        admission, gate = make(), asyncio.Event()
        tasks = [asyncio.create_task(holding(admission, gate)) for _ in range(4)]
        await asyncio.sleep(0)
        assert (admission.working, admission.waiting, admission.waiting_bytes) == (2, 2, 2)
        with pytest.raises(RequestRefused) as problem:
            await holding(admission, gate)
        assert (problem.value.reason, problem.value.retry_after) == (failures.OVERLOADED, 0.1)
        patient = asyncio.create_task(holding(admission, gate, patient=True))
        await asyncio.sleep(0)
        assert admission.waiting == 3
        gate.set()
        await asyncio.gather(*tasks, patient)
        assert (admission.working, admission.waiting, admission.waiting_bytes) == (0, 0, 0)

    asyncio.run(play())


def test_bytes_are_bounded_too() -> None:
    async def play() -> None:
        admission, gate = make(concurrency=1, queue_size=9), asyncio.Event()
        tasks = [asyncio.create_task(holding(admission, gate, size)) for size in (1000, 60)]
        await asyncio.sleep(0)
        with pytest.raises(RequestRefused):
            await holding(admission, gate, 41)
        tasks.append(asyncio.create_task(holding(admission, gate, 40)))
        await asyncio.sleep(0)
        assert admission.waiting_bytes == 100
        gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(play())


def test_who_came_first_goes_on_first() -> None:
    async def play() -> None:
        admission, order = make(concurrency=1, queue_size=9), []

        async def one(number: int) -> None:
            async with admission.enter(1, 10.0):
                order.append(number)
                await asyncio.sleep(0)

        await asyncio.gather(*(one(number) for number in range(8)))
        assert order == list(range(8))

    asyncio.run(play())


def test_a_wait_that_would_outlast_the_deadline_is_not_begun() -> None:
    async def play() -> None:
        admission, gate = make(concurrency=1, queue_size=99, queue_bytes=10**6), asyncio.Event()
        for _ in range(20):
            async with admission.enter(1, 10.0):
                await asyncio.sleep(0.02)
        task = asyncio.create_task(holding(admission, gate))
        await asyncio.sleep(0)
        assert admission.expected_wait() > 0.01
        with pytest.raises(RequestRefused, match="would outlast the deadline"):
            await holding(admission, gate, seconds=0.001)
        gate.set()
        await task

    asyncio.run(play())


def test_no_place_is_lost_whatever_is_cancelled() -> None:
    chance = random.Random(7)

    async def one(admission: Admission) -> None:
        async with admission.enter(chance.randrange(50), 10.0, patient=chance.random() < 0.2):
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            if chance.random() < 0.2:
                raise ZeroDivisionError

    async def play() -> None:
        admission = make(concurrency=3, queue_size=6, queue_bytes=200)
        tasks: list[asyncio.Task[None]] = []
        for _ in range(3000):
            tasks.append(asyncio.create_task(one(admission)))
            if chance.random() < 0.4:
                chance.choice(tasks[-10:]).cancel()
            if chance.random() < 0.5:
                await asyncio.sleep(0)
            assert 0 <= admission.working <= 3
            assert admission.waiting_bytes >= 0
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        kinds = {type(each) for each in ended}
        assert kinds == {type(None), RequestRefused, ZeroDivisionError, asyncio.CancelledError}
        assert (admission.working, admission.waiting, admission.waiting_bytes) == (0, 0, 0)

    asyncio.run(play())


# Over the wire


def test_load_is_shed_early_and_says_when_to_come_back(played: PlayedTriton, played_url: str) -> None:
    settings = {"probe_seconds": 30.0, "concurrency": 2, "queue_size": 3}
    with running(played_url, **settings) as gateway, stub_of(gateway) as stub, ThreadPoolExecutor(20) as pool:
        gate = threading.Event()
        played.before = lambda context: gate.wait(20)
        calls = [pool.submit(lambda: stub.Classify(v1.ClassifyRequest(image=GOOD))) for _ in range(5)]
        deadline = time.monotonic() + 20
        while metric(gateway, "in_flight", network="full") + metric(gateway, "waiting", network="full") < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for _ in range(10):
            with pytest.raises(grpc.RpcError) as problem:
                stub.Classify(v1.ClassifyRequest(image=GOOD))
            assert problem.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            found = read_details(dict(problem.value.trailing_metadata())[DETAILS], problem.value.details())
            assert found.reason == failures.OVERLOADED
            assert found.retry_after is not None
            assert found.retry_after >= 0.1
        assert metric(gateway, "shed_total", reason=failures.OVERLOADED) == 10
        other = v1.ClassifyRequest(image=GOOD, network="attention")
        gate.set()
        assert [call.result().network for call in calls] == ["full"] * 5
        assert stub.Classify(other).network == "attention"


def test_a_network_that_hangs_leaves_the_other_its_places(
    played: PlayedTriton, played_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"probe_seconds": 30.0, "concurrency": 2, "queue_size": 0}
    gate = threading.Event()
    infer = played.local.infer

    def selective(images: Any, network: str) -> Any:
        if network == "full":
            gate.wait(20)
        return infer(images, network)

    with running(played_url, **settings) as gateway, stub_of(gateway) as stub, ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr(played.local, "infer", selective)
        calls = [pool.submit(lambda: stub.Classify(v1.ClassifyRequest(image=GOOD))) for _ in range(2)]
        deadline = time.monotonic() + 20
        while metric(gateway, "in_flight", network="full") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert stub.Classify(v1.ClassifyRequest(image=GOOD, network="attention")).network == "attention"
        gate.set()
        assert {call.result().network for call in calls} == {"full"}
