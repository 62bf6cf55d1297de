"""One real Triton for the tests that only ask it something, and a disk that fills up."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle import Bundle
from serving.server import TritonServer


@pytest.fixture(scope="session")
def toy_server(toy_bundle: Bundle) -> Iterator[TritonServer]:
    """A tritonserver with `toy_bundle`, on free ports. Leave it alive."""
    with TritonServer(toy_bundle, grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
