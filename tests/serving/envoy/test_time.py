"""Time in front of a gateway: one that hangs, streams that last, certificates that are renewed."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.server import Gateway
from tests.serving.envoy.door import ANN, Door, before, metadata, refusal
from tests.serving.gateway.certificates import make_certificate
from tests.serving.gateway.gateway_thread import encode

pytestmark = pytest.mark.triton

GOOD = v1.ClassifyRequest(image=encode(np.full((40, 40, 3), 140, np.uint8)))


@pytest.fixture
def hung() -> Iterator[str]:
    """HOST:PORT of a gateway that takes every call and answers none."""
    enough = threading.Event()

    class Hung(grpc.GenericRpcHandler):
        def service(self, _: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: enough.wait(60) or b"")

    server = grpc.server(ThreadPoolExecutor(4), handlers=(Hung(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    enough.set()
    server.stop(0)


def test_a_gateway_that_hangs_is_given_its_time_and_no_more(gateway: Gateway, certificates: Path, hung: str) -> None:
    """A body that stands still may take a minute here; an answer that does not come may not."""
    with before(gateway, certificates, gateway=hung, timeout=1.0, stall_seconds=60.0) as opened, opened.stub() as stub:
        for call, request in ((stub.Classify, GOOD), (stub.Describe, v1.DescribeRequest())):
            expected = ("DEADLINE_EXCEEDED", "the request was not answered in time")
            assert refusal(call, request, metadata=metadata(ANN)) == expected


def test_a_stream_that_moves_lasts_longer_than_a_request_may(gateway: Gateway, certificates: Path) -> None:
    def slowly() -> Iterator[v1.ClassifyStreamRequest]:
        for number in range(6):
            yield v1.ClassifyStreamRequest(id=str(number), request=GOOD)
            time.sleep(0.4)

    with before(gateway, certificates, timeout=0.5, stall_seconds=0.6) as opened, opened.stub() as stub:
        answers = list(stub.ClassifyStream(slowly(), timeout=30, metadata=metadata(ANN)))
    assert [each.id for each in answers] == list("012345")


def test_images_of_a_stream_count_for_its_key(gateway: Gateway, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Envoy counts a stream once; the gateway counts what flows in it, for the name that Envoy gives."""
    counted: list[str] = []
    monkeypatch.setattr(gateway._service.pace, "take", lambda name, **_: counted.append(name) or 0.0)
    requests = [v1.ClassifyStreamRequest(id=str(number), request=GOOD) for number in range(5)]
    with door.stub() as stub:
        assert len(list(stub.ClassifyStream(iter(requests), timeout=60, metadata=metadata(ANN)))) == 5
    assert counted == ["ann"] * 6, "one for the end, which is given back"


# Certificates that are renewed


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, tuple[Any, Any]]:
    """A folder with certificates of its own, and the authority that signs them."""
    authority = make_certificate(tmp_path, "ca")
    for name in ("server", "client"):
        make_certificate(tmp_path, name, authority)
    return tmp_path, authority


def serial(door: Door) -> str:
    """The number of the certificate that callers are shown now."""
    with door.connect("http/1.1") as line:
        found: Any = line.getpeercert()
        return str(found["serialNumber"])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("waited in vain")
        time.sleep(0.1)


def test_a_renewed_certificate_is_shown_without_a_new_start(gateway: Gateway, own: Any) -> None:
    folder, authority = own
    with before(gateway, folder) as opened, opened.stub() as stub:
        assert refusal(stub.Describe, metadata=metadata(ANN)) == ("OK", "")
        old = serial(opened)
        (folder / "new").mkdir()
        make_certificate(folder / "new", "server", authority)
        for name in ("server.key", "server.pem"):  # for a moment they do not belong together
            (folder / "new" / name).replace(folder / name)
            serial(opened)
        wait_until(lambda: serial(opened) != old)
        assert refusal(stub.Describe, metadata=metadata(ANN)) == ("OK", ""), "the connection of before goes on"


def test_a_pair_that_does_not_match_is_not_taken(gateway: Gateway, own: Any) -> None:
    folder, _ = own
    make_certificate(folder, "stranger")
    with before(gateway, folder) as opened:
        old = serial(opened)
        shutil.copyfile(folder / "stranger.pem", folder / "copy")
        (folder / "copy").replace(folder / "server.pem")
        wait_until(lambda: any("server.pem" in line or "private key" in line.lower() for line in opened.lines))
        assert serial(opened) == old


def test_another_authority_of_clients_is_taken(gateway: Gateway, own: Any) -> None:
    folder, _ = own
    (folder / "next").mkdir()
    make_certificate(folder / "next", "late", make_certificate(folder / "next", "ca"))
    shutil.copyfile(folder / "ca.pem", folder / "clients.pem")
    for kind in ("pem", "key"):
        shutil.copyfile(folder / "next" / f"late.{kind}", folder / f"late.{kind}")
    with before(gateway, folder, client_ca=folder / "clients.pem") as opened:

        def answered(client: str) -> bool:
            with opened.stub(client) as stub:
                return refusal(stub.Describe, metadata=metadata(ANN))[0] == "OK"

        assert answered("client")
        assert not answered("late")
        shutil.copyfile(folder / "next" / "ca.pem", folder / "copy.pem")
        (folder / "copy.pem").replace(folder / "clients.pem")
        wait_until(lambda: answered("late"))
        assert not answered("client")


def test_the_files_of_a_configuration_of_ones_own(gateway: Gateway, own: Any) -> None:
    import json

    from serving.envoy.configuration import configuration
    from serving.envoy.process import find_envoy, validate
    from serving.envoy.tls import certificates

    folder, _ = own
    with before(gateway, folder) as opened:
        options = opened.options
    validate(options, find_envoy(), renewed=True)
    text = json.dumps(configuration(options, folder / "renewals"))
    assert str(folder / "server.key") not in text
    assert str(folder / "renewals" / "certificate.json") in text
    assert str(folder / "server.key") in json.dumps(certificates(options))
