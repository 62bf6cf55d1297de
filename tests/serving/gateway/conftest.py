"""One gateway before the one real Triton, for the tests that only ask it something."""

from collections.abc import Iterator
from typing import Any

import pytest

from bundle import Bundle
from serving.gateway.server import Gateway
from serving.triton.server import TritonServer
from tests.serving.gateway.gateway_thread import running, stub_of
from tests.serving.triton.played import PlayedTriton, listen


@pytest.fixture(scope="session")
def gateway(toy_server: TritonServer, toy_bundle: Bundle) -> Iterator[Gateway]:
    """A gateway with the limits that it has by default, a longest time and a pixel limit that tests can reach."""
    with running(toy_server.grpc_url, bundle=toy_bundle, timeout=20.0, pixels=1_000_000) as served:
        yield served


@pytest.fixture(scope="session")
def stub(gateway: Gateway) -> Iterator[Any]:
    with stub_of(gateway) as made:
        yield made


@pytest.fixture
def played(toy_bundle: Bundle) -> PlayedTriton:
    """A Triton that can be slow, hang or fail as a test wants it."""
    return PlayedTriton(toy_bundle)


@pytest.fixture
def played_url(played: PlayedTriton) -> Iterator[str]:
    server, address = listen(played)
    yield address
    server.stop(0).wait()
