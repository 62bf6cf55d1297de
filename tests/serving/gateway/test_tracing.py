"""Traces over the wire: a caller's span, the gateway's under it, Triton's under those; and collectors that do harm."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from bundle import Bundle
from bundle.errors import OptionError, RequestRefused
from serving.gateway import failures
from serving.gateway.aio_client import AsyncFieldmarkClient
from serving.gateway.calls import with_trace
from serving.gateway.client import FieldmarkClient
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.server import Gateway
from serving.gateway.tracing import asked_for, begin_trace, collector_address
from serving.triton.command import collector_url
from serving.triton.server import TritonServer
from tests.serving.gateway.collector import Collector, collecting
from tests.serving.gateway.gateway_thread import encode, metric, running, stub_of
from tests.serving.triton.played import PlayedTriton

GOOD = encode(np.full((40, 40, 3), 140, np.uint8))
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALL = "fieldmark.v1.Fieldmark/Classify"
STAGES = ("queue", "decode", "triton", "encode")


@pytest.fixture(scope="module", autouse=True)
def at_once() -> Iterator[None]:
    """Spans are sent a fifth of a second after they are made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        yield


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture(scope="module")
def traced(toy_bundle: Bundle, collector: Collector) -> Iterator[Gateway]:
    """A gateway that sends its traces to `collector`, before a real Triton that sends its own."""
    options: dict[str, Any] = {"bundle": toy_bundle, "otlp": collector.address, "probe_seconds": 0.3}
    with (
        TritonServer(toy_bundle, grpc_port=0, metrics_port=0, traces=collector.url) as server,
        running(server.grpc_url, **options) as gateway,
    ):
        yield gateway


def parent(trace: str, flags: str = "01") -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{trace}-{PARENT}-{flags}"), ("tracestate", "vendor=1"))


def ask(gateway: Gateway, trace: str, request: v1.ClassifyRequest | None = None, **arguments: Any) -> str:
    """The status of one call in a trace."""
    with stub_of(gateway) as stub:
        try:
            stub.Classify(request or v1.ClassifyRequest(image=GOOD), metadata=parent(trace), **arguments)
        except grpc.RpcError as problem:
            return str(problem.code().name)
    return "OK"


@pytest.mark.triton
def test_one_trace_from_the_caller_to_triton(traced: Gateway, collector: Collector, toy_bundle: Bundle) -> None:
    traces = iter(f"{number:032x}" for number in range(1, 100))

    def call_once() -> str:
        trace = next(traces)
        asked = v1.ClassifyRequest(image=GOOD, network="attention", explain=True)
        assert ask(traced, trace, asked) == "OK"
        return trace

    trace = collector.insist(call_once)
    (call,) = collector.wait_for(CALL, where=lambda span: span.trace == trace)
    assert (call.parent, call.service, call.failed) == (PARENT, "fieldmark-gateway", False)
    found = {name: value for name, value in call.attributes.items() if name.startswith("fieldmark.")}
    assert found.pop("fieldmark.request_id")
    assert 0 < found.pop("fieldmark.p_value") <= 1
    assert found == {
        "fieldmark.network": "attention",
        "fieldmark.bundle_id": toy_bundle.bundle_id,
        "fieldmark.bytes": len(GOOD),
        "fieldmark.flagged": found["fieldmark.flagged"],
    }
    assert (call.attributes["rpc.method"], call.attributes["rpc.grpc.status_code"]) == ("Classify", 0)
    stages = [span for span in collector.spans if span.parent == call.id]
    assert sorted(span.name for span in stages) == sorted(STAGES)
    slack = 5_000_000  # nanoseconds: stages are measured with another clock
    assert all(call.began - slack <= span.began <= span.ended <= call.ended + slack for span in stages)
    began = {span.name: span.began for span in stages}
    assert sorted(STAGES, key=lambda name: began[name]) == list(STAGES)
    (request,) = collector.wait_for("InferRequest", where=lambda span: span.trace == trace)
    (stage,) = [span for span in stages if span.name == "triton"]
    assert (request.service, request.parent) == ("triton", stage.id)
    (computed,) = collector.wait_for("attention", where=lambda span: span.trace == trace)
    assert (computed.service, computed.parent) == ("triton", request.id)
    known = {span.trace for span in collector.spans if span.service == "fieldmark-gateway"}
    assert {span.trace for span in collector.named("InferRequest")} <= known, "and of probes Triton tells nothing"


@pytest.mark.triton
def test_what_a_caller_does_not_sample_is_not_sent(traced: Gateway, collector: Collector) -> None:
    hidden, later = "a" * 32, iter(f"b{number:031x}" for number in range(100))
    with stub_of(traced) as stub:
        stub.Classify(v1.ClassifyRequest(image=GOOD), metadata=parent(hidden, "00"))

    def call_once() -> str:
        trace = next(later)
        assert ask(traced, trace) == "OK"
        return trace

    shown = collector.insist(call_once)  # what Triton had to tell of the other, it has told by then
    collector.wait_for(CALL, where=lambda span: span.trace == shown)
    assert hidden not in {span.trace for span in collector.spans}


@pytest.mark.triton
@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", "?" * 200])
def test_a_context_that_is_none_begins_a_trace(traced: Gateway, collector: Collector, header: str) -> None:
    with stub_of(traced) as stub:
        mine = stub.Classify(v1.ClassifyRequest(image=GOOD), metadata=(("traceparent", header),)).request_id
    (call,) = collector.wait_for(CALL, where=lambda span: span.attributes["fieldmark.request_id"] == mine)
    assert call.parent == ""
    assert int(call.trace, 16)


FAILURES = {
    "IMAGE_REFUSED": (v1.ClassifyRequest(image=b"no image"), "INVALID_ARGUMENT", False, {"queue", "decode"}),
    "IMAGE_EMPTY": (v1.ClassifyRequest(), "INVALID_ARGUMENT", False, set()),
    "NETWORK_UNKNOWN": (v1.ClassifyRequest(image=GOOD, network="none"), "NOT_FOUND", False, set()),
}


@pytest.mark.triton
@pytest.mark.parametrize("reason", FAILURES)
def test_a_refusal_is_a_span_too(traced: Gateway, collector: Collector, reason: str) -> None:
    request, status, failed, stages = FAILURES[reason]
    trace = f"{list(FAILURES).index(reason) + 3}" * 32
    assert ask(traced, trace, request) == status
    (call,) = collector.wait_for(CALL, where=lambda span: span.trace == trace)
    assert call.attributes["fieldmark.reason"] == reason
    assert call.attributes["rpc.grpc.status_code"] == grpc.StatusCode[status].value[0]
    assert call.failed is failed  # the caller's fault is none of the service
    assert {span.name for span in collector.spans if span.parent == call.id} == stages


@pytest.mark.triton
def test_requests_of_a_stream_are_below_it(traced: Gateway, collector: Collector) -> None:
    requests = [v1.ClassifyStreamRequest(id=str(n), request=v1.ClassifyRequest(image=GOOD)) for n in range(3)]
    trace = "9" * 32
    with stub_of(traced) as stub:
        assert len(list(stub.ClassifyStream(iter(requests), metadata=parent(trace)))) == 3
    (stream,) = collector.wait_for("fieldmark.v1.Fieldmark/ClassifyStream", where=lambda span: span.trace == trace)
    each = collector.wait_for(
        "fieldmark.v1.Fieldmark/ClassifyStream/request", 3, where=lambda span: span.trace == trace
    )
    assert {span.parent for span in each} == {stream.id}
    assert stream.parent == PARENT


@pytest.mark.triton
def test_no_span_holds_an_image_or_a_key(traced: Gateway, collector: Collector) -> None:
    mark, trace = b"no image but 7h15-m4rk", "8" * 32
    with stub_of(traced) as stub, pytest.raises(grpc.RpcError):
        stub.Classify(v1.ClassifyRequest(image=mark), metadata=(*parent(trace), ("x-api-key", "53cr3t-k3y")))
    collector.wait_for(CALL, where=lambda span: span.trace == trace)
    sent_bytes = b"".join(collector.raw)
    assert b"7h15-m4rk" not in sent_bytes
    assert b"53cr3t-k3y" not in sent_bytes
    assert b"IMAGE_REFUSED" in sent_bytes


# The caller's side


def ask_sync(url: str) -> None:
    with FieldmarkClient(url) as client:
        client.classify(GOOD)
        client.describe()
        assert [each.id for each in client.classify_stream([("one", GOOD)])] == ["one"]


def ask_async(url: str) -> None:
    async def images() -> Any:
        yield "one", GOOD

    async def call() -> None:
        async with AsyncFieldmarkClient(url) as client:
            await client.classify(GOOD)
            await client.describe()
            assert [each.id async for each in client.classify_stream(images())] == ["one"]

    asyncio.run(call())


@pytest.mark.triton
@pytest.mark.parametrize("ask_all", [ask_sync, ask_async])
def test_a_client_passes_on_the_span_that_the_application_is_in(
    traced: Gateway, collector: Collector, ask_all: Callable[[str], None]
) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    with TracerProvider().get_tracer("application").start_as_current_span("job") as job:
        ask_all(traced.url)
    context = job.get_span_context()
    for name in (CALL, "fieldmark.v1.Fieldmark/Describe", "fieldmark.v1.Fieldmark/ClassifyStream"):
        (span,) = collector.wait_for(name, where=lambda span: span.trace == f"{context.trace_id:032x}")
        assert span.parent == f"{context.span_id:016x}"


def test_a_client_outside_a_span_sends_nothing_more() -> None:
    assert with_trace((("x-api-key", "k"),)) == (("x-api-key", "k"),)


def test_neither_a_client_nor_a_gateway_without_traces_loads_opentelemetry() -> None:
    script = """
import sys
import serving.gateway.aio_client, serving.gateway.client, serving.gateway.server, serving.upkeep.cli
from serving.gateway.calls import with_trace
from serving.gateway.tracing import begin_trace, open_tracing
assert with_trace(()) == ()
assert open_tracing(None, {}, made=print, sent=print) is None
begin_trace(None, "Classify", {}).end("OK", {})
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "[]\n"


def test_a_gateway_without_traces_knows_the_callers(played_url: str) -> None:
    trace = begin_trace(None, "Classify", dict(parent(TRACE)))
    assert trace.trace_id == TRACE
    assert begin_trace(None, "Classify", {"traceparent": "nonsense"}).trace_id == ""
    assert begin_trace(None, "Classify", {}).within("x").trace_id == ""


# Collectors that do harm


def answers(gateway: Gateway, count: int) -> int:
    with stub_of(gateway) as stub:
        return sum(bool(stub.Classify(v1.ClassifyRequest(image=GOOD), timeout=10).network) for _ in range(count))


def test_a_collector_that_is_not_there(played_url: str) -> None:
    with running(played_url, otlp="127.0.0.1:1") as gateway:
        assert answers(gateway, 20) == 20
        assert metric(gateway, "spans_total", outcome="made") == 20 * 5
        assert metric(gateway, "spans_total", outcome="sent") == 0


def test_a_collector_that_takes_connections_and_says_nothing(played_url: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        running(played_url, otlp=f"127.0.0.1:{silent.getsockname()[1]}") as gateway,
    ):
        assert answers(gateway, 20) == 20


def test_a_collector_that_is_slow_costs_spans(played_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    released = threading.Event()
    with collecting() as slow:
        slow.before = lambda context: released.wait(30)
        with running(played_url, otlp=slow.address) as gateway:
            assert answers(gateway, 30) == 30
            assert metric(gateway, "spans_total", outcome="sent") == 0
            released.set()
    assert 0 < len(slow.spans) <= 8 + 2 * 4


def test_a_collector_that_refuses(played_url: str) -> None:
    with collecting() as refusing:
        refusing.before = lambda context: context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")
        with running(played_url, otlp=refusing.address) as gateway:
            assert answers(gateway, 5) == 5


def test_spans_are_sent_before_the_end(played_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    with collecting() as last:
        with running(played_url, otlp=last.address) as gateway:
            assert answers(gateway, 3) == 3
            assert last.spans == []
        assert len(last.named(CALL)) == 3
        assert metric(gateway, "spans_total", outcome="sent") == 3 * 5


@pytest.mark.triton
def test_a_collector_of_tritons_that_is_not_there_or_says_nothing(toy_bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        with (
            TritonServer(toy_bundle, grpc_port=0, metrics_port=0, traces=url) as server,
            running(server.grpc_url, otlp="127.0.0.1:1") as gateway,
        ):
            assert answers(gateway, 50) == 50


# How they are asked for


def test_variables_ask_for_traces(played_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as named:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{named.address}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "birds")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        with running(played_url) as gateway:
            assert ask(gateway, TRACE) == "OK"
            assert answers(gateway, 1) == 1  # of no trace, and not sampled
        assert [(span.trace, span.service) for span in named.named(CALL)] == [(TRACE, "birds")]


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:1"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:1"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:1"}, False),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:1"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:1"}, False),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:1",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            },
            True,
        ),
    ],
)
def test_which_variables_ask_for_traces(variables: dict[str, str], asked: bool) -> None:
    assert asked_for(variables) is asked


def test_a_collector_that_wants_another_protocol() -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    with pytest.raises(OptionError, match="over gRPC alone"):
        asked_for(variables)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:4317", "http://localhost:4317"),
        ("http://[::1]:4317", "http://[::1]:4317"),
        ("https://collector.example:443/", "https://collector.example:443/"),
    ],
)
def test_addresses_of_a_collector(text: str, url: str) -> None:
    assert collector_address(text) == url


@pytest.mark.hostile
@pytest.mark.parametrize(
    "text", ["collector", "a b:1", "ftp://x:1", "http://x:99999", "http://me:pw@x:1", "x:1/v1", ":1"]
)
def test_what_is_no_address_of_a_collector(played_url: str, text: str) -> None:
    with pytest.raises(OptionError, match="is not the address of a collector"), running(played_url, otlp=text):
        pass


@pytest.mark.hostile
@pytest.mark.parametrize(
    "text",
    ["localhost:4318", "http://", "http://x:99999", "http://a b/", "http://me:pw@x/", "grpc://x", "http://x/a,b"],
)
def test_what_is_no_url_for_triton(text: str) -> None:
    with pytest.raises(OptionError, match="is not the URL of a collector"):
        collector_url(text)


@pytest.mark.hostile
def test_variables_that_make_no_sense(played_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
    with pytest.raises(OptionError, match="traces cannot be sent like this"), running(played_url, otlp="x:1"):
        pass


def test_a_failure_of_the_service_marks_its_span(played: PlayedTriton, played_url: str) -> None:
    def fail(context: Any) -> None:
        if "traceparent" in dict(context.invocation_metadata()):  # and no probe
            context.abort(grpc.StatusCode.INTERNAL, "no")

    with collecting() as collector:
        with running(played_url, otlp=collector.address) as gateway, FieldmarkClient(gateway.url) as client:
            played.before = fail
            with pytest.raises(RequestRefused) as problem:
                client.classify(GOOD)
            assert problem.value.reason == failures.NETWORK_FAILED
        (call,) = collector.named(CALL)
        (stage,) = collector.named("triton")
    assert (call.failed, stage.failed) == (True, True)
    assert call.attributes["fieldmark.reason"] == failures.NETWORK_FAILED
