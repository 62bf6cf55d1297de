"""What fieldmark.v1 answers is what the bundle's graphs say of the image, in process, on the same pixels."""

import io
import json
import re
import urllib.request
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from bundle import Bundle
from serving.client.local import LocalInference
from serving.client.prediction import Prediction, predictions
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.server import Gateway
from serving.triton.server import TritonServer
from tests.conftest import LABELS, LAYERS, SIZE
from tests.serving.gateway.gateway_thread import encode, metric, running, stub_of

pytestmark = pytest.mark.triton


def expected(bundle: Bundle, data: bytes, network: str, alpha: float | None = None) -> Prediction:
    outputs = LocalInference(bundle).infer(bundle.manifest.image.decode(data)[None], network)
    return predictions(outputs, bundle.manifest, network, alpha=alpha, top=3)[0]


def seconds(duration: Any) -> float:
    return float(duration.seconds + duration.nanos / 1e9)


@pytest.mark.parametrize("network", ["", "full", "attention"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_answer(stub: Any, toy_bundle: Bundle, toy_images: np.ndarray, network: str, kind: str) -> None:
    large = np.repeat(np.repeat(toy_images[0], 9, axis=0), 7, axis=1)  # resized there as it is in training
    for pixels in (toy_images[3], large, np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)):
        data = encode(pixels, kind)
        answer = stub.Classify(v1.ClassifyRequest(image=data, network=network, top_k=3))
        found = expected(toy_bundle, data, network or "full")
        assert [each.label for each in answer.predictions] == [label for label, _ in found.top]
        assert [each.probability for each in answer.predictions] == pytest.approx([p for _, p in found.top], rel=1e-4)
        evidence = answer.adversarial
        assert evidence.score == pytest.approx(found.instance_score, rel=1e-4)
        assert (evidence.p_value, evidence.flagged) == (pytest.approx(found.p_value), found.is_adversarial)
        assert evidence.alpha == 0.05
        assert [each.layer for each in evidence.layers] == list(LAYERS)
        distances = [each.squared_distance for each in evidence.layers]
        assert distances == pytest.approx(list(found.layer_scores), rel=1e-4)
        assert (answer.bundle_id, answer.network) == (toy_bundle.bundle_id, network or "full")
        assert not answer.HasField("explanation")


def test_one_label_unless_more_are_asked_for(stub: Any, toy_images: np.ndarray) -> None:
    assert len(stub.Classify(v1.ClassifyRequest(image=encode(toy_images[0]))).predictions) == 1
    most = stub.Classify(v1.ClassifyRequest(image=encode(toy_images[0]), top_k=len(LABELS)))
    assert {each.label for each in most.predictions} == set(LABELS)


def test_the_callers_alpha_decides(stub: Any, toy_bundle: Bundle, toy_images: np.ndarray) -> None:
    data = encode(toy_images[4])
    p_value = expected(toy_bundle, data, "full").p_value
    assert 0.05 < p_value < 0.99
    for alpha in (p_value - 0.01, p_value + 0.005):
        evidence = stub.Classify(v1.ClassifyRequest(image=data, alpha=alpha)).adversarial
        assert (evidence.flagged, evidence.alpha) == (alpha > p_value, alpha)


def test_times_are_of_this_request(stub: Any, toy_images: np.ndarray) -> None:
    times = stub.Classify(v1.ClassifyRequest(image=encode(toy_images[0]))).times
    stages = [seconds(getattr(times, stage)) for stage in ("queue", "decode", "inference")]
    assert min(stages) > 0
    assert sum(stages) <= seconds(times.total)


def test_the_pictures_behind_an_answer(stub: Any, toy_bundle: Bundle, toy_images: np.ndarray) -> None:
    data = encode(toy_images[0])
    explanation = stub.Classify(v1.ClassifyRequest(image=data, explain=True)).explanation
    outputs = LocalInference(toy_bundle).infer(toy_images[:1], "full")
    with Image.open(io.BytesIO(explanation.attention_png)) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (SIZE, SIZE))
        lit = np.asarray(picture).reshape(4, SIZE // 4, 4, SIZE // 4).mean(axis=(1, 3))
    assert np.unravel_index(lit.argmax(), lit.shape) == np.unravel_index(outputs["attention"][0].argmax(), (4, 4))
    indices = outputs["prototype_indices"][0]
    assert len(explanation.prototypes) == len(indices)
    for shown, index, similarity in zip(
        explanation.prototypes, indices, outputs["prototype_similarities"][0], strict=True
    ):
        prototype = toy_bundle.manifest.prototypes[index]
        assert shown.label == LABELS[prototype.label]
        assert shown.similarity == pytest.approx(similarity, rel=1e-3)
        assert (shown.box.left, shown.box.top, shown.box.right, shown.box.bottom) == prototype.box
        original = toy_bundle.manifest.image.read(toy_bundle.file(prototype.image))
        with Image.open(io.BytesIO(shown.png)) as picture:
            np.testing.assert_array_equal(np.asarray(picture), original)


def test_a_network_without_prototypes_shows_its_attention(stub: Any, toy_images: np.ndarray) -> None:
    asked = v1.ClassifyRequest(image=encode(toy_images[0]), network="attention", explain=True)
    explanation = stub.Classify(asked).explanation
    assert explanation.attention_png.startswith(b"\x89PNG")
    assert not explanation.prototypes


def test_describe(stub: Any, toy_bundle: Bundle) -> None:
    about = stub.Describe(v1.DescribeRequest())
    assert (about.name, about.bundle_id, tuple(about.labels)) == ("toy", toy_bundle.bundle_id, LABELS)
    assert [(each.name, each.alpha, each.serving) for each in about.networks] == [
        ("full", 0.05, True),
        ("attention", 0.05, True),
    ]
    assert {each.smallest_alpha for each in about.networks} == {0.01}
    assert (about.limits.image_bytes, about.limits.pixels, about.limits.stream_window) == (2**24, 1_000_000, 8)


def test_the_callers_request_id_comes_back(stub: Any, toy_images: np.ndarray) -> None:
    asked = v1.ClassifyRequest(image=encode(toy_images[0]))
    assert stub.Classify(asked, metadata=(("x-request-id", "mine-1"),)).request_id == "mine-1"
    made = {stub.Classify(asked, metadata=(("x-request-id", "i" * 129),)).request_id, stub.Classify(asked).request_id}
    assert len(made) == 2
    assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in made)


def test_reflection_lists_the_services(gateway: Gateway) -> None:
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(gateway.url) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"fieldmark.v1.Fieldmark", "grpc.health.v1.Health"} <= set(database.get_services())
        assert database.FindFileContainingSymbol("fieldmark.v1.Fieldmark").package == "fieldmark.v1"


def test_what_prometheus_sees(toy_server: TritonServer, toy_images: np.ndarray) -> None:
    noise = encode(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    with running(toy_server.grpc_url) as gateway, stub_of(gateway) as stub:
        for data in (encode(toy_images[0]), noise, noise):
            stub.Classify(v1.ClassifyRequest(image=data))
        with pytest.raises(grpc.RpcError):
            stub.Classify(v1.ClassifyRequest())
        ok = {"method": "Classify", "code": "OK", "reason": ""}
        empty = {"method": "Classify", "code": "INVALID_ARGUMENT", "reason": "IMAGE_EMPTY"}
        assert metric(gateway, "requests_total", **ok) == 3
        assert metric(gateway, "requests_total", **empty) == 1
        assert metric(gateway, "flagged_total", network="full") == 2
        assert metric(gateway, "alpha_total", network="full") == pytest.approx(0.15)
        assert metric(gateway, "p_value_count", network="full") == 3
        assert metric(gateway, "p_value_bucket", network="full", le="0.02") == 2
        assert metric(gateway, "seconds_count", stage="total") == 3
        assert metric(gateway, "serving", network="full") == 1
        with urllib.request.urlopen(f"http://127.0.0.1:{gateway.metrics_port}/metrics", timeout=10) as page:
            assert b'fieldmark_gateway_flagged_total{network="full"} 2.0' in page.read()


def test_the_log_is_json_and_holds_no_secret(toy_server: TritonServer, toy_images: np.ndarray) -> None:
    log = io.StringIO()
    secret = (("x-api-key", "s3cr3t-key"), ("authorization", "Bearer s3cr3t-token"), ("x-fieldmark-key-name", "shop"))
    with running(toy_server.grpc_url, log=log) as gateway, stub_of(gateway) as stub:
        stub.Classify(v1.ClassifyRequest(image=encode(toy_images[0])), metadata=secret)
        with pytest.raises(grpc.RpcError):
            stub.Classify(v1.ClassifyRequest(image=b"\x89PNG s3cr3t-image"), metadata=secret)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert [(each["code"], each["key_name"]) for each in requests] == [("OK", "shop"), ("INVALID_ARGUMENT", "shop")]
    assert requests[0]["flagged"] is False
    assert requests[0]["bytes"] == len(encode(toy_images[0]))
    assert [each["event"] for each in lines if each["event"] != "network"][:2] == ["bundle", "started"]
    assert "s3cr3t" not in log.getvalue()
