"""One real Triton for the tests that only ask it something, and a disk that fills up."""

from collections.abc import Iterator

import pytest

from bundle import Bundle
from serving.triton.server import TritonServer


@pytest.fixture(scope="session")
def toy_server(toy_bundle: Bundle) -> Iterator[TritonServer]:
    """A tritonserver with `toy_bundle`, on free ports. Leave it alive."""
    with TritonServer(toy_bundle, grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server
