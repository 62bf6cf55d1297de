"""fieldmark.v1: checks a request, waits for its turn, decodes beside the event loop, asks Triton, answers.

Each call ends in an answer or in one of the statuses of `serving.gateway.failures`; whatever else goes wrong inside is
BUG to the caller and a line in the log.
"""

import asyncio
import dataclasses
import math
import time
import traceback
import uuid
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import numpy as np
import numpy.typing as npt

from bundle import ImageSpec, Manifest
from bundle.errors import ImageError, RequestRefused
from bundle.image import FORMATS
from serving.envoy.keys import KEY_NAME
from serving.gateway import failures
from serving.gateway.admission import Admission, Memory
from serving.gateway.answer import LookUp, Stages, make_answer, make_explanation
from serving.gateway.asked import Asked, check_request, smallest_alpha
from serving.gateway.behind import Behind
from serving.gateway.drift import DriftMeters
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.handlers import well_formed
from serving.gateway.journal import Journal
from serving.gateway.metrics import STAGES, Metrics
from serving.gateway.options import GatewayOptions
from serving.gateway.pace import Pace
from serving.gateway.retention import Retention
from serving.gateway.shadow import Seen, Shadow
from serving.gateway.stream import ONE, ClassifyStream
from serving.gateway.tracing import (
    DECODE,
    ENCODE,
    QUEUE,
    TRACEPARENT,
    TRACESTATE,
    TRITON,
    Trace,
    Tracing,
    begin_trace,
)

REQUEST_ID = "x-request-id"
_READ = (REQUEST_ID, KEY_NAME, TRACEPARENT, TRACESTATE)  # of what a caller's metadata holds, nothing else
_MAX_NAME = 128  # characters
Result = TypeVar("Result")
_SHED = (failures.OVERLOADED, failures.TOO_MANY_STREAMS, failures.NETWORK_UNAVAILABLE, failures.STOPPING)


@dataclass(frozen=True, kw_only=True)
class Served:
    """What is behind the gateway now. `image` has the gateway's limits where these are the narrower ones."""

    manifest: Manifest
    image: ImageSpec
    look_up: LookUp
    behind: Behind


@dataclass(kw_only=True)
class Call:
    """One request on its way: who sent it, until when (seconds of the monotonic clock), and what became of it."""

    method: str
    request_id: str
    key_name: str
    arrived: float
    deadline: float
    trace: Trace
    network: str = ""
    image: bytes = b""
    stages: Stages = field(default_factory=Stages)

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


class FieldmarkService:
    """The servicer. `serve` says what is behind it, and again whenever that changes."""

    def __init__(
        self,
        options: GatewayOptions,
        *,
        metrics: Metrics,
        journal: Journal,
        retention: Retention,
        tracing: Tracing | None = None,
    ) -> None:
        self.options, self.tracing = options, tracing
        self.metrics, self.journal, self.retention = metrics, journal, retention
        self.drift = DriftMeters(metrics, journal)
        self.shadow: Shadow | None = None
        self.pace = Pace(options.rate, options.burst)
        self.stopping = asyncio.Event()
        self.open_streams = self.stalled_streams = 0
        self.stream_memory = Memory(options.queue_bytes)
        for reason in _SHED:  # an alert must see the first one too: that takes a 0 before it
            metrics.shed.labels(reason)
        for method in ("Classify", ONE):
            metrics.requests.labels(method, failures.FAILURES[failures.BUG].code, failures.BUG)
        metrics.streams.set_function(lambda: self.open_streams)
        metrics.stalled_streams.set_function(lambda: self.stalled_streams)
        self._served: Served | None = None
        self.admissions: dict[str, Admission] = {}
        self._decoders = ThreadPoolExecutor(options.workers, thread_name_prefix="decode")

    def serve(self, served: Served) -> None:
        """Answer with this bundle from now on; requests in work end with the one that they began with."""
        limits = dataclasses.replace(
            served.image,
            max_bytes=min(served.image.max_bytes, self.options.image_bytes),
            max_pixels=min(served.image.max_pixels, self.options.pixels),
        )
        for network in served.manifest.networks:
            if network in self.admissions:
                continue
            # Each network has a queue of its own, so that one which hangs does not take the places of the other.
            admission = self.admissions[network] = Admission(
                concurrency=self.options.concurrency,
                queue_size=self.options.queue_size,
                queue_bytes=self.options.queue_bytes,
            )
            self.metrics.in_flight.labels(network).set_function(lambda each=admission: each.working)
            self.metrics.waiting.labels(network).set_function(lambda each=admission: each.waiting)
        self._served = dataclasses.replace(served, image=limits)

    def close(self) -> None:
        """Let go of the decoders; what they decode now is not waited for."""
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def Classify(self, request: v1.ClassifyRequest, context: Any) -> v1.ClassifyResponse:
        """One image, one answer."""
        call = self.begin("Classify", context)
        return await self._guarded(self.classify(request, call), call, context)

    async def ClassifyStream(self, _: Any, context: Any) -> None:
        """Many images, many answers."""
        call = self.begin("ClassifyStream", context, longest=math.inf)
        await self._guarded(ClassifyStream(self, call, context).run(), call, context)

    async def Describe(self, request: v1.DescribeRequest, context: Any) -> v1.DescribeResponse:
        """What is served, and its limits."""
        call = self.begin("Describe", context)
        return await self._guarded(self._describe(request), call, context)

    def begin(self, method: str, context: Any, *, longest: float | None = None, within: Call | None = None) -> Call:
        """A call's record; it may take `longest` seconds, if its caller sets no earlier deadline.

        An id that is too long, or not plain text, is replaced by one of our own. `within` is the stream of which this
        is one request.
        """
        sent = {key: value for key, value in context.invocation_metadata() or () if key in _READ}
        now, remaining = time.monotonic(), context.time_remaining()  # None: no deadline
        return Call(
            method=method,
            request_id=within.request_id if within else _plain(sent.get(REQUEST_ID)) or uuid.uuid4().hex,
            key_name=_plain(sent.get(KEY_NAME)),
            arrived=now,
            deadline=now
            + min(self.options.timeout if longest is None else longest, math.inf if remaining is None else remaining),
            trace=within.trace.within(method) if within else begin_trace(self.tracing, method, sent),
        )

    async def classify(self, request: v1.ClassifyRequest, call: Call, *, patient: bool = False) -> v1.ClassifyResponse:
        """The answer to one request; raises RequestRefused. `patient` is for one of a stream (see Admission)."""
        served, request = self._ready(), well_formed(request)
        if not patient:
            self.pace.take(call.key_name, single=True)
        call.image = request.image
        asked = check_request(request, served.manifest, served.image.max_bytes)
        call.network = asked.network
        if not served.behind.prober.serving(asked.network):
            raise RequestRefused(
                f"the network {asked.network!r} does not answer at the moment",
                hint="Try again in a moment.",
                reason=failures.NETWORK_UNAVAILABLE,
                retry_after=served.behind.prober.seconds,
            )
        with served.behind.used():
            return await self._answer(served, request, asked, call, patient=patient)

    async def _answer(
        self, served: Served, request: v1.ClassifyRequest, asked: Asked, call: Call, *, patient: bool
    ) -> v1.ClassifyResponse:
        admission = self.admissions[asked.network]
        try:
            async with asyncio.timeout(call.left), admission.enter(len(call.image), call.left, patient=patient):
                pixels = await self._beside(_decode, served.image, request.image, call)
                began = time.monotonic()
                with call.trace.stage(TRITON) as headers:
                    outputs = await served.behind.triton.infer(
                        pixels,
                        served.manifest,
                        asked.network,
                        timeout=max(call.left, 0.001),
                        explained=asked.explain,
                        headers=headers,
                    )
                call.stages.inference = time.monotonic() - began
        except TimeoutError:
            raise RequestRefused("the request was not answered within its time", reason=failures.TOO_LATE) from None
        served.behind.prober.heard(asked.network)
        with call.trace.stage(ENCODE):
            answer = make_answer(outputs, served.manifest, asked)
            if asked.explain:
                pictures = await self._beside(make_explanation, outputs, served.manifest, served.look_up)
                answer.explanation.CopyFrom(pictures)
        call.stages.total = time.monotonic() - call.arrived
        answer.request_id = call.request_id
        answer.times.CopyFrom(call.stages.message())
        self._count(answer)
        if self.shadow is not None:
            seen = Seen(data=request.image, pixels=pixels, image=served.image, asked=asked, answer=answer)
            self.shadow.see(seen, call, busy=admission.waiting > 0)
        return answer

    def ended(self, call: Call, problem: BaseException | None, answer: Any = None) -> RequestRefused | None:
        """Count and log the end of a call or of one request of a stream; returns what its caller is told instead."""
        refused = failures.as_refusal(problem) if isinstance(problem, Exception) else None
        code, reason = "OK", ""
        if refused is not None:
            code, reason = failures.FAILURES[refused.reason].code, refused.reason
        elif problem is not None:
            code = "DEADLINE_EXCEEDED" if call.left <= 0 else "CANCELLED"
        self.metrics.requests.labels(call.method, code, reason).inc()
        if reason in _SHED and call.stages.decode == 0:
            self.metrics.shed.labels(reason).inc()
        facts: dict[str, Any] = {"network": call.network, "bytes": len(call.image)}
        if isinstance(answer, v1.ClassifyResponse):
            facts |= {"p_value": round(answer.adversarial.p_value, 6), "flagged": answer.adversarial.flagged}
        self._end_trace(call, code, {"reason": reason, "request_id": call.request_id, **facts}, answer)
        if call.trace.trace_id:
            facts["trace_id"] = call.trace.trace_id
        if reason == failures.BUG and problem is not None:
            place = traceback.extract_tb(problem.__traceback__)[-1]
            facts["bug"] = f"{type(problem).__name__} in {place.name}, line {place.lineno}: {problem}"
        self.journal.write(
            "request",
            method=call.method,
            code=code,
            reason=reason,
            request_id=call.request_id,
            key_name=call.key_name,
            seconds=round(time.monotonic() - call.arrived, 6),
            **facts,
        )
        self.retention.ended(call, code, reason, answer)
        return refused

    async def _guarded(self, work: Awaitable[Result], call: Call, context: Any) -> Result:
        """Await the work of a call; every failure of it becomes its documented status."""
        try:
            answer = await work
        except BaseException as problem:
            refused = self.ended(call, problem)
            if refused is None:  # cancelled, by its caller or by its deadline
                raise
            data = failures.details(refused, {"request_id": call.request_id})
            code = grpc.StatusCode[failures.FAILURES[refused.reason].code]
            await context.abort(code, failures.sentence(refused), ((failures.DETAILS, data),))
        self.ended(call, None, answer)
        return answer

    def _end_trace(self, call: Call, code: str, facts: dict[str, Any], answer: Any) -> None:
        """What the trace of a call is told at its end: never more than the log."""
        if isinstance(answer, v1.ClassifyResponse | v1.DescribeResponse):
            facts["bundle_id"] = answer.bundle_id
        if call.stages.decode:
            call.trace.past(QUEUE, 0.0, call.stages.queue)
            call.trace.past(DECODE, call.stages.queue, call.stages.decode)
        call.trace.end(code, facts)

    async def _beside(self, function: Any, *arguments: Any) -> Any:
        """Run something in a decoder's thread, so that the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *arguments)

    def _ready(self) -> Served:
        if self.stopping.is_set() or self._served is None:
            raise failures.stopping()
        return self._served

    def _count(self, answer: v1.ClassifyResponse) -> None:
        for stage in STAGES:
            duration = getattr(answer.times, stage)
            self.metrics.seconds.labels(stage).observe(duration.seconds + duration.nanos / 1e9)
        self.metrics.p_value.labels(answer.network).observe(answer.adversarial.p_value)
        self.metrics.alpha.labels(answer.network).inc(answer.adversarial.alpha)
        self.metrics.flagged.labels(answer.network).inc(int(answer.adversarial.flagged))
        self.drift.see(answer)

    async def _describe(self, request: v1.DescribeRequest) -> v1.DescribeResponse:
        well_formed(request)
        served = self._ready()
        manifest, image = served.manifest, served.image
        first = [manifest.main_network, *(name for name in manifest.networks if name != manifest.main_network)]
        networks = [
            v1.Network(
                name=name,
                alpha=manifest.networks[name].detector.alpha,
                smallest_alpha=smallest_alpha(manifest.networks[name]),
                layers=manifest.networks[name].detector.columns,
                serving=served.behind.prober.serving(name),
            )
            for name in first
        ]
        return v1.DescribeResponse(
            name=manifest.name,
            bundle_id=manifest.bundle_id,
            labels=manifest.labels,
            networks=networks,
            limits=v1.Limits(
                image_bytes=image.max_bytes,
                pixels=image.max_pixels,
                shortest_side=image.min_side,
                formats=FORMATS,
                stream_window=self.options.stream_window,
            ),
        )


def _decode(image: ImageSpec, data: bytes, call: Call) -> npt.NDArray[np.uint8]:
    """The pixels : (H, W, 3) uint8, as training decodes them; notes in `call` how long it took."""
    began = time.monotonic()
    call.stages.queue = began - call.arrived
    try:
        return image.decode(data)
    except ImageError as problem:
        raise failures.image_refused(problem) from None
    finally:
        call.stages.decode = time.monotonic() - began


def _plain(value: str | bytes | None) -> str:
    """A header's value if it is short, printable text; else nothing."""
    return value if isinstance(value, str) and len(value) <= _MAX_NAME and value.isprintable() else ""
