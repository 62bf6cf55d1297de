"""What the two clients of fieldmark.v1 share: how to call, what an error means, and when to call again.

Classify and Describe change nothing, so calling again is safe; it is done only where the service says that it is worth
it, within the deadline, and within a budget: retries of many callers at once are what keeps an overloaded service down.
"""

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from bundle.errors import OptionError, RequestRefused
from serving.client.remote import NOBODY, NOBODY_ANSWERS, channel_options, parse_url
from serving.gateway.failures import DETAILS, read_details
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.options import DEFAULT_PORT, is_loopback

KEY_HEADER = "x-api-key"
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0  # seconds
_TOKENS, _TOKENS_PER_CALL = 10.0, 0.1  # so at most a tenth more calls than were asked for, after the first ten

_TOO_OFTEN, _TOO_MANY = "too many requests", "concurrent rpc limit"  # in Envoy's words, in gRPC's
_TOO_OLD = "max connection age"
_BUSY_SECONDS = 1.0  # after which RESOURCE_EXHAUSTED is worth another try, where it names no time
_START = "Start one: fieldmark serve BUNDLE"
_SENTENCES = {
    "UNAUTHENTICATED": ("{url} does not know this key", "Give the key that its owner gave you."),
    "PERMISSION_DENIED": ("{url} does not allow this key to do that", "Ask its owner."),
    "RESOURCE_EXHAUSTED": ("the request is more than {url} takes ({details})", "Send the image smaller."),
    "DEADLINE_EXCEEDED": ("{url} did not answer in time", "Give it longer, or try again later."),
    "UNAVAILABLE": ("{url} is not available ({details})", "It may be starting, or want TLS and a key."),
    _TOO_MANY: ("{url} has more calls than it takes at a time ({details})", "Try again in a moment."),
    _TOO_OLD: (
        "{url} has cut a call, since its connection has grown too old ({details})",
        "Open a stream again, and send what has no answer yet.",
    ),
    "CANCELLED": ("the call to {url} was cancelled", ""),
}


@dataclass(frozen=True, kw_only=True)
class Tls:
    """PEM files: `ca` that signed the service's certificate (None: the usual ones), and a certificate of one's own."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Retries:
    """At most `attempts` calls for one answer; 1 never calls again."""

    attempts: int = 4

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError("attempts is less than 1")


class Budget:
    """Tokens that calls earn and retries cost, shared by all calls of one client."""

    def __init__(self, retries: Retries, *, chance: Callable[[], float] = random.random) -> None:
        self.tokens = _TOKENS
        self._retries, self._chance = retries, chance

    def earn(self) -> None:
        """A call begins."""
        self.tokens = min(_TOKENS, self.tokens + _TOKENS_PER_CALL)

    def wait(self, refused: RequestRefused, attempt: int, left: float) -> float | None:
        """Seconds to wait before calling again after failed call number `attempt` (from 1), or None: do not.

        `left` is the seconds until the deadline. What the service asks for is the least; the rest is chance, so that
        callers who were refused together do not come back together. To keep to a key's rate costs no token: it does
        not hold the service down.
        """
        cost = 0 if isinstance(refused, AskedTooOften) else 1
        if refused.retry_after is None or attempt >= self._retries.attempts or self.tokens < cost:
            return None
        spread = min(_FIRST_WAIT * float(2 ** (attempt - 1)), _LONGEST_WAIT)
        wait = refused.retry_after + spread * self._chance()
        if wait >= left:
            return None
        self.tokens -= cost
        return wait


def open_channel(url: str, key: str, tls: Tls | None, module: Any) -> tuple[str, Any]:
    """(HOST:PORT, channel) of `module`, which is grpc or grpc.aio; raises OptionError or EndpointError."""
    address = parse_url(url, port=DEFAULT_PORT)
    if tls is None:
        if key and not is_loopback(address.rpartition(":")[0]):
            raise OptionError(
                f"a key for {address} would be sent for everybody to read",
                hint="Use TLS, with the CA of its certificate if need be: tls=Tls() in Python, --tls for a verb.",
            )
        return address, module.insecure_channel(address, options=channel_options(address))
    try:
        files = [path.read_bytes() if path else None for path in (tls.ca, tls.key, tls.certificate)]
    except OSError as problem:
        raise OptionError(f"{problem.filename}: {(problem.strerror or 'cannot be read').lower()}") from None
    return address, module.secure_channel(
        address, grpc.ssl_channel_credentials(*files), options=channel_options(address)
    )


def metadata(key: str) -> tuple[tuple[str, str], ...]:
    """What goes along with every call."""
    return ((KEY_HEADER, key),) if key else ()


def with_trace(sent: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """`sent`, and with it the context of the span that the application is in, if it is in one.

    An application that has spans has loaded OpenTelemetry; for the others nothing is imported.
    """
    if sys.modules.get("opentelemetry.trace") is None:
        return sent
    try:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:  # it is half there
        return sent
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return (*sent, *carrier.items())


def make_request(
    image: bytes,
    *,
    network: str = "",
    top_k: int | None = None,
    alpha: float | None = None,
    explain: bool = False,
) -> v1.ClassifyRequest:
    """A request; raises OptionError for a number that the message cannot hold."""
    try:
        return v1.ClassifyRequest(image=image, network=network, top_k=top_k, alpha=alpha, explain=explain)
    except (ValueError, TypeError) as problem:
        raise OptionError(f"this is no request ({problem})") from None


class AnotherService(RequestRefused):
    """What listens there speaks gRPC, and not fieldmark.v1."""


class AskedTooOften(RequestRefused):
    """The rate of the key is used up; it comes back by itself."""


def explain_error(problem: Any, url: str) -> RequestRefused:
    """What a grpc.RpcError of either kind means: the service's own words, or a sentence for gRPC's."""
    code, words = problem.code().name, " ".join((problem.details() or "").split())[:300]
    again = 0.0 if code == "UNAVAILABLE" else None  # it was not there, so it has done nothing
    for key, value in problem.trailing_metadata() or ():
        if key == DETAILS and isinstance(value, bytes):
            refused = read_details(value, words)
            if refused.reason:
                return refused
            again = again if refused.retry_after is None else refused.retry_after
    if code == "UNIMPLEMENTED":
        return AnotherService(f"what listens at {url} does not speak fieldmark.v1", hint=_START)
    if code == "RESOURCE_EXHAUSTED" and _TOO_OFTEN in words.lower():
        return AskedTooOften(
            f"{url} is asked too often ({words})",
            hint="Ask slower, or its owner for a higher rate.",
            retry_after=_BUSY_SECONDS if again is None else again,
        )
    if code == "RESOURCE_EXHAUSTED" and _TOO_MANY in words.lower():
        code, again = _TOO_MANY, _BUSY_SECONDS if again is None else again
    if code == "UNAVAILABLE" and _TOO_OLD in words.lower():
        code = _TOO_OLD
    what, hint = _SENTENCES.get(code, ("{url} could not answer ({details})", ""))
    if code == "UNAVAILABLE" and any(each in words.lower() for each in NOBODY):
        what, hint = NOBODY_ANSWERS, _START
    return RequestRefused(what.format(url=url, details=words), hint=hint, retry_after=again)
