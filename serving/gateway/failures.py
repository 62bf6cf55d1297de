"""One documented status for every failure: what a request gets that gets no answer.

    request --limits--> queue --decode--> network --answer--> caller
       |                  |        |          |         |
    INVALID_ARGUMENT   RESOURCE_  INVALID_  UNAVAILABLE  ABORTED: a stream whose answers nobody reads
    NOT_FOUND          EXHAUSTED  ARGUMENT  INTERNAL
       `------------ DEADLINE_EXCEEDED: anywhere, once the caller's time is over ------------'

Each carries a google.rpc.ErrorInfo whose reason is a key of `FAILURES`; a wrong field a google.rpc.BadRequest; what is
worth another try a google.rpc.RetryInfo. docs/gateway.md has the same table, and a test compares the two.
"""

import math
from dataclasses import dataclass
from typing import Any

from bundle.errors import FieldmarkError, ImageError, RequestRefused, printable

DOMAIN = "fieldmark.v1"
DETAILS = "grpc-status-details-bin"
_MOST = 300  # characters of a sentence that goes over the wire

MESSAGE_MALFORMED = "MESSAGE_MALFORMED"
IMAGE_EMPTY = "IMAGE_EMPTY"
IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE"
IMAGE_REFUSED = "IMAGE_REFUSED"
TOP_K_OUT_OF_RANGE = "TOP_K_OUT_OF_RANGE"
ALPHA_OUT_OF_RANGE = "ALPHA_OUT_OF_RANGE"
ID_TOO_LONG = "ID_TOO_LONG"
NETWORK_UNKNOWN = "NETWORK_UNKNOWN"
OVERLOADED = "OVERLOADED"
TOO_MANY_STREAMS = "TOO_MANY_STREAMS"
TOO_LATE = "TOO_LATE"
STREAM_NOT_READ = "STREAM_NOT_READ"
STREAM_IDLE = "STREAM_IDLE"
NETWORK_UNAVAILABLE = "NETWORK_UNAVAILABLE"
STOPPING = "STOPPING"
NETWORK_FAILED = "NETWORK_FAILED"
BUG = "BUG"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """`code` is the gRPC status code's name, `retry` whether a google.rpc.RetryInfo comes along."""

    code: str
    meaning: str
    retry: bool = False


FAILURES: dict[str, Failure] = {
    MESSAGE_MALFORMED: Failure(code="INVALID_ARGUMENT", meaning="The bytes are no message of the method's type."),
    IMAGE_EMPTY: Failure(code="INVALID_ARGUMENT", meaning="The request holds no image."),
    IMAGE_TOO_LARGE: Failure(code="INVALID_ARGUMENT", meaning="The encoded image has too many bytes."),
    IMAGE_REFUSED: Failure(
        code="INVALID_ARGUMENT",
        meaning="No image, an unknown format, damaged, animated, or outside the limits of pixels.",
    ),
    TOP_K_OUT_OF_RANGE: Failure(code="INVALID_ARGUMENT", meaning="`top_k` is not between 1 and the number of labels."),
    ALPHA_OUT_OF_RANGE: Failure(
        code="INVALID_ARGUMENT", meaning="`alpha` is no number between the smallest p-value of the network and 1."
    ),
    ID_TOO_LONG: Failure(code="INVALID_ARGUMENT", meaning="The `id` of a stream's request has too many bytes."),
    NETWORK_UNKNOWN: Failure(code="NOT_FOUND", meaning="The bundle has no network of this name."),
    OVERLOADED: Failure(
        code="RESOURCE_EXHAUSTED", meaning="The queue is full, or the wait would outlast the deadline.", retry=True
    ),
    TOO_MANY_STREAMS: Failure(code="RESOURCE_EXHAUSTED", meaning="As many streams as allowed are open.", retry=True),
    TOO_LATE: Failure(code="DEADLINE_EXCEEDED", meaning="The deadline passed, or the service's own longest time."),
    STREAM_NOT_READ: Failure(code="ABORTED", meaning="The caller did not read the answers of its stream."),
    STREAM_IDLE: Failure(code="ABORTED", meaning="The caller sent nothing on its stream for too long."),
    NETWORK_UNAVAILABLE: Failure(
        code="UNAVAILABLE", meaning="The network is not there, or does not answer its probes.", retry=True
    ),
    STOPPING: Failure(code="UNAVAILABLE", meaning="The service is stopping and takes no new requests.", retry=True),
    NETWORK_FAILED: Failure(code="INTERNAL", meaning="The network could not answer this request, or not sensibly."),
    BUG: Failure(code="INTERNAL", meaning="Something that should not happen; the service's log says what."),
}


def as_refusal(problem: Exception) -> RequestRefused:
    """What the caller is told: a refusal as it is, an image's error as one, anything else as a bug without a word."""
    if isinstance(problem, RequestRefused):
        return problem
    if isinstance(problem, ImageError):
        return image_refused(problem)
    return RequestRefused("something went wrong inside the service", hint="Its log says what.", reason=BUG)


def image_refused(problem: ImageError) -> RequestRefused:
    """An image that cannot be decoded; what a decoder says of a place in memory or on disk stays here."""
    what = "the image is damaged" if "/" in problem.what or " at 0x" in problem.what else problem.what
    return RequestRefused(what, hint=problem.hint, reason=IMAGE_REFUSED, field="image")


def stopping() -> RequestRefused:
    """What a service that stops says to what is new."""
    return RequestRefused("the service is stopping", hint="Ask another one.", reason=STOPPING, retry_after=1.0)


def sentence(problem: FieldmarkError) -> str:
    """One printable line for the wire."""
    text = printable(str(problem))
    return text if len(text) <= _MOST else text[: _MOST - 1] + "…"


def code_number(refused: RequestRefused) -> int:
    """The number of the refusal's gRPC status code."""
    import grpc

    return int(grpc.StatusCode[FAILURES[refused.reason].code].value[0])


def details(refused: RequestRefused, metadata: dict[str, str]) -> bytes:
    """A serialized google.rpc.Status for the trailing metadata `DETAILS`; `metadata` goes into the ErrorInfo."""
    from google.rpc import error_details_pb2, status_pb2

    status = status_pb2.Status(code=code_number(refused), message=sentence(refused))
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=refused.reason, domain=DOMAIN, metadata=metadata))
    if refused.field:
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field=refused.field, description=sentence(refused))
        status.details.add().Pack(bad)
    if refused.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        set_seconds(retry.retry_delay, refused.retry_after)
        status.details.add().Pack(retry)
    return bytes(status.SerializeToString())


def read_details(data: bytes, what: str) -> RequestRefused:
    """The refusal that `details` wrote, or one without a reason if it is somebody else's; `what` is its sentence."""
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    found = set()
    try:
        for detail in status_pb2.Status.FromString(data).details:
            for kind in (info, retry, bad):
                if detail.Is(kind.DESCRIPTOR):
                    detail.Unpack(kind)
                    found.add(kind.DESCRIPTOR.name)
    except DecodeError:
        return RequestRefused(what)
    delay = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return RequestRefused(
        what,
        reason=info.reason if info.domain == DOMAIN else "",
        retry_after=max(0.0, delay) if "RetryInfo" in found else None,
        field=bad.field_violations[0].field if bad.field_violations else "",
    )


def set_seconds(duration: Any, seconds: float) -> None:
    """Fill a google.protobuf.Duration; `seconds` is at least 0."""
    whole = math.floor(seconds)
    duration.seconds, duration.nanos = whole, int((seconds - whole) * 1e9)
