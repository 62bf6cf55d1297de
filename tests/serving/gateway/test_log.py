"""The log: every line is a JSON object, can be found by request and trace, and shows neither an image nor a key."""

import base64
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving.gateway import service as service_module
from serving.gateway.failures import DETAILS, read_details
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.journal import MAX_TEXT, Journal, shorten
from serving.gateway.server import Gateway
from tests.serving.gateway.gateway_thread import encode, running, stub_of
from tests.serving.triton.played import PlayedTriton

ROOT = Path(__file__).parents[3]
KEY = "53cr3t-k3y-0f-4nn"
MARK = b"m4rk\x00\xff\x10\x80m4rk"  # what an image of ours holds, and no line of a log may
GOOD = encode(np.full((40, 40, 3), 140, np.uint8)) + MARK
TRACE = "0af7651916cd43dd8448eb211c80319c"
SENT = (("x-api-key", KEY), ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"), ("authorization", f"Bearer {KEY}"))
SHOWN = (KEY, "m4rk", MARK.hex(), base64.b64encode(MARK).decode()[:12])


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def served(played_url: str, log: io.StringIO) -> Iterator[Gateway]:
    options: dict[str, Any] = {"image_bytes": 100_000, "timeout": 2.0, "probe_seconds": 30.0}
    with running(played_url, log=log, **options) as gateway:
        yield gateway


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    """What was logged, every line of it; nothing in it is an image's or a key."""
    text = log.getvalue()
    assert not any(secret in text for secret in SHOWN)
    found = [json.loads(line) for line in text.splitlines()]
    assert all(line["time"] and line["event"] for line in found)
    return found


def requests(log: io.StringIO, count: int) -> list[dict[str, Any]]:
    """The lines of requests, once there are so many: they are written a moment after the answer."""
    deadline = time.monotonic() + 20
    while len(found := [line for line in lines(log) if line["event"] == "request"]) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def ask(gateway: Gateway, request_id: str, **fields: Any) -> str:
    """The reason for which a call fails, or its status."""
    request = v1.ClassifyRequest(**{"image": GOOD, **fields})
    with stub_of(gateway) as stub:
        try:
            stub.Classify(request, metadata=(*SENT, ("x-request-id", request_id)))
        except grpc.RpcError as problem:
            details = dict(problem.trailing_metadata() or ()).get(DETAILS)
            return read_details(details, "").reason if details else str(problem.code().name)
    return "OK"


def test_failures_show_neither_image_nor_key(
    served: Gateway, log: io.StringIO, played: PlayedTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for name, fields in {
        "good": {},
        "explained": {"explain": True},
        "none": {"image": b""},
        "no image": {"image": MARK * 9},
        "cut": {"image": GOOD[:60] + MARK},
        "large": {"image": MARK * 20_000},
        "network": {"network": KEY[:3] + "-unknown"},
        "alpha": {"alpha": 1e-9},
        "top": {"top_k": 99},
    }.items():
        found[name] = ask(served, name, **fields)
    played.change = lambda outputs: {name: value * np.nan for name, value in outputs.items() if value.dtype != bool}
    found["nonsense"] = ask(served, "nonsense")
    played.change = lambda outputs: outputs
    played.before = lambda context: context.abort(grpc.StatusCode.INTERNAL, f"words with {KEY} and {MARK!r}")
    found["triton fails"] = ask(served, "triton fails")
    played.before = lambda context: time.sleep(3)
    found["late"] = ask(served, "late")
    played.before = lambda context: None

    def break_down(*_: Any) -> Any:
        raise ValueError(f"cannot make sense of {MARK + b'quo' + bytes([39]) + b'te'!r} or of {bytearray(MARK)!r}")

    monkeypatch.setattr(service_module, "make_answer", break_down)
    found["bug"] = ask(served, "bug")
    with stub_of(served) as stub, pytest.raises(grpc.RpcError):
        sent = (*SENT, ("x-request-id", "stream"))
        asked = v1.ClassifyStreamRequest(id=KEY, request=v1.ClassifyRequest(image=GOOD))
        for answer in stub.ClassifyStream(iter([asked]), metadata=sent):
            assert answer.error.reason == "BUG"
        stub.Classify(v1.ClassifyRequest(image=GOOD), metadata=sent, timeout=0.0001)
    assert found == {
        "good": "OK",
        "explained": "OK",
        "none": "IMAGE_EMPTY",
        "no image": "IMAGE_REFUSED",
        "cut": "IMAGE_REFUSED",
        "large": "IMAGE_TOO_LARGE",
        "network": "NETWORK_UNKNOWN",
        "alpha": "ALPHA_OUT_OF_RANGE",
        "top": "TOP_K_OUT_OF_RANGE",
        "nonsense": "NETWORK_FAILED",
        "triton fails": "NETWORK_FAILED",
        "late": "TOO_LATE",
        "bug": "BUG",
    }
    told = {line["request_id"]: line for line in requests(log, len(found) + 2)}  # a stream and its request
    assert {name: told[name]["reason"] or "OK" for name in found} == found
    assert {line["trace_id"] for line in told.values()} == {TRACE}
    assert told["bug"]["bug"].startswith("ValueError in break_down, line ")
    assert "cannot make sense of b'...'" in told["bug"]["bug"]


def test_a_message_that_is_none(served: Gateway, log: io.StringIO) -> None:
    with grpc.insecure_channel(served.url) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/fieldmark.v1.Fieldmark/Classify")(b"\xff" + MARK, metadata=SENT)
    (line,) = requests(log, 1)
    assert (line["reason"], line["trace_id"]) == ("MESSAGE_MALFORMED", TRACE)


def test_a_call_outside_a_trace_has_none_in_the_log(served: Gateway, log: io.StringIO) -> None:
    with stub_of(served) as stub:
        stub.Describe(v1.DescribeRequest())
    (line,) = requests(log, 1)
    assert "trace_id" not in line


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("plain", "plain"),
        ("x" * 300, "x" * MAX_TEXT),
        (f"{MARK!r} is none", "b'...' is none"),
        (f"{MARK!r}"[:-3], "b'...'"),  # cut by somebody else
        (f"""{b"it's"!r} and {b'"'!r}""", "b'...' and b'...'"),
        (f"({bytearray(MARK)!r})", "(bytearray(b'...'))"),
        ("tab'le 'x'", "tab'le 'x'"),
    ],
)
def test_bytes_are_left_out_of_texts(text: str, short: str) -> None:
    assert shorten(text) == short


def test_what_libraries_log_becomes_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    journal = Journal(stream)
    with journal.libraries():
        logging.getLogger("some.library").warning("took %r", MARK)
        logging.getLogger("some.library").info("not this")
        try:
            raise ValueError(KEY)
        except ValueError:
            logging.getLogger("other").exception("failed")
    journal.close()
    found = lines(stream)
    assert [(line["library"], line["level"], line["text"]) for line in found] == [
        ("some.library", "warning", "took b'...'"),
        ("other", "error", "failed"),
    ]
    assert found[1]["exception"] == "ValueError"
    assert capfd.readouterr().err == ""


@pytest.mark.triton
def test_a_gateway_as_a_process_writes_nothing_but_json(toy_server: Any) -> None:
    """Also what OpenTelemetry has to say of a collector that is not there."""
    free = ("--port", "0", "--metrics-port", "0", "--json", "--otlp", "127.0.0.1:1")
    process = subprocess.Popen(
        [sys.executable, "-m", "fieldmark", "gateway", toy_server.grpc_url, *free],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"},
    )
    try:
        url = json.loads(process.stdout.readline())["url"] if process.stdout else ""
        with grpc.insecure_channel(url) as channel:
            call = channel.unary_unary("/fieldmark.v1.Fieldmark/Classify")
            call(v1.ClassifyRequest(image=GOOD).SerializeToString(), metadata=SENT)
        time.sleep(2.5)  # until the exporter gives up
    finally:
        process.send_signal(signal.SIGTERM)
        _, text = process.communicate(timeout=30)
    found = lines(io.StringIO(text))
    assert [line["trace_id"] for line in found if line["event"] == "request"] == [TRACE]
    assert any(line["library"].startswith("opentelemetry.") for line in found if line["event"] == "library")
