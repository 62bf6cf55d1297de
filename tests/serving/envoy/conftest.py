"""A gateway before the one real Triton, and an Envoy before it, for the tests that only ask them something."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle import Bundle
from serving.gateway.server import Gateway
from serving.triton.server import TritonServer
from tests.serving.envoy.door import Door, before
from tests.serving.gateway.certificates import make_certificate
from tests.serving.gateway.gateway_thread import running

IMAGE_BYTES = 1 << 20


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, certificates that it has signed, of which `late` is over, and one that signs itself."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = make_certificate(folder, "ca")
    for name, hours in (("server", 1.0), ("client", 1.0), ("late", -1.0)):
        make_certificate(folder, name, authority, hours=hours)
    make_certificate(folder, "stranger")
    return folder


@pytest.fixture(scope="session")
def gateway_log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="session")
def gateway(toy_server: TritonServer, toy_bundle: Bundle, gateway_log: io.StringIO) -> Iterator[Gateway]:
    options = {"image_bytes": IMAGE_BYTES, "timeout": 20.0}
    with running(toy_server.grpc_url, bundle=toy_bundle, log=gateway_log, **options) as served:
        yield served


@pytest.fixture(scope="session")
def door(gateway: Gateway, certificates: Path) -> Iterator[Door]:
    with before(gateway, certificates, rate=1000, burst=1000) as opened:
        yield opened
