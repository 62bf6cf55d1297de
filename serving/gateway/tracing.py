"""Traces: one OpenTelemetry span for each call, under the caller's own, with a span for each stage below it.

    caller's span -> Classify -> queue, decode, triton, encode
                                               `-> Triton's own spans, where it makes some

A caller's context comes as W3C's `traceparent`, and goes on to Triton as such. Spans are sent to a collector, over OTLP
and gRPC, by a thread of their own from a bounded queue: a collector that is slow or gone costs spans and not answers.
Nothing of OpenTelemetry is imported unless traces are asked for. No span holds an image, a key or an exception's text.
"""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import grpc

from bundle.errors import MissingExtra, OptionError, first_line
from serving.gateway.handlers import SERVICE

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
QUEUE, DECODE, TRITON, ENCODE = "queue", "decode", "triton", "encode"  # stages, as their spans are called
NAME = "fieldmark-gateway"
FLUSH_SECONDS = 1.0  # at the end, for the spans that are not sent yet
Headers = tuple[tuple[str, str], ...]
Count = Callable[[int], object]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_OURS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")  # the service's fault


class Trace:
    """One call of which no spans are made. `trace_id` is the caller's, 32 hexadecimal digits, if he sent one."""

    def __init__(self, trace_id: str = "") -> None:
        self.trace_id = trace_id

    def within(self, method: str) -> "Trace":
        """That of one request of a stream, below the stream's."""
        return self

    def stage(self, name: str) -> contextlib.AbstractContextManager[Headers]:
        """Around a stage while it runs; gives what goes along to whoever is asked in it."""
        return contextlib.nullcontext(())

    def past(self, name: str, began: float, seconds: float) -> None:
        """A stage that is over: `began` is in seconds after the call's arrival."""

    def end(self, code: str, facts: Mapping[str, Any]) -> None:
        """The call has ended with a gRPC status code's name; `facts` are what is known of it."""


class _Recorded(Trace):
    """One call with its spans."""

    def __init__(self, tracing: "Tracing", method: str, parent: Any) -> None:
        self._tracing, self._began = tracing, time.time_ns()
        self._span = tracing.span(f"{SERVICE}/{method}", parent, "SERVER", self._began)
        self._span.set_attributes({"rpc.system": "grpc", "rpc.service": SERVICE, "rpc.method": method})
        self._context = tracing.below(self._span)
        super().__init__(f"{self._span.get_span_context().trace_id:032x}")

    def within(self, method: str) -> Trace:
        return _Recorded(self._tracing, method, self._context)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Headers]:
        span = self._tracing.span(name, self._context, "CLIENT" if name == TRITON else "INTERNAL")
        try:
            yield self._tracing.headers(span) if name == TRITON else ()
        except BaseException:
            self._tracing.fail(span, "")
            raise
        finally:
            self._tracing.finish(span)

    def past(self, name: str, began: float, seconds: float) -> None:
        start = self._began + int(1e9 * began)
        span = self._tracing.span(name, self._context, "INTERNAL", start)
        self._tracing.finish(span, start + int(1e9 * seconds))

    def end(self, code: str, facts: Mapping[str, Any]) -> None:
        for name, value in facts.items():
            if value != "":
                self._span.set_attribute(f"fieldmark.{name}", value)
        self._span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[code].value[0])
        if code in _OURS:
            self._tracing.fail(self._span, str(facts.get("reason", "")))
        self._tracing.finish(self._span)


class Tracing:
    """Makes spans and sends them. `made` and `sent` are called with a number of spans."""

    def __init__(self, exporter: Any, *, made: Count, sent: Count) -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api, self._context, self._made, self._exporter = trace, Context, made, exporter
        self._propagator = TraceContextTextMapPropagator()
        resource = Resource.create({SERVICE_NAME: NAME}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        counted: Any = _Counted(exporter, sent)
        self._provider.add_span_processor(BatchSpanProcessor(counted))
        self._tracer = self._provider.get_tracer("fieldmark")

    def begin(self, method: str, sent: Mapping[str, Any]) -> Trace:
        """The trace of a call with this metadata."""
        carrier = {name: sent[name] for name in (TRACEPARENT, TRACESTATE) if isinstance(sent.get(name), str)}
        return _Recorded(self, method, self._propagator.extract(carrier, self._context()))

    def close(self) -> None:
        """Send what is left, for at most `FLUSH_SECONDS`; blocks as long."""
        last = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        last.start()
        last.join(FLUSH_SECONDS)
        if last.is_alive():  # the collector does not answer: cut the connection, and the thread ends
            self._exporter.shutdown()

    def span(self, name: str, parent: Any, kind: str, start: int | None = None) -> Any:
        """A span that has begun, now or at `start`, in nanoseconds of the epoch."""
        return self._tracer.start_span(name, parent, kind=self._api.SpanKind[kind], start_time=start)

    def finish(self, span: Any, end: int | None = None) -> None:
        """End a span, now or at `end`."""
        if span.get_span_context().trace_flags.sampled:
            self._made(1)
        span.end(end)

    def fail(self, span: Any, why: str) -> None:
        """Mark a span as failed."""
        span.set_status(self._api.StatusCode.ERROR, why or None)

    def below(self, span: Any) -> Any:
        """The context in which a span is the parent."""
        return self._api.set_span_in_context(span)

    def headers(self, span: Any) -> Headers:
        """What tells Triton of a span; nothing of one that is not sampled: Triton traces whatever has a context."""
        if not span.get_span_context().trace_flags.sampled:
            return ()
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self.below(span))
        return tuple(carrier.items())


@dataclass(frozen=True)
class _Counted:
    """An exporter that counts what the collector has taken."""

    exporter: Any
    sent: Count

    def export(self, spans: Any) -> Any:
        result = self.exporter.export(spans)
        if result.name == "SUCCESS":
            self.sent(len(spans))
        return result

    def shutdown(self) -> None:
        self.exporter.shutdown()


def begin_trace(tracing: Tracing | None, method: str, sent: Mapping[str, Any]) -> Trace:
    """The trace of a call with this metadata."""
    if tracing is not None:
        return tracing.begin(method, sent)
    given = sent.get(TRACEPARENT, "")
    match = _TRACEPARENT.fullmatch(given) if isinstance(given, str) else None
    return Trace(match[1] if match else "")


def open_tracing(otlp: str | None, variables: Mapping[str, str], *, made: Count, sent: Count) -> Tracing | None:
    """Tracing to the collector at `otlp`, else to the one that OpenTelemetry's variables name, else None.

    The other variables (sampler, batches, TLS, headers, resource) are OpenTelemetry's matter. Raises OptionError.
    """
    if not otlp and not asked_for(variables):
        return None
    address = collector_address(otlp) if otlp else None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return Tracing(OTLPSpanExporter(endpoint=address), made=made, sent=sent)
    except ImportError as problem:
        raise MissingExtra.named("gateway", "fieldmark gateway --otlp", problem) from None
    except (ValueError, RuntimeError, OSError) as problem:
        raise OptionError(
            f"traces cannot be sent like this: {first_line(problem)}", hint="See the variables OTEL_... that are set."
        ) from None


def asked_for(variables: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables ask for traces over OTLP; raises OptionError for another way than gRPC."""
    if variables.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter, named = variables.get("OTEL_TRACES_EXPORTER", ""), any(variables.get(name) for name in _ENDPOINTS)
    if not (exporter == "otlp" or (exporter == "" and named)):
        return False
    for name in _PROTOCOLS:  # that of traces alone goes before that of everything
        if protocol := variables.get(name):
            if protocol == "grpc":
                break
            raise OptionError(
                f"{name} is {protocol!r}, and the gateway sends traces over gRPC alone",
                hint="Set it to grpc, or give --otlp HOST:PORT, or OTEL_TRACES_EXPORTER=none.",
            )
    return True


def collector_address(text: str) -> str:
    """The URL of a collector from HOST:PORT, http://HOST:PORT or, for TLS, https://HOST:PORT; raises OptionError."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port and parts.path in ("", "/")
        sound = sound and url.isprintable() and not re.search(r"[\s,@?#]", url)
    except ValueError:
        sound = False
    if not sound:
        raise OptionError(
            f"{text!r} is not the address of a collector", hint="Give HOST:PORT of its OTLP over gRPC: localhost:4317."
        )
    return url
