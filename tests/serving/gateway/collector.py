"""A collector of traces: OTLP over gRPC, as the gateway speaks it, and over HTTP with JSON, as Triton does."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True, kw_only=True)
class Span:
    """One span as it came over the wire; ids in hexadecimal digits, times in nanoseconds."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    failed: bool
    attributes: dict[str, Any]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span it gets. `before` is called with each request of the gateway, and may be slow or fail."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.raw: list[bytes] = []
        self.before: Callable[[Any], object] = lambda context: None
        self.address = self.url = ""  # HOST:PORT of gRPC, and the URL for HTTP

    def Export(self, request: Any, context: Any) -> Any:
        self.before(context)
        self.raw.append(request.SerializeToString())
        for resource in request.resource_spans:
            service = _attributes(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.spans.extend(_span(service, each) for each in scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def take(self, text: bytes) -> None:
        """Spans as JSON."""
        for resource in json.loads(text)["resourceSpans"]:
            named = {each["key"]: each["value"] for each in resource["resource"]["attributes"]}
            for scope in resource["scopeSpans"]:
                for each in scope["spans"]:
                    self.spans.append(
                        Span(
                            service=named["service.name"]["stringValue"],
                            name=each["name"],
                            trace=each["traceId"],
                            id=each["spanId"],
                            parent=each.get("parentSpanId", ""),
                            began=int(each["startTimeUnixNano"]),
                            ended=int(each["endTimeUnixNano"]),
                            failed=False,
                            attributes={},
                        )
                    )

    def named(self, name: str) -> list[Span]:
        """Those of this name so far."""
        return [span for span in self.spans if span.name == name]

    def wait_for(
        self, name: str, count: int = 1, *, where: Callable[[Span], bool] = lambda span: True, seconds: float = 30.0
    ) -> list[Span]:
        """Those of this name and of `where`, once there are so many; they come in batches, after their calls."""
        deadline = time.monotonic() + seconds
        while len(found := [span for span in self.named(name) if where(span)]) < count:
            if time.monotonic() > deadline:
                pytest.fail(f"no such span {name}; there are {[span.name for span in self.spans]}")
            time.sleep(0.05)
        return found

    def insist(self, ask: Callable[[], str]) -> str:
        """`ask`, which makes a call and returns its trace, until Triton has told of one: its exporter tries once, and
        on a busy machine that may be too late."""
        for _ in range(10):
            trace, deadline = ask(), time.monotonic() + 10
            while time.monotonic() < deadline:
                if {"InferRequest", "compute"} <= {span.name for span in self.spans if span.trace == trace}:
                    return trace
                time.sleep(0.05)
        pytest.fail(f"Triton tells nothing; there are {[span.name for span in self.spans]}")


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on free ports."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    collector.url = f"http://127.0.0.1:{http.server_port}/v1/traces"
    try:
        yield collector
    finally:
        http.shutdown()
        http.server_close()
        server.stop(0).wait()


def _span(service: str, span: Any) -> Span:
    return Span(
        service=service,
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        began=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
        attributes=_attributes(span.attributes),
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in pairs}
