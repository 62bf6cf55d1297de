"""The client against a gRPC server that plays Triton's protocol: every way an endpoint can fail is one sentence."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from bundle import Bundle, tensors
from bundle.errors import EndpointError, FieldmarkError, InputError
from serving.client.local import LocalInference
from serving.client.remote import TritonInference, explain, parse_url
from tests.serving.triton.played import PlayedTriton, listen


@pytest.fixture
def played(toy_bundle: Bundle) -> PlayedTriton:
    return PlayedTriton(toy_bundle)


@pytest.fixture
def url(played: PlayedTriton) -> Iterator[str]:
    server, address = listen(played)
    yield address
    server.stop(0).wait()


def sentence(problem: pytest.ExceptionInfo[FieldmarkError]) -> str:
    text = str(problem.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def test_connect_learns_the_bundle_from_the_address_alone(toy_bundle: Bundle, url: str) -> None:
    with TritonInference.connect(url, expect_bundle=toy_bundle.bundle_id) as inference:
        assert inference.manifest == toy_bundle.manifest
        assert inference.bundle_id == toy_bundle.bundle_id
        assert inference.triton_version == "9.9.9"
        assert inference.max_batch_size == 64


@pytest.mark.parametrize("network", tensors.NETWORKS)
@pytest.mark.parametrize(("count", "batches"), [(1, [1]), (64, [64]), (65, [64, 1]), (130, [64, 64, 2])])
def test_batches_above_the_limit_are_split_and_joined(
    played: PlayedTriton, toy_bundle: Bundle, url: str, network: str, count: int, batches: list[int]
) -> None:
    images = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    with TritonInference.connect(url) as inference:
        outputs = inference.infer(images, network)
    assert played.batches == batches
    assert list(outputs) == list(tensors.OUTPUTS[network])
    expected = LocalInference(toy_bundle).infer(images, network)
    for tensor in toy_bundle.manifest.networks[network].outputs:
        assert outputs[tensor.name].shape == (count, *tensor.shape)
        assert outputs[tensor.name].dtype == expected[tensor.name].dtype
        np.testing.assert_array_equal(outputs[tensor.name], expected[tensor.name])


def test_an_empty_batch_asks_nobody(played: PlayedTriton, url: str) -> None:
    with TritonInference.connect(url) as inference:
        outputs = inference.infer(np.empty((0, 32, 32, 3), np.uint8), "full")
    assert played.batches == []
    assert outputs["probabilities"].shape == (0, 5)
    assert outputs["is_adversarial"].shape == (0,)
    assert outputs["is_adversarial"].dtype == np.bool_


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((1, 16, 16, 3), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 3, 32, 32), np.uint8),
    ],
)
def test_images_of_another_shape_or_type_are_not_sent(played: PlayedTriton, url: str, images: np.ndarray) -> None:
    with TritonInference.connect(url) as inference, pytest.raises(InputError, match="Nx32x32x3 uint8"):
        inference.infer(images, "full")
    assert played.batches == []


def test_no_server() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(EndpointError) as problem:
        TritonInference.connect(f"127.0.0.1:{port}", timeout=5)
    start = "Start one: fieldmark serve BUNDLE --grpc-port 8001"
    assert sentence(problem) == f"no server answers at 127.0.0.1:{port}. {start}"


def test_a_server_that_comes_back_is_seen_at_once(played: PlayedTriton) -> None:
    """Not only after the pauses that gRPC makes for an older client of the same address."""
    server, url = listen(played)
    with TritonInference.connect(url, timeout=5) as old:
        server.stop(0).wait()
        for _ in range(5):
            with pytest.raises(EndpointError):
                old.infer(np.zeros((1, 32, 32, 3), np.uint8), "full")
            time.sleep(0.05)
        server, url = listen(played, int(url.rpartition(":")[2]))
        with TritonInference.connect(url, timeout=5) as new:
            assert new.infer(np.zeros((1, 32, 32, 3), np.uint8), "full")["p_value"].shape == (1,)
    server.stop(0).wait()


def test_a_proxy_for_the_internet_is_not_asked_for_this_machine(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with TritonInference.connect(url.replace("127.0.0.1", "localhost"), timeout=5) as inference:
        assert inference.triton_version == "9.9.9"


def test_unknown_host() -> None:
    with pytest.raises(EndpointError, match=r"the host of no-such-host\.invalid:8001 cannot be found"):
        TritonInference.connect("no-such-host.invalid", timeout=5)


def test_a_port_that_hangs_up_or_speaks_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(EndpointError, match="does not speak plain gRPC") as problem:
            TritonInference.connect(f"127.0.0.1:{listener.getsockname()[1]}", timeout=5)
        assert "8001" in sentence(problem)
        listener.shutdown(socket.SHUT_RDWR)


def test_a_grpc_server_that_is_no_triton() -> None:
    server, address = listen(None)
    with pytest.raises(EndpointError, match="is a gRPC server, but not a Triton"):
        TritonInference.connect(address)
    server.stop(0).wait()


@pytest.mark.parametrize("what", ["no models", "models without a bundle"])
def test_a_triton_without_a_bundle(played: PlayedTriton, url: str, what: str) -> None:
    if what == "no models":
        played.configs.clear()
    else:
        played.configs["full"].parameters.clear()
    with pytest.raises(EndpointError, match="not one that serves a fieldmark bundle"):
        TritonInference.connect(url)


def test_another_bundle_than_expected(toy_bundle: Bundle, url: str) -> None:
    with pytest.raises(EndpointError) as problem:
        TritonInference.connect(url, expect_bundle="f" * 64)
    assert f"serves bundle {toy_bundle.bundle_id[:12]}, and ffffffffffff is expected" in sentence(problem)


def test_networks_of_different_bundles(played: PlayedTriton, url: str) -> None:
    played.configs["attention"].parameters["bundle_id"].string_value = "0" * 64
    with pytest.raises(EndpointError, match="networks of different bundles"):
        TritonInference.connect(url)


def test_a_network_of_the_bundle_that_is_not_loaded(played: PlayedTriton, url: str) -> None:
    del played.configs["attention"]
    with pytest.raises(EndpointError, match="does not serve network 'attention' of its bundle"):
        TritonInference.connect(url)


def test_a_forged_manifest(played: PlayedTriton, url: str) -> None:
    text = played.configs["full"].parameters["manifest"].string_value
    for config in played.configs.values():
        config.parameters["manifest"].string_value = text.replace("Crimson Bunting", "Crimson Hunting")
    with pytest.raises(EndpointError, match="does not match its bundle id"):
        TritonInference.connect(url)


def test_a_manifest_that_cannot_be_read(played: PlayedTriton, url: str) -> None:
    for config in played.configs.values():
        config.parameters["manifest"].string_value = "{"
    with pytest.raises(EndpointError, match="is not valid JSON"):
        TritonInference.connect(url)


def test_a_manifest_of_a_newer_schema(played: PlayedTriton, url: str) -> None:
    text = played.configs["full"].parameters["manifest"].string_value
    for config in played.configs.values():
        config.parameters["manifest"].string_value = text.replace('"schema":2', '"schema":3')
    with pytest.raises(EndpointError, match=r"schema 2\. Upgrade"):
        TritonInference.connect(url)


def test_a_network_that_is_not_served(url: str) -> None:
    with TritonInference.connect(url) as inference, pytest.raises(EndpointError) as problem:
        inference.infer(np.zeros((1, 32, 32, 3), np.uint8), "spiral")
    assert "serves no network 'spiral'. It serves: " in sentence(problem)


def test_a_server_that_is_too_slow(played: PlayedTriton, url: str) -> None:
    played.before = lambda context: time.sleep(2)
    with TritonInference.connect(url, timeout=0.3) as inference, pytest.raises(EndpointError) as problem:
        inference.infer(np.zeros((1, 32, 32, 3), np.uint8), "full")
    assert "did not answer within 0.3 seconds" in sentence(problem)


@pytest.mark.parametrize(
    "change",
    [
        lambda outputs: {name: value for name, value in outputs.items() if name != "p_value"},
        lambda outputs: {**outputs, "p_value": outputs["p_value"][:0]},
    ],
    ids=["missing", "empty"],
)
def test_an_answer_that_is_not_the_manifests(played: PlayedTriton, url: str, change: Callable[..., Any]) -> None:
    played.change = change
    with TritonInference.connect(url) as inference, pytest.raises(EndpointError) as problem:
        inference.infer(np.zeros((2, 32, 32, 3), np.uint8), "full")
    assert "as 'p_value', not float32 (2,)" in sentence(problem)


# What Triton 2.51 and gRPC really said, and what a person is told.
MESSAGES = [
    ("UNAVAILABLE", "Exceeds maximum queue size", "its queue is full"),
    ("UNAVAILABLE", "Request timeout expired", "waited too long in its queue"),
    ("UNAVAILABLE", "This protocol is restricted, expecting header 'triton-grpc-protocol-x'", "secret header"),
    (
        "UNAVAILABLE",
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host: "
        "Connection refused",
        "no server answers at",
    ),
    (
        "UNAVAILABLE",
        "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:1: Socket closed",
        "does not speak plain gRPC",
    ),
    ("UNAVAILABLE", "errors resolving a:1: [field:hostname lookup error: Domain name not found]", "cannot be found"),
    ("UNAVAILABLE", "Stream removed (Socket closed)", "stopped before it answered"),
    ("UNAVAILABLE", "Stream removed (sendmsg: Broken pipe (32))", "stopped before it answered"),
    ("UNAVAILABLE", "Server is stopping, scheduler for model has stopped accepting new requests", "stopped before"),
    ("UNAVAILABLE", "something new", "is not available (something new)"),
    ("INTERNAL", "Stub process 'full_0_0' is not healthy.", "a worker process of the server at"),
    ("NOT_FOUND", "Request for unknown model: 'full' is not found", "has no ready model of this name"),
    ("UNAVAILABLE", "Request for unknown model: 'full' has no available versions", "has no ready model of this name"),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded", "did not answer within 1.5 seconds"),
    ("UNIMPLEMENTED", "Method not found!", "not a Triton"),
    ("INVALID_ARGUMENT", "unexpected inference input 'img'\nTraceback: /secret/file.py", "input 'img')"),
]


@pytest.mark.parametrize(("status", "message", "expected"), MESSAGES, ids=[message[1][:40] for message in MESSAGES])
def test_each_failure_has_a_sentence_of_its_own(status: str, message: str, expected: str) -> None:
    text = str(explain(f"StatusCode.{status}", message, "HOST:1", 1.5))
    assert expected in text
    assert "HOST:1" in text
    assert "secret" not in text or "secret header" in text


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("localhost:8001", "localhost:8001"),
        ("birds.example.org", "birds.example.org:8001"),
        ("grpc://10.0.0.7:9000/", "10.0.0.7:9000"),
        (" localhost:1 ", "localhost:1"),
        ("[::1]:8001", "[::1]:8001"),
        ("[::1]", "[::1]:8001"),
    ],
)
def test_addresses(typed: str, expected: str) -> None:
    assert parse_url(typed) == expected


@pytest.mark.parametrize(
    "typed", ["", "http://localhost:8000", "localhost:", "localhost:0", "localhost:65536", "a b:1", "::1", ":8001"]
)
def test_what_is_no_address(typed: str) -> None:
    with pytest.raises(EndpointError, match="is not the address of a gRPC server"):
        parse_url(typed)
