"""The rate of a key's streams: who is held, for how long, and that holding is not refusing."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from serving.gateway import pace
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.pace import Pace
from serving.triton.server import TritonServer
from tests.serving.gateway.gateway_thread import encode, running, stub_of

NAMED = (("x-fieldmark-key-name", "ann"),)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [1000.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


def test_what_was_saved_up_goes_at_once_and_the_rest_at_the_rate(clock: list[float]) -> None:
    paced = Pace(2, 4)
    assert [paced.take("ann") for _ in range(7)] == [0, 0, 0, 0, 0.5, 1.0, 1.5]
    assert paced.take("bob") == 0, "another key"
    clock[0] += 100
    assert [paced.take("ann") for _ in range(5)] == [0, 0, 0, 0, 0.5], "no more is saved up than the burst"


def test_nobody_without_a_name_is_held(clock: list[float]) -> None:
    assert {Pace(1, 1).take("") for _ in range(100)} == {0}


def test_single_requests_take_their_part_and_owe_no_more_than_a_second(clock: list[float]) -> None:
    paced = Pace(2, 4)
    for _ in range(1000):
        paced.take("ann", single=True)
    assert paced.take("ann") == 1.5


def test_what_did_not_come_is_given_back(clock: list[float]) -> None:
    paced = Pace(1, 1)
    paced.take("ann")
    paced.give_back("ann")
    paced.give_back("nobody")
    assert paced.take("ann") == 0


def test_names_are_forgotten_once_they_are_even(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "MOST_NAMES", 10)
    paced = Pace(1, 1)
    for number in range(10):
        paced.take(str(number))
    clock[0] += 10
    paced.take("last")
    assert set(paced._earned) == {"last"}


@pytest.mark.triton
def test_a_stream_that_is_too_fast_is_not_read_and_nothing_of_it_is_refused(toy_server: TritonServer) -> None:
    """The third image would have to wait an hour: the stream stands, and ends as any does when the service stops."""
    image = encode(np.full((40, 40, 3), 140, np.uint8))
    answers: list[Any] = []
    ended = threading.Event()

    def requests() -> Iterator[v1.ClassifyStreamRequest]:
        for number in range(5):
            yield v1.ClassifyStreamRequest(id=str(number), request=v1.ClassifyRequest(image=image))
        ended.wait(60)

    def read() -> None:
        try:
            answers.extend(stub.ClassifyStream(requests(), metadata=NAMED, timeout=60))
        except Exception as problem:
            answers.append(problem)

    with contextlib.ExitStack() as last, running(toy_server.grpc_url) as gateway:
        stub = last.enter_context(stub_of(gateway))  # its channel outlives the gateway
        waits = iter([0.0, 0.0])
        gateway._service.pace.take = lambda name, **_: next(waits, 3600.0)  # type: ignore[method-assign]
        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(300):
            if gateway.metrics.registry.get_sample_value("fieldmark_gateway_p_value_count", {"network": "full"}) == 2:
                break
            time.sleep(0.1)
        last.callback(reader.join, timeout=60)
    ended.set()
    assert "is stopping" in str(answers[-1])
