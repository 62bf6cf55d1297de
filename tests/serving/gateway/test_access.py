"""Who may reach Triton: the gateway, with a secret from a file, and nobody else."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bundle import Bundle
from bundle.errors import EndpointError, OptionError
from serving.client.remote import TritonInference
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.upstream import TritonAddress, read_header
from serving.triton.config import Settings
from serving.triton.repository import write_repository
from tests.serving.gateway.certificates import make_certificate
from tests.serving.gateway.gateway_thread import encode, running, stub_of
from tests.serving.triton.process import Triton, triton_over

GOOD = encode(np.full((40, 40, 3), 140, np.uint8))
EVERYTHING = "health,metadata,inference,shared-memory,model-config,model-repository,statistics,trace,logging"


@pytest.fixture(scope="module")
def models(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models") / "models"
    write_repository(toy_bundle, models, Settings(cores=1))
    return models


def answers(address: TritonAddress, bundle: Bundle) -> bool:
    with running(address) as gateway, stub_of(gateway) as stub:
        return bool(stub.Classify(v1.ClassifyRequest(image=GOOD)).bundle_id == bundle.bundle_id)


@pytest.mark.triton
def test_a_triton_behind_a_secret_header(toy_bundle: Bundle, models: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("Fieldmark-Gate=k3y=with=signs\n")
    with triton_over(models, f"--grpc-restricted-protocol={EVERYTHING}:fieldmark-gate=k3y=with=signs") as triton:
        assert answers(TritonAddress(url=triton.url, header=read_header(secret)), toy_bundle)
        with pytest.raises(EndpointError, match="only holders of its secret header"), running(triton.url):
            pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    authority = make_certificate(tmp_path, "ca")
    make_certificate(tmp_path, "server", authority)
    make_certificate(tmp_path, "client", authority)
    return tmp_path


@pytest.fixture
def mutual(models: Path, folder: Path) -> Iterator[Triton]:
    """A Triton that answers only holders of a certificate; no secret stands in its process list."""
    files = {"server-cert": "server.pem", "server-key": "server.key", "root-cert": "ca.pem"}
    flags = [f"--grpc-{name}={folder / file}" for name, file in files.items()]
    with triton_over(models, "--grpc-use-ssl=1", "--grpc-use-ssl-mutual=1", *flags) as triton:
        yield triton


@pytest.mark.triton
def test_a_triton_with_mutual_tls(toy_bundle: Bundle, mutual: Triton, folder: Path) -> None:
    assert answers(TritonAddress(url=mutual.url, tls=folder), toy_bundle)
    listed = Path(f"/proc/{mutual.process.pid}/cmdline").read_bytes()
    assert (folder / "client.key").read_bytes() not in listed
    for reach in (
        lambda: TritonInference.connect(mutual.url, timeout=3),
        lambda: running(mutual.url).__enter__(),
    ):
        with pytest.raises(EndpointError):
            reach()


@pytest.mark.hostile
@pytest.mark.parametrize(
    "text", ["", "no separator", "=value", "name=", "a=b\nc=d", "a=" + "x" * 5000, "ä=b", "a=\x1b[31m"]
)
def test_a_secret_file_that_holds_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "secret"
    file.write_text(text)
    with pytest.raises(OptionError, match="does not hold one line NAME=VALUE") as problem:
        read_header(file)
    assert "x" * 9 not in str(problem.value).replace(str(tmp_path), ""), "and what it holds is not shown"


@pytest.mark.hostile
def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such file"):
        read_header(tmp_path / "none")
    with (
        pytest.raises(OptionError, match=r"ca\.pem: no such file"),
        running(TritonAddress(url="localhost:1", tls=tmp_path)),
    ):
        pass


@pytest.mark.hostile
def test_certificates_that_are_none(tmp_path: Path) -> None:
    for name in ("ca.pem", "client.pem", "client.key"):
        (tmp_path / name).write_bytes(os.urandom(100))
    with pytest.raises(EndpointError), running(TritonAddress(url="localhost:1", tls=tmp_path), probe_seconds=0.5):
        pass
