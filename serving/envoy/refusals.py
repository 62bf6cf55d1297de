"""What Envoy itself says to a caller whom it does not let through, in HTTP and in gRPC.

docs/gateway.md has the same table, and a test compares the two.

Left alone, Envoy tells callers of gRPC UNKNOWN where a body is too large, and UNAVAILABLE, which they would try again,
where time is over.
"""

import base64
from dataclasses import dataclass
from typing import Any

import grpc

from serving.gateway.failures import DETAILS

CAME_AS = "x-fieldmark-came-as"  # a header of our own: the content type that a request came with
_OWN_WORDS = "%LOCAL_REPLY_BODY%"  # of the filter that refuses


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """`code` is the gRPC status code's name, `sentence` what the caller reads, `meaning` when it comes.

    `retry_after` is whole seconds, told to gRPC as a google.rpc.RetryInfo and to HTTP as `retry-after`; None for none.
    """

    code: str
    sentence: str
    meaning: str
    retry_after: int | None = None


REFUSALS: dict[int, Refusal] = {
    400: Refusal(
        code="INVALID_ARGUMENT",
        sentence=_OWN_WORDS,
        meaning="No JSON, JSON of another form, or a query that the method does not know.",
    ),
    401: Refusal(
        code="UNAUTHENTICATED",
        sentence="a key is needed: give it as x-api-key",
        meaning="No key, an unknown one, or two of them.",
    ),
    403: Refusal(code="PERMISSION_DENIED", sentence="this is not allowed", meaning="Envoy forbids it otherwise."),
    404: Refusal(
        code="UNIMPLEMENTED",
        sentence="there is no such method or path",
        meaning="An unknown method, or one not let through.",
    ),
    408: Refusal(
        code="DEADLINE_EXCEEDED",
        sentence="the request did not arrive, or was not answered, in time",
        meaning="It stood still for `--stall-seconds` (a stream: `--idle-seconds`), or took too long as a whole.",
    ),
    413: Refusal(
        code="RESOURCE_EXHAUSTED",
        sentence="the request is too large: send the image smaller",
        meaning="The body is larger than `--image-bytes` and 1 MiB (in base64: and a third).",
    ),
    429: Refusal(
        code="RESOURCE_EXHAUSTED",
        sentence="too many requests with this key: send them slower",
        meaning="The key has used up its `--burst`, and sends more than `--rate` a second. Retry.",
        retry_after=1,
    ),
    431: Refusal(
        code="RESOURCE_EXHAUSTED", sentence="the headers are too large", meaning="Headers of more than 6 KiB."
    ),
    503: Refusal(
        code="UNAVAILABLE",
        sentence="the service is not available: try again in a moment",
        meaning="The gateway cannot be reached, answers take longer and longer, or memory runs out. Retry.",
    ),
    504: Refusal(
        code="DEADLINE_EXCEEDED",
        sentence="the request was not answered in time",
        meaning="The gateway did not answer in time.",
    ),
}


def local_replies() -> dict[str, Any]:
    """Envoy's mappers, the first that fits: one of each status for gRPC, and one for everybody else."""
    mappers = []
    for status, refusal in REFUSALS.items():
        code = int(grpc.StatusCode[refusal.code].value[0])
        of_grpc, of_http = {"grpc-status": str(code)}, dict[str, str]()
        if refusal.retry_after is not None:
            of_grpc[DETAILS] = _details(code, refusal.sentence, refusal.retry_after)
            of_http["retry-after"] = str(refusal.retry_after)
        mappers += [
            {
                "filter": {"and_filter": {"filters": [has_status(status), _IS_GRPC]}},
                "body_format_override": {"text_format_source": {"inline_string": refusal.sentence}},
                "headers_to_add": _headers(of_grpc),
            },
            {
                "filter": has_status(status),
                "body_format_override": {"json_format": {"code": code, "message": refusal.sentence}},
                "headers_to_add": _headers(of_http),
            },
        ]
    return {"mappers": mappers}


def _headers(values: dict[str, str]) -> list[dict[str, Any]]:
    action = "OVERWRITE_IF_EXISTS_OR_ADD"
    return [{"header": {"key": key, "value": value}, "append_action": action} for key, value in values.items()]


def _details(code: int, sentence: str, retry_after: int) -> str:
    """A google.rpc.Status with a RetryInfo, as a header holds bytes."""
    from google.rpc import error_details_pb2, status_pb2

    retry, status = error_details_pb2.RetryInfo(), status_pb2.Status(code=code, message=sentence)
    retry.retry_delay.seconds = retry_after
    status.details.add().Pack(retry)
    return base64.b64encode(status.SerializeToString()).decode()


# Not the content type itself: a call in JSON that was translated has gRPC's by then.
_IS_GRPC = {
    "header_filter": {"header": {"name": CAME_AS, "string_match": {"prefix": "application/grpc"}}},
}


def has_status(status: int) -> dict[str, Any]:
    """Envoy's filter of answers with this status."""
    # Envoy reads a number that can be changed while it runs, under a name; nobody changes these.
    value = {"default_value": status, "runtime_key": f"fieldmark.status.{status}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}
