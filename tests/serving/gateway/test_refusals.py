"""Every bad request has its documented status, reason and one sentence, over the wire; and the next one is answered."""

import contextlib
import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from PIL import Image

from bundle.errors import RequestRefused
from serving.gateway import failures
from serving.gateway.failures import DETAILS, FAILURES, as_refusal, details, read_details
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.server import Gateway
from tests.serving.gateway.gateway_thread import encode, running, stub_of
from tests.serving.triton.played import PlayedTriton

pytestmark = [pytest.mark.triton, pytest.mark.hostile]

GOOD = encode(np.full((40, 40, 3), 140, np.uint8))
JPEG = encode(np.full((400, 400, 3), 90, np.uint8), "JPEG")


def animation() -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(stream, format="GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def ask(image: bytes = GOOD, **fields: Any) -> v1.ClassifyRequest:
    return v1.ClassifyRequest(image=image, **fields)


BAD = [
    ("no image", ask(b""), failures.IMAGE_EMPTY, "image"),
    ("one byte", ask(b"\0"), failures.IMAGE_REFUSED, "image"),
    ("text", ask(b"not an image" * 100), failures.IMAGE_REFUSED, "image"),
    ("svg", ask(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), failures.IMAGE_REFUSED, "image"),
    ("pdf", ask(b"%PDF-1.7\n"), failures.IMAGE_REFUSED, "image"),
    ("postscript", ask(b"%!PS-Adobe-3.0 EPSF-3.0\n"), failures.IMAGE_REFUSED, "image"),
    ("cut jpeg", ask(JPEG[: len(JPEG) // 2]), failures.IMAGE_REFUSED, "image"),
    ("cut png", ask(GOOD[:-30]), failures.IMAGE_REFUSED, "image"),
    ("animation", ask(animation()), failures.IMAGE_REFUSED, "image"),
    ("pixel bomb", ask(bomb()), failures.IMAGE_REFUSED, "image"),
    (
        "more pixels than this gateway takes",
        ask(encode(np.zeros((1001, 1000, 3), np.uint8))),
        failures.IMAGE_REFUSED,
        "image",
    ),
    ("too small", ask(encode(np.zeros((4, 40, 3), np.uint8))), failures.IMAGE_REFUSED, "image"),
    ("16 MiB and one byte", ask(b"\xff" * (2**24 + 1)), failures.IMAGE_TOO_LARGE, "image"),
    ("unknown network", ask(network="resnet"), failures.NETWORK_UNKNOWN, "network"),
    ("a path as network", ask(network="../../etc/passwd\n\x1b[31m" * 50), failures.NETWORK_UNKNOWN, "network"),
    ("top_k 0", ask(top_k=0), failures.TOP_K_OUT_OF_RANGE, "top_k"),
    ("top_k 6 of 5", ask(top_k=6), failures.TOP_K_OUT_OF_RANGE, "top_k"),
    ("top_k largest", ask(top_k=2**32 - 1), failures.TOP_K_OUT_OF_RANGE, "top_k"),
    ("alpha below", ask(alpha=0.005), failures.ALPHA_OUT_OF_RANGE, "alpha"),
    ("alpha 0", ask(alpha=0.0), failures.ALPHA_OUT_OF_RANGE, "alpha"),
    ("alpha 1", ask(alpha=1.0), failures.ALPHA_OUT_OF_RANGE, "alpha"),
    ("alpha negative", ask(alpha=-0.1), failures.ALPHA_OUT_OF_RANGE, "alpha"),
    ("alpha NaN", ask(alpha=float("nan")), failures.ALPHA_OUT_OF_RANGE, "alpha"),
    ("alpha infinite", ask(alpha=float("inf")), failures.ALPHA_OUT_OF_RANGE, "alpha"),
]


def one_clean_sentence(text: str) -> None:
    assert 0 < len(text) <= failures._MOST
    assert text.isprintable()
    assert not re.search(r"Traceback|\.py|/home/|/root/|/tmp|/usr|site-packages|0x[0-9a-f]{6}|<class|object at", text)


def refused(problem: grpc.RpcError) -> tuple[str, str, Any, Any]:
    """(code, reason, field, seconds until another try) of a failed call; its sentence is clean."""
    one_clean_sentence(problem.details())
    trailing = dict(problem.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing[DETAILS])
    assert status.code == problem.code().value[0]
    assert status.message == problem.details()
    info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    for each in status.details:
        for kind in (info, retry, bad):
            if each.Is(kind.DESCRIPTOR):
                each.Unpack(kind)
    assert info.domain == "fieldmark.v1"
    assert info.metadata["request_id"]
    field = bad.field_violations[0].field if bad.field_violations else ""
    again = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return problem.code().name, info.reason, field, again or None


def fails(call: Callable[[], Any]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as problem:
        call()
    return problem.value


@pytest.mark.parametrize(("request_", "reason", "field"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_request(stub: Any, request_: v1.ClassifyRequest, reason: str, field: str) -> None:
    found = refused(fails(lambda: stub.Classify(request_)))
    assert found == (FAILURES[reason].code, reason, field, None)
    answers = list(stub.ClassifyStream(iter([v1.ClassifyStreamRequest(id="bad", request=request_)])))
    assert [(each.id, each.error.reason, each.error.code) for each in answers] == [
        ("bad", reason, grpc.StatusCode[FAILURES[reason].code].value[0])
    ]
    one_clean_sentence(answers[0].error.message)
    assert not answers[0].error.HasField("retry_after")
    assert stub.Classify(ask()).predictions


def test_a_sentence_names_what_may_be_asked(stub: Any) -> None:
    assert fails(lambda: stub.Classify(ask(network="resnet"))).details() == (
        "there is no network 'resnet'. There is: attention, full."
    )
    assert fails(lambda: stub.Classify(ask(alpha=0.005))).details() == (
        "alpha 0.005 is below 0.01, the smallest p-value there is. Nothing would ever be flagged. Choose a larger one."
    )


# What gRPC itself refuses, before there is a request


def test_65_megabytes(gateway: Gateway) -> None:
    with stub_of(gateway) as stub:
        problem = fails(lambda: stub.Classify(ask(b"\xff" * 65_000_000)))
        assert problem.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        one_clean_sentence(problem.details())
        assert stub.Classify(ask()).predictions


def test_a_gzip_bomb(gateway: Gateway) -> None:
    with stub_of(gateway) as stub:
        problem = fails(lambda: stub.Classify(ask(b"\0" * 12_000_000), compression=grpc.Compression.Gzip))
        assert problem.code() == grpc.StatusCode.UNIMPLEMENTED
        one_clean_sentence(problem.details())
        assert stub.Classify(ask()).predictions


@pytest.mark.parametrize("name", ["x-request-id", "x-other", "x-blob-bin"])
def test_huge_metadata(gateway: Gateway, name: str) -> None:
    with stub_of(gateway) as stub:
        value: Any = b"i" * 1_000_000 if name.endswith("-bin") else "i" * 1_000_000
        problem = fails(lambda: stub.Classify(ask(), metadata=((name, value),)))
        assert problem.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
        assert stub.Classify(ask()).predictions


@pytest.mark.parametrize("timeout", [0, 1e-6, -1])
def test_a_deadline_of_nothing(stub: Any, timeout: float) -> None:
    assert fails(lambda: stub.Classify(ask(), timeout=timeout)).code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert stub.Classify(ask()).predictions


def test_a_message_that_is_none(gateway: Gateway) -> None:
    with grpc.insecure_channel(gateway.url) as channel:

        def send(method: str, data: bytes) -> grpc.RpcError:
            return fails(lambda: channel.unary_unary(method)(data, timeout=10))

        for data in (b"\xff\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x12\x02\xff\xfe"):
            found = refused(send("/fieldmark.v1.Fieldmark/Classify", data))
            assert found == ("INVALID_ARGUMENT", failures.MESSAGE_MALFORMED, "", None)
        assert refused(send("/fieldmark.v1.Fieldmark/Describe", b"\xff"))[1] == failures.MESSAGE_MALFORMED
        stream = channel.stream_stream("/fieldmark.v1.Fieldmark/ClassifyStream")
        problem = fails(lambda: list(stream(iter([b"\xff\xff"]), timeout=10)))
        assert refused(problem)[1] == failures.MESSAGE_MALFORMED
        assert send("/fieldmark.v1.Fieldmark/Nothing", b"").code() == grpc.StatusCode.UNIMPLEMENTED
        assert send("/inference.GRPCInferenceService/ModelInfer", b"").code() == grpc.StatusCode.UNIMPLEMENTED


def test_bytes_that_are_not_grpc(gateway: Gateway, stub: Any) -> None:
    for data in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0" * 100_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 5000,
    ):
        # It may be torn down before all is sent.
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as line, contextlib.suppress(OSError):
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            while line.recv(65536):
                pass
    assert stub.Classify(ask()).predictions


# What a Triton does


def test_a_slow_network_and_the_callers_deadline(played: PlayedTriton, played_url: str) -> None:
    with running(played_url, probe_seconds=30.0) as gateway, stub_of(gateway) as stub:
        left: list[float] = []
        gone = threading.Event()

        def slow(context: Any) -> None:
            left.append(context.time_remaining())
            context.add_callback(gone.set)
            gone.wait(10)

        played.before = slow
        assert fails(lambda: stub.Classify(ask(), timeout=0.5)).code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0 < left[0] < 0.6, "the deadline goes along; clocks differ by a fraction of a millisecond"
        assert gone.wait(10), "and Triton is told that nobody waits any more"


def test_a_cancelled_call_is_cancelled_at_triton(played: PlayedTriton, played_url: str) -> None:
    with running(played_url, probe_seconds=30.0) as gateway, stub_of(gateway) as stub:
        there, gone = threading.Event(), threading.Event()

        def slow(context: Any) -> None:
            context.add_callback(gone.set)
            there.set()
            gone.wait(10)

        played.before = slow
        call = stub.Classify.future(ask())
        assert there.wait(10)
        call.cancel()
        assert gone.wait(10)
        played.before = lambda context: None
        assert stub.Classify(ask()).predictions


def test_the_services_own_longest_time(played: PlayedTriton, played_url: str) -> None:
    with running(played_url, probe_seconds=30.0, timeout=0.3) as gateway, stub_of(gateway) as stub:
        played.before = lambda context: time.sleep(1)
        found = refused(fails(lambda: stub.Classify(ask(), timeout=20)))
        assert found == ("DEADLINE_EXCEEDED", failures.TOO_LATE, "", None)


@pytest.mark.parametrize(
    ("code", "words", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "connection lost at /tmp/secret", failures.NETWORK_UNAVAILABLE),
        (grpc.StatusCode.INTERNAL, "Stub process 'full_0' is not healthy.", failures.NETWORK_UNAVAILABLE),
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'full' is not found", failures.NETWORK_UNAVAILABLE),
        (grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape in /models/full", failures.NETWORK_FAILED),
        (grpc.StatusCode.INTERNAL, "Traceback (most recent call last): model.py", failures.NETWORK_FAILED),
    ],
)
def test_a_triton_that_fails(
    played: PlayedTriton, played_url: str, code: grpc.StatusCode, words: str, reason: str
) -> None:
    with running(played_url, probe_seconds=30.0) as gateway, stub_of(gateway) as stub:
        played.before = lambda context: context.abort(code, words)
        found = refused(fails(lambda: stub.Classify(ask())))
        assert found[:2] == (FAILURES[reason].code, reason)
        assert (found[3] is not None) == FAILURES[reason].retry


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *((name, wrong) for name in ("p_value", "probabilities") for wrong in (np.nan, np.inf, -1.0, 2.0)),
        *((name, wrong) for name in ("instance_score", "layer_scores") for wrong in (np.nan, np.inf)),
    ],
)
def test_an_answer_without_sense_is_none(played: PlayedTriton, played_url: str, name: str, wrong: float) -> None:
    with running(played_url, probe_seconds=30.0) as gateway, stub_of(gateway) as stub:
        played.change = lambda outputs: outputs | {name: np.full_like(outputs[name], wrong)}
        found = refused(fails(lambda: stub.Classify(ask())))
        assert found == ("INTERNAL", failures.NETWORK_FAILED, "", None)


def test_an_answer_of_another_shape_is_none(played: PlayedTriton, played_url: str) -> None:
    with running(played_url, probe_seconds=30.0) as gateway, stub_of(gateway) as stub:
        for change in (
            lambda outputs: outputs | {"probabilities": outputs["probabilities"][:, :2]},
            lambda outputs: outputs | {"probabilities": outputs["probabilities"].astype(np.float16)},
            lambda outputs: {name: value for name, value in outputs.items() if name != "p_value"},
        ):
            played.change = change
            assert refused(fails(lambda: stub.Classify(ask())))[1] == failures.NETWORK_FAILED


def test_a_bug_says_nothing_over_the_wire(played: PlayedTriton, played_url: str, monkeypatch: Any) -> None:
    log = io.StringIO()
    with running(played_url, probe_seconds=30.0, log=log) as gateway, stub_of(gateway) as stub:

        def broken(*_: Any) -> Any:
            raise ZeroDivisionError("a secret at /tmp/place")

        monkeypatch.setattr("serving.gateway.service.make_answer", broken)
        assert refused(fails(lambda: stub.Classify(ask()))) == ("INTERNAL", failures.BUG, "", None)
        monkeypatch.undo()
        assert stub.Classify(ask()).predictions
    bugs = [line["bug"] for line in map(json.loads, log.getvalue().splitlines()) if line.get("reason") == failures.BUG]
    assert "ZeroDivisionError" in bugs[0]


# The details themselves


def test_details_come_back_as_they_were_sent() -> None:
    sent = RequestRefused("what", hint="Do this.", reason=failures.OVERLOADED, retry_after=1.25, field="image")
    found = read_details(details(sent, {}), "what. Do this.")
    assert (found.reason, found.retry_after, found.field, str(found)) == (
        failures.OVERLOADED,
        pytest.approx(1.25),
        "image",
        "what. Do this.",
    )


@pytest.mark.parametrize("data", [b"", b"\xff\xff", b"\x1a\x05\x0a\x03abc", b"\x1a\x03\x12\x01\xff"])
def test_details_of_somebody_else_are_none(data: bytes) -> None:
    found = read_details(data, "words")
    assert (found.what, found.reason, found.retry_after) == ("words", "", None)


def test_a_refusal_survives_a_process_border() -> None:
    import pickle

    sent = RequestRefused("what", hint="do", reason=failures.OVERLOADED, retry_after=2.0, field="image")
    found = pickle.loads(pickle.dumps(sent))
    assert (vars(found), str(found)) == (vars(sent), str(sent))


def test_what_is_not_meant_to_happen_is_a_bug() -> None:
    assert as_refusal(KeyError("/etc/shadow")).reason == failures.BUG
    assert "shadow" not in str(as_refusal(KeyError("/etc/shadow")))
