"""What a library would never send: calls whose message is cut off, or says of itself what it is not."""

import contextlib
import socket
import struct
import threading
import time
from typing import Any

import grpc
import numpy as np
import pytest

from benchmarks.reliability.http2 import call
from serving.gateway import failures
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.server import Gateway
from tests.serving.gateway.gateway_thread import encode, metric, running, stub_of
from tests.serving.gateway.test_refusals import one_clean_sentence
from tests.serving.triton.played import PlayedTriton

pytestmark = [pytest.mark.triton, pytest.mark.hostile]

GOOD = v1.ClassifyRequest(image=encode(np.full((40, 40, 3), 140, np.uint8)))
MESSAGE = GOOD.SerializeToString()


def framed(message: bytes, length: int | None = None, flag: int = 0) -> bytes:
    """A message as gRPC sends it, or lies about its length."""
    return struct.pack(">BI", flag, len(message) if length is None else length) + message


def ask(gateway: Gateway, body: bytes, method: str = "Classify", **more: Any) -> tuple[str, str]:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as line:
        number, sentence = call(line, method, body, **more)
    names = {code.value[0]: code.name for code in grpc.StatusCode}
    return names.get(number, "none"), sentence


def test_these_bytes_are_a_call(gateway: Gateway) -> None:
    assert ask(gateway, framed(MESSAGE)) == ("OK", "")
    assert ask(gateway, framed(b""), "Describe") == ("OK", "")


@pytest.mark.parametrize("method", ["Classify", "Describe"])
@pytest.mark.parametrize("body", [b"", b"\0", framed(MESSAGE)[:-20], framed(MESSAGE, 2 * len(MESSAGE))])
def test_a_message_that_is_cut_off_is_refused_and_not_waited_for(gateway: Gateway, method: str, body: bytes) -> None:
    """gRPC itself would answer nothing, and hold the call for as long as the connection lives."""
    code, sentence = ask(gateway, body, method)
    assert code == failures.FAILURES[failures.MESSAGE_MALFORMED].code
    assert sentence == f"the call holds no whole message of type fieldmark.v1.{method}Request"


def test_a_message_that_never_comes(played: PlayedTriton, played_url: str) -> None:
    with running(played_url, probe_seconds=30.0, timeout=0.5) as gateway:
        code, sentence = ask(gateway, framed(MESSAGE)[:-20], end=False)
        assert (code, sentence) == ("DEADLINE_EXCEEDED", "the request did not arrive in time")
        with stub_of(gateway) as stub:
            assert stub.Classify(GOOD).predictions


def test_a_stream_whose_last_message_is_cut_off_ends_without_it(gateway: Gateway) -> None:
    whole = v1.ClassifyStreamRequest(id="one", request=GOOD).SerializeToString()
    assert ask(gateway, framed(whole) + framed(whole)[:-20], "ClassifyStream") == ("OK", "")


@pytest.mark.parametrize(
    ("body", "more", "code"),
    [
        (framed(MESSAGE, 2**32 - 1), {}, "RESOURCE_EXHAUSTED"),
        (framed(MESSAGE, flag=1), {}, "INTERNAL"),
        (framed(MESSAGE, flag=1), {"grpc_encoding": "gzip"}, "UNIMPLEMENTED"),
        (framed(MESSAGE), {"grpc_encoding": "none such"}, "INTERNAL"),
        (framed(MESSAGE), {"grpc_timeout": "0n"}, "DEADLINE_EXCEEDED"),
        (framed(MESSAGE), {"grpc_timeout": "soon"}, "INTERNAL"),
    ],
    ids=["4 GiB", "packed with nothing", "packed", "packed somehow", "a deadline of 0", "no deadline"],
)
def test_what_grpc_itself_refuses(gateway: Gateway, body: bytes, more: dict[str, str], code: str) -> None:
    found, sentence = ask(gateway, body, **more)
    assert found == code
    one_clean_sentence(sentence)


def hang_up(gateway: Gateway) -> None:
    """Begin a call, and tear the connection down before its message is whole."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as line:

        def begin() -> None:
            with contextlib.suppress(OSError):
                call(line, "Classify", framed(MESSAGE)[:-20], end=False)

        gone = threading.Thread(target=begin)
        gone.start()
        time.sleep(0.01)
        line.shutdown(socket.SHUT_RDWR)
        gone.join(timeout=20)


def test_callers_who_hang_up_in_the_middle_of_a_message_leave_nothing(gateway: Gateway, stub: Any) -> None:
    for _ in range(20):
        hang_up(gateway)
    assert stub.Classify(GOOD).predictions
    assert metric(gateway, "in_flight", network="full") == metric(gateway, "waiting", network="full") == 0
    assert metric(gateway, "requests_total", method="Classify", code="INTERNAL", reason="BUG") == 0
