"""A real Envoy before a real gateway before a real Triton: who gets in, with what, and what the others are told."""

import io
import json
import socket
import ssl
import struct
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from benchmarks.reliability.http2 import RST_STREAM, frame, literal, read_frame
from bundle import Bundle
from bundle.errors import RequestRefused
from fieldmark import main
from serving.gateway.calls import Tls
from serving.gateway.client import FieldmarkClient
from serving.gateway.failures import DETAILS, read_details
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.server import Gateway
from tests.serving.envoy.conftest import IMAGE_BYTES
from tests.serving.envoy.door import ANN, BOB, Door, before, metadata, refusal
from tests.serving.gateway.gateway_thread import encode, running
from tests.serving.triton.played import PlayedTriton, listen

pytestmark = pytest.mark.triton

GOOD = v1.ClassifyRequest(image=encode(np.full((40, 40, 3), 140, np.uint8)))
NEED_A_KEY = ("UNAUTHENTICATED", "a key is needed: give it as x-api-key")


def logged(door: Door, request_id: str) -> dict[str, Any]:
    """The access log's line of a request; Envoy writes it a moment after the answer."""
    for _ in range(200):
        if found := [line for line in door.accesses if line["request_id"] == request_id]:
            return found[0]
        time.sleep(0.05)
    pytest.fail(f"nothing is logged of {request_id}")


def test_a_key_opens_and_its_name_goes_on(door: Door, toy_bundle: Bundle, gateway_log: io.StringIO) -> None:
    with FieldmarkClient(door.url, key=ANN.secret, tls=Tls(ca=door.folder / "ca.pem")) as client:
        assert client.describe().bundle_id == toy_bundle.bundle_id
        assert [each.id for each in client.classify_stream([("one", GOOD.image), ("two", GOOD.image)])]
    parent = f"00-{'4' * 32}-{'2' * 16}-01"
    sent = metadata(BOB, ("x-request-id", "mine"), ("x-fieldmark-key-name", "ann"), ("traceparent", parent))
    with door.stub() as stub:
        assert stub.Classify(GOOD, metadata=sent, timeout=30).request_id == "mine"
    line = logged(door, "mine")
    assert (line["key_name"], line["grpc_status"], line["status"], line["traceparent"]) == ("bob", "OK", 200, parent)
    known = [json.loads(each) for each in gateway_log.getvalue().splitlines()]
    (told,) = [each for each in known if each.get("request_id") == "mine"]
    assert (told["key_name"], told["trace_id"]) == ("bob", "4" * 32)
    assert all(key.secret not in gateway_log.getvalue() + "".join(door.lines) for key in (ANN, BOB))


@pytest.mark.parametrize(
    "sent",
    [
        (),
        (("x-api-key", ""),),
        (("x-api-key", "z" * 34),),
        (("x-api-key", ANN.secret[:-1]),),
        (("x-api-key", ANN.secret.upper()),),
        (("authorization", f"Bearer {ANN.secret}"),),
        (("x-fieldmark-key-name", "ann"),),
    ],
    ids=["none", "empty", "wrong", "shorter", "other case", "elsewhere", "a name alone"],
)
def test_without_a_key(door: Door, sent: tuple[tuple[str, str], ...]) -> None:
    with door.stub() as stub:
        assert refusal(stub.Classify, GOOD, metadata=sent) == NEED_A_KEY
        assert refusal(lambda *a, **k: list(stub.ClassifyStream(*a, **k)), iter(()), metadata=sent) == NEED_A_KEY


def test_the_client_says_what_a_wrong_key_is(door: Door) -> None:
    with (
        FieldmarkClient(door.url, key="z" * 30, tls=Tls(ca=door.folder / "ca.pem")) as client,
        pytest.raises(RequestRefused, match="does not know this key"),
    ):
        client.describe()


def test_the_verb_with_a_key(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "grey.png"
    image.write_bytes(GOOD.image)

    def classify(*options: str, key: str = ANN.secret) -> tuple[Any, str]:
        monkeypatch.setenv("FIELDMARK_KEY", key)
        with pytest.raises(SystemExit) as ended:
            main(["classify", str(image), "--json", "--url", door.url, *options])
        seen = capfd.readouterr()
        return ended.value.code, seen.out or seen.err

    ca = ("--ca", str(door.folder / "ca.pem"))
    code, out = classify(*ca)
    assert (code or 0, json.loads(out)["file"]) == (0, str(image))
    assert classify(*ca, key="z" * 30) == (
        1,
        f"error: {door.url} does not know this key. Give the key that its owner gave you.\n",
    )
    for without in ((), ("--tls",)):  # no TLS, and no authority that is known here
        code, out = classify(*without)
        assert code == 1
        assert "is not available" in out
        assert "It may be starting, or want TLS and a key." in out


def test_a_large_body(door: Door) -> None:
    with door.stub() as stub:
        code, sentence = refusal(
            stub.Classify, v1.ClassifyRequest(image=b"x" * (3 * IMAGE_BYTES)), metadata=metadata(ANN)
        )
        assert (code, sentence) == ("RESOURCE_EXHAUSTED", "the request is too large: send the image smaller")
        just = v1.ClassifyRequest(image=b"x" * (IMAGE_BYTES + 1))
        assert refusal(stub.Classify, just, metadata=metadata(ANN))[0] == "INVALID_ARGUMENT", "from the gateway"
        wide = metadata(ANN, ("x-wide", "y" * 7000))
        assert refusal(stub.Describe, metadata=wide)[0] in ("INTERNAL", "RESOURCE_EXHAUSTED")
        assert refusal(stub.Describe, metadata=metadata(ANN)) == ("OK", "")


def test_what_is_not_let_through(door: Door) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with grpc.secure_channel(door.url, door.credentials()) as channel:
        calls = [
            (channel.unary_unary("/fieldmark.v1.Fieldmark/Nothing", request_serializer=bytes), b""),
            (health_pb2_grpc.HealthStub(channel).Check, health_pb2.HealthCheckRequest()),
            (
                lambda *a, **k: list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(*a, **k)),
                iter([reflection_pb2.ServerReflectionRequest(list_services="")]),
            ),
        ]
        for call, request in calls:
            assert refusal(call, request, metadata=metadata(ANN))[0] == "UNIMPLEMENTED"
            assert refusal(call, request)[0] == "UNAUTHENTICATED"


def test_health_and_reflection_where_they_are_wanted(gateway: Gateway, certificates: Path) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with before(gateway, certificates, health=True, reflection=True) as opened:
        with grpc.secure_channel(opened.url, opened.credentials()) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=30).status == 1
            assert refusal(lambda *a, **k: list(health.Watch(*a, **k)), health_pb2.HealthCheckRequest())[0] != "OK"
            ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
            wanted = [reflection_pb2.ServerReflectionRequest(list_services="")]
            assert refusal(lambda *a, **k: list(ask(*a, **k)), iter(wanted)) == NEED_A_KEY
            (answer,) = ask(iter(wanted), timeout=30, metadata=metadata(ANN))
            names = [each.name for each in answer.list_services_response.service]
            assert "fieldmark.v1.Fieldmark" in names
        with opened.connect("http/1.1") as line:
            line.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert line.recv(100).startswith(b"HTTP/1.1 200 ")


class HalfOfIt(PlayedTriton):
    """A Triton whose second network is away."""

    def ModelInfer(self, request: Any, context: Any) -> Any:
        if self.away and request.model_name == "attention":
            context.abort(grpc.StatusCode.UNAVAILABLE, "the stub process is not healthy")
        return super().ModelInfer(request, context)

    away = False


def test_one_network_serves_while_health_says_no(toy_bundle: Bundle, certificates: Path) -> None:
    played = HalfOfIt(toy_bundle)
    server, url = listen(played)
    with running(url, probe_seconds=0.5) as behind, before(behind, certificates, health=True) as opened:
        played.away = True
        for _ in range(200):
            with opened.connect("http/1.1") as line:
                line.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
                if line.recv(100).startswith(b"HTTP/1.1 503 "):
                    break
            time.sleep(0.1)
        else:
            pytest.fail("health goes on saying yes")
        with opened.stub() as stub:
            assert stub.Classify(GOOD, metadata=metadata(ANN), timeout=30).network == "full"
    server.stop(0).wait()


def test_a_gateway_that_is_not_there(gateway: Gateway, certificates: Path) -> None:
    with before(gateway, certificates, gateway="127.0.0.1:1") as opened, opened.stub() as stub:
        expected = ("UNAVAILABLE", "the service is not available: try again in a moment")
        assert refusal(stub.Describe, metadata=metadata(ANN)) == expected


def test_a_key_that_is_used_too_often_leaves_the_others_alone(gateway: Gateway, certificates: Path) -> None:
    with before(gateway, certificates, rate=1, burst=3) as opened, opened.stub() as stub:
        answers = [refusal(stub.Describe, metadata=metadata(ANN)) for _ in range(40)]
        too_many = ("RESOURCE_EXHAUSTED", "too many requests with this key: send them slower")
        assert answers[0] == ("OK", "")
        assert set(answers) == {("OK", ""), too_many}
        assert refusal(stub.Describe, metadata=metadata(BOB)) == ("OK", "")


def test_a_key_that_is_used_too_often_is_told_when_to_come_back(gateway: Gateway, certificates: Path) -> None:
    slept: list[float] = []
    with before(gateway, certificates, rate=1, burst=2) as opened:
        tls = Tls(ca=opened.folder / "ca.pem")
        with FieldmarkClient(opened.url, key=ANN.secret, tls=tls, sleep=slept.append) as client:
            with pytest.raises(RequestRefused, match="is asked too often") as problem:
                for _ in range(40):
                    client.describe()
            assert (problem.value.retry_after, len(slept)) == (1.0, 3)
        with opened.stub() as stub, pytest.raises(grpc.RpcError) as told:
            for _ in range(40):
                stub.Describe(v1.DescribeRequest(), metadata=metadata(ANN), timeout=30)
        sent = dict(told.value.trailing_metadata())  # type: ignore[attr-defined]
        assert read_details(sent[DETAILS], "").retry_after == 1.0
        with opened.connect("http/1.1") as line:
            for _ in range(40):
                line.sendall(f"GET /v1/describe HTTP/1.1\r\nhost: x\r\nx-api-key: {BOB.secret}\r\n\r\n".encode())
                if (answer := line.recv(100_000)).startswith(b"HTTP/1.1 429 "):
                    break
        assert b"retry-after: 1\r\n" in answer


def test_mutual_tls(gateway: Gateway, certificates: Path) -> None:
    with before(gateway, certificates, client_ca=certificates / "ca.pem") as opened:
        with opened.stub("client") as stub:
            assert refusal(stub.Describe, metadata=metadata(ANN)) == ("OK", "")
            assert refusal(stub.Describe) == NEED_A_KEY
        for client in ("", "late", "stranger"):
            with opened.stub(client) as stub:
                assert refusal(stub.Describe, metadata=metadata(ANN))[0] == "UNAVAILABLE"


def test_no_tls_and_old_tls(door: Door) -> None:
    with grpc.insecure_channel(door.url) as channel:
        call = channel.unary_unary("/fieldmark.v1.Fieldmark/Describe", request_serializer=lambda each: b"")
        assert refusal(call, metadata=metadata(ANN))[0] == "UNAVAILABLE"
    context = ssl.create_default_context(cafile=door.folder / "ca.pem")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(door.address, timeout=30) as plain, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_certificate_that_is_over(gateway: Gateway, certificates: Path) -> None:
    late = {"certificate": certificates / "late.pem", "certificate_key": certificates / "late.key"}
    with (
        before(gateway, certificates, **late) as opened,
        FieldmarkClient(opened.url, key=ANN.secret, tls=Tls(ca=certificates / "ca.pem"), timeout=5) as client,
        pytest.raises(RequestRefused, match="is not available"),
    ):
        client.describe()


# Callers who hold a place and do nothing with it


@pytest.fixture(scope="module")
def impatient(gateway: Gateway, certificates: Path) -> Any:
    with before(gateway, certificates, stall_seconds=1.0, idle_seconds=1.5) as opened:
        yield opened


def test_a_body_that_does_not_come(impatient: Door) -> None:
    with impatient.connect("http/1.1") as line:
        fields = f"host: x\r\nx-api-key: {ANN.secret}\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n"
        line.sendall(f"POST /v1/classify HTTP/1.1\r\n{fields}\r\n{{".encode())
        answer = line.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":4' in answer


def test_an_answer_that_is_never_read(impatient: Door) -> None:
    """The caller's window stays shut, so that not a byte of the answer may be sent."""
    head = {
        ":method": "POST",
        ":scheme": "https",
        ":path": "/fieldmark.v1.Fieldmark/Describe",
        ":authority": "x",
        "content-type": "application/grpc",
        "te": "trailers",
        "x-api-key": ANN.secret,
        "x-request-id": "unread",
    }
    settings = frame(4, 0, 0, struct.pack(">HI", 4, 0))  # INITIAL_WINDOW_SIZE 0
    headers = frame(1, 4, 1, b"".join(literal(name, value) for name, value in head.items()))
    with impatient.connect("h2") as line:
        line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + headers + frame(0, 1, 1, b"\0" * 5))
        frames = iter(lambda: read_frame(line), None)
        assert (RST_STREAM, 1) in ((kind, stream) for kind, _, stream, _ in frames)
    assert logged(impatient, "unread")["key_name"] == "ann"


def test_a_stream_that_does_nothing(impatient: Door) -> None:
    enough = threading.Event()

    def silence() -> Any:
        enough.wait(30)
        yield from ()

    with impatient.stub() as stub:
        code, _ = refusal(lambda *a, **k: list(stub.ClassifyStream(*a, **k)), silence(), metadata=metadata(ANN))
        enough.set()
    assert code == "DEADLINE_EXCEEDED"


def test_a_connection_that_says_nothing(gateway: Gateway, certificates: Path) -> None:
    with before(gateway, certificates, idle_seconds=1.0) as opened, opened.connect("http/1.1") as line:
        assert line.recv(100) == b""


def connected(opened: Any) -> Any:
    """A connection as soon as there is room: the one that asked whether Envoy is ready may not have ended yet."""
    for _ in range(50):
        try:
            return opened.connect("http/1.1")
        except (ssl.SSLError, ConnectionError):
            time.sleep(0.1)
    return opened.connect("http/1.1")


def test_more_connections_than_allowed(gateway: Gateway, certificates: Path) -> None:
    with before(gateway, certificates, connections=2) as opened:
        held = [connected(opened) for _ in range(2)]
        with pytest.raises((ssl.SSLError, ConnectionError)):
            opened.connect("http/1.1")
        for line in held:
            line.close()
