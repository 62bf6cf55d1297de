"""The Python clients, sync and asyncio: one sentence for every failure, retries only where the service wants them."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from bundle.errors import EndpointError, OptionError, RequestRefused
from serving.envoy.refusals import REFUSALS
from serving.gateway import failures
from serving.gateway.aio_client import AsyncFieldmarkClient
from serving.gateway.calls import Budget, Retries, Tls
from serving.gateway.client import FieldmarkClient
from serving.gateway.failures import DETAILS, FAILURES, details
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.generated.fieldmark_pb2_grpc import add_FieldmarkServicer_to_server
from serving.gateway.handlers import SERVICE
from serving.gateway.server import Gateway
from tests.conftest import LABELS
from tests.serving.gateway.certificates import make_certificate
from tests.serving.gateway.gateway_thread import encode, running

GOOD = encode(np.full((40, 40, 3), 140, np.uint8))
Ask = Callable[..., Any]


class Played:
    """A service that plays fieldmark.v1: refuses as often as it is told, then answers; remembers who called."""

    def __init__(self) -> None:
        self.refusals: list[RequestRefused | grpc.StatusCode | str] = []  # a sentence is RESOURCE_EXHAUSTED's
        self.seen: list[dict[str, str]] = []

    def Classify(self, request: Any, context: Any) -> v1.ClassifyResponse:
        self.seen.append(dict(context.invocation_metadata()))
        if self.refusals:
            refused = self.refusals.pop(0)
            if isinstance(refused, grpc.StatusCode):
                context.abort(refused, "words of somebody else")
            if isinstance(refused, str):
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, refused)
            context.set_trailing_metadata(((DETAILS, details(refused, {})),))
            context.abort(grpc.StatusCode[FAILURES[refused.reason].code], failures.sentence(refused))
        return v1.ClassifyResponse(network="full")

    def ClassifyStream(self, requests: Any, context: Any) -> Iterator[v1.ClassifyStreamResponse]:
        for request in requests:
            yield v1.ClassifyStreamResponse(id=request.id)

    def Describe(self, request: Any, context: Any) -> v1.DescribeResponse:
        return v1.DescribeResponse(name="played")


@pytest.fixture
def service() -> Played:
    return Played()


def listen(service: Played, credentials: Any = None) -> tuple[Any, int]:
    server = grpc.server(ThreadPoolExecutor(4))
    add_FieldmarkServicer_to_server(service, server)
    port = (
        server.add_secure_port("127.0.0.1:0", credentials) if credentials else server.add_insecure_port("127.0.0.1:0")
    )
    server.start()
    return server, port


@pytest.fixture
def url(service: Played) -> Iterator[str]:
    server, port = listen(service)
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def ask_sync(url: str, *, slept: list[float] | None = None, image: bytes = GOOD, **options: Any) -> Any:
    pauses = [] if slept is None else slept
    with FieldmarkClient(url, sleep=pauses.append, **options) as client:
        return client.classify(image)


def ask_async(url: str, *, slept: list[float] | None = None, image: bytes = GOOD, **options: Any) -> Any:
    pauses = [] if slept is None else slept

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def call() -> Any:
        async with AsyncFieldmarkClient(url, sleep=sleep, **options) as client:
            return await client.classify(image)

    return asyncio.run(call())


both = pytest.mark.parametrize("ask", [ask_sync, ask_async])


def overloaded(after: float = 0.5) -> RequestRefused:
    return RequestRefused("full", reason=failures.OVERLOADED, retry_after=after)


@pytest.mark.triton
@both
def test_a_real_gateway_answers(gateway: Gateway, ask: Ask) -> None:
    assert ask(gateway.url).predictions[0].label in LABELS
    with pytest.raises(RequestRefused) as problem:
        ask(gateway.url, image=b"")
    assert (problem.value.reason, problem.value.field) == (failures.IMAGE_EMPTY, "image")
    assert str(problem.value) == "the request holds no image"


@pytest.mark.triton
def test_streams_of_both_clients(gateway: Gateway) -> None:
    pairs = [(f"{number}", GOOD) for number in range(20)]
    with FieldmarkClient(gateway.url) as client:
        assert {each.id for each in client.classify_stream(pairs, top_k=2)} == {name for name, _ in pairs}
        assert client.describe().name == "toy"

    async def play() -> set[str]:
        async def images() -> AsyncIterator[tuple[str, bytes]]:
            for pair in pairs:
                yield pair

        async with AsyncFieldmarkClient(gateway.url) as client:
            assert (await client.describe()).name == "toy"
            return {each.id async for each in client.classify_stream(images(), top_k=2)}

    assert asyncio.run(play()) == {name for name, _ in pairs}


def test_a_stream_that_is_cut_says_so_and_can_go_on(played_url: str) -> None:
    waiting, answered = [f"{number}" for number in range(40)], []

    def images() -> Iterator[tuple[str, bytes]]:
        for name in list(waiting):
            time.sleep(0.05)
            yield name, GOOD

    ends: list[str] = []
    limits = {"connection_seconds": 0.5, "timeout": 0.5, "stall_seconds": 0.1}
    with running(played_url, **limits) as gateway, FieldmarkClient(gateway.url) as client:
        while waiting:
            try:
                for answer in client.classify_stream(images()):
                    waiting.remove(answer.id)
                    answered.append(answer.id)
            except RequestRefused as problem:
                ends.append(str(problem))
    assert len(set(answered)) == len(answered) == 40
    assert ends
    assert all("has grown too old (max connection age)" in end for end in ends)
    assert all(end.endswith("Open a stream again, and send what has no answer yet.") for end in ends)


@both
def test_a_refusal_that_will_pass_is_tried_again(service: Played, url: str, ask: Ask) -> None:
    service.refusals = [overloaded(0.5), RequestRefused("x", reason=failures.STOPPING, retry_after=1.0)]
    slept: list[float] = []
    assert ask(url, slept=slept).network == "full"
    assert len(service.seen) == 3
    assert 0.5 <= slept[0] <= 0.6
    assert 1.0 <= slept[1] <= 1.2


@both
@pytest.mark.parametrize("reason", [reason for reason, failure in FAILURES.items() if not failure.retry])
def test_what_will_not_pass_is_not_tried_again(service: Played, url: str, ask: Ask, reason: str) -> None:
    service.refusals = [RequestRefused("no", reason=reason)]
    with pytest.raises(RequestRefused) as problem:
        ask(url)
    assert problem.value.reason == reason
    assert len(service.seen) == 1


@both
@pytest.mark.parametrize(
    ("code", "calls", "words"),
    [
        (grpc.StatusCode.UNAVAILABLE, 4, "is not available"),
        (grpc.StatusCode.UNAUTHENTICATED, 1, "does not know this key"),
        (grpc.StatusCode.PERMISSION_DENIED, 1, "does not allow this key"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1, "is more than"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 1, "did not answer in time"),
        (grpc.StatusCode.UNIMPLEMENTED, 1, "does not speak fieldmark.v1"),
        (grpc.StatusCode.INTERNAL, 1, "could not answer"),
        (grpc.StatusCode.UNKNOWN, 1, "could not answer"),
    ],
)
def test_statuses_of_somebody_else(
    service: Played, url: str, ask: Ask, code: grpc.StatusCode, calls: int, words: str
) -> None:
    service.refusals = [code] * 9
    with pytest.raises(EndpointError, match=words):
        ask(url)
    assert len(service.seen) == calls


@both
@pytest.mark.parametrize("words", [REFUSALS[429].sentence, "Concurrent RPC limit exceeded!"])
def test_too_much_at_once_is_not_too_large(service: Played, url: str, ask: Ask, words: str) -> None:
    service.refusals = [words]
    slept: list[float] = []
    assert ask(url, slept=slept).network == "full"
    assert 1.0 <= slept[0] <= 1.1
    service.refusals = [words]
    with pytest.raises(RequestRefused, match=words[:20]) as problem:
        ask(url, retries=Retries(attempts=1))
    assert "is more than" not in str(problem.value)
    assert "smaller" not in str(problem.value)


def test_to_keep_to_a_rate_costs_no_token(service: Played, url: str) -> None:
    with FieldmarkClient(url, sleep=lambda seconds: None) as client:
        for _ in range(100):
            service.refusals = [REFUSALS[429].sentence]
            client.classify(GOOD)
    assert len(service.seen) == 200


@both
def test_the_deadline_holds_for_all_tries_together(service: Played, url: str, ask: Ask) -> None:
    service.refusals = [overloaded(5.0)]
    with pytest.raises(RequestRefused):
        ask(url, timeout=4.0)
    assert len(service.seen) == 1


@both
def test_as_many_tries_as_allowed(service: Played, url: str, ask: Ask) -> None:
    service.refusals = [overloaded(0.0)] * 9
    with pytest.raises(RequestRefused):
        ask(url, retries=Retries(attempts=2))
    assert len(service.seen) == 2


def test_a_budget_keeps_callers_from_holding_an_overloaded_service_down(service: Played, url: str) -> None:
    service.refusals = [overloaded(0.0)] * 1000
    with FieldmarkClient(url, sleep=lambda seconds: None) as client:
        for _ in range(100):
            with pytest.raises(RequestRefused):
                client.classify(GOOD)
    assert 100 + 10 <= len(service.seen) <= 100 + 10 + 10, "ten to begin with, and a tenth of the calls"


def test_waits_grow_and_differ() -> None:
    refused = overloaded(1.0)
    budget = Budget(Retries(attempts=9), chance=lambda: 1.0)
    assert [budget.wait(refused, attempt, 100.0) for attempt in (1, 2, 3)] == pytest.approx([1.1, 1.2, 1.4])
    assert Budget(Retries(), chance=lambda: 0.0).wait(refused, 1, 100.0) == 1.0


@both
def test_nobody_there(ask: Ask) -> None:
    with pytest.raises(RequestRefused, match="no server answers"):
        ask("127.0.0.1:1", retries=Retries(attempts=1))


@pytest.mark.parametrize("url", ["", "http://host:80", "host:99999", "a b"])
@both
def test_no_address(ask: Ask, url: str) -> None:
    with pytest.raises(EndpointError, match="not the address"):
        ask(url)


@both
def test_the_key_goes_along(service: Played, url: str, ask: Ask) -> None:
    ask(url, key="k3y")
    ask(url)
    assert [each.get("x-api-key") for each in service.seen] == ["k3y", None]


@both
def test_a_key_is_not_sent_for_everybody_to_read(ask: Ask) -> None:
    with pytest.raises(OptionError, match="for everybody to read"):
        ask("example.com:443", key="k3y")


@pytest.mark.parametrize(
    "asked", [{"top_k": -1}, {"top_k": 2**40}, {"alpha": "x"}, {"network": 3}, {"network": "\ud800"}]
)
def test_numbers_that_no_message_holds(url: str, asked: dict[str, Any]) -> None:
    with FieldmarkClient(url) as client, pytest.raises(OptionError, match="no request"):
        client.classify(GOOD, **asked)


def test_the_two_clients_have_the_same_methods() -> None:
    def signatures(kind: type) -> dict[str, list[str]]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(each).parameters) for name, each in found if not name.startswith("_")}

    assert signatures(FieldmarkClient) == signatures(AsyncFieldmarkClient)
    assert SERVICE == "fieldmark.v1.Fieldmark"


# TLS


@pytest.fixture
def secure(service: Played, tmp_path: Path) -> Iterator[str]:
    """The address of a service that speaks TLS and asks callers for a certificate; all files in tmp_path."""
    authority = make_certificate(tmp_path, "ca")
    make_certificate(tmp_path, "server", authority)
    make_certificate(tmp_path, "client", authority)
    pair = ((tmp_path / "server.key").read_bytes(), (tmp_path / "server.pem").read_bytes())
    credentials = grpc.ssl_server_credentials([pair], (tmp_path / "ca.pem").read_bytes(), require_client_auth=True)
    server, port = listen(service, credentials)
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@both
def test_tls_with_a_certificate_of_ones_own(service: Played, secure: str, tmp_path: Path, ask: Ask) -> None:
    tls = Tls(ca=tmp_path / "ca.pem", certificate=tmp_path / "client.pem", key=tmp_path / "client.key")
    assert ask(secure, tls=tls, key="k3y").network == "full"
    assert service.seen[0]["x-api-key"] == "k3y"


@both
def test_tls_that_cannot_be_trusted(service: Played, secure: str, tmp_path: Path, ask: Ask) -> None:
    once = Retries(attempts=1)
    for tls in (None, Tls(), Tls(ca=tmp_path / "ca.pem")):  # no TLS, an unknown authority, no certificate of one's own
        with pytest.raises(RequestRefused, match="is not available"):
            ask(secure, tls=tls, retries=once, timeout=5.0)
    assert service.seen == []


@both
def test_tls_files_that_are_not_there(tmp_path: Path, ask: Ask) -> None:
    with pytest.raises(OptionError, match=r"none\.pem: no such file"):
        ask("localhost:1", tls=Tls(ca=tmp_path / "none.pem"))
