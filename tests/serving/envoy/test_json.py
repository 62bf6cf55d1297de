"""fieldmark.v1 as JSON, with curl, through a real Envoy."""

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from serving.gateway.generated import fieldmark_pb2 as v1
from tests.serving.envoy.conftest import IMAGE_BYTES
from tests.serving.envoy.door import ANN, Door, metadata
from tests.serving.gateway.gateway_thread import encode

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here"),
]
TOO_MANY = IMAGE_BYTES // 3 * 4 + (1 << 20) + 10  # all of it is read, so that curl has an answer to read
GOOD = encode(np.full((40, 40, 3), 140, np.uint8))


def curl(door: Door, path: str, body: str | None = None, key: str = ANN.secret) -> tuple[int, Any]:
    """(status, answer) of a call."""
    sent = ["-H", "content-type: application/json", "--data-binary", "@-"] if body is not None else []
    command = ["curl", "-sS", "--cacert", door.folder / "ca.pem", "-H", f"x-api-key: {key}", "-w", "\n%{http_code}"]
    run = subprocess.run(
        [*command, *sent, f"https://{door.url}{path}"],
        input=body,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    answer, _, status = run.stdout.rpartition("\n")
    return int(status), json.loads(answer)


def request(image: bytes, **asked: Any) -> str:
    return json.dumps({"image": base64.b64encode(image).decode(), **asked})


def test_the_same_answer_as_over_grpc(door: Door) -> None:
    status, found = curl(door, "/v1/classify", request(GOOD, top_k=2, explain=True))
    assert status == 200
    assert isinstance(found["adversarial"]["flagged"], bool), "also where it is false"
    with door.stub() as stub:
        asked = v1.ClassifyRequest(image=GOOD, top_k=2, explain=True)
        expected = stub.Classify(asked, metadata=metadata(ANN), timeout=30)
    answer = json_format.ParseDict(found, v1.ClassifyResponse())
    for each in (answer, expected):  # what differs from call to call
        each.ClearField("times")
        each.ClearField("request_id")
    assert answer == expected
    assert len(answer.explanation.attention_png) > 50
    as_in_the_proto = json_format.MessageToDict(
        answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    assert set(found) - {"times", "request_id"} == set(as_in_the_proto) - {"request_id"}
    assert set(found["adversarial"]) == set(as_in_the_proto["adversarial"]) > {"p_value"}


def test_what_is_served(door: Door) -> None:
    status, found = curl(door, "/v1/describe")
    assert (status, found["name"], found["limits"]["image_bytes"]) == (200, "toy", str(IMAGE_BYTES))


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "words"),
    [
        ("/v1/classify", request(b"junk"), 400, 3, "not an image"),
        ("/v1/classify", request(GOOD, network="none"), 404, 5, "none"),
        ("/v1/classify", "{not json", 400, 3, "Expected"),
        ("/v1/classify", request(GOOD, colour="red"), 200, None, ""),
        ("/v1/classify?key=k", request(GOOD), 400, 3, "key"),
        ("/v1/classify", '{"image": "' + "A" * TOO_MANY, 413, 8, "too large"),
        ("/v1/classify", None, 404, 12, "no such method or path"),
        ("/v1/classify/", request(GOOD), 404, 12, "no such method or path"),
        ("/v1/%2e%2e/v1/describe", None, 200, None, ""),
        ("/v1%2fdescribe", None, 400, 3, ""),
        ("/fieldmark.v1.Fieldmark/Classify", request(GOOD), 404, 12, "no such method or path"),
    ],
)
def test_a_bad_request(door: Door, path: str, body: str | None, status: int, code: int | None, words: str) -> None:
    found, answer = curl(door, path, body)
    assert (found, answer.get("code")) == (status, code)
    assert words in answer.get("message", "")


def test_the_reason_goes_along(door: Door) -> None:
    details = curl(door, "/v1/classify", request(b"junk"))[1]["details"]
    assert details[0]["reason"] == "IMAGE_REFUSED"


def test_no_key(door: Door) -> None:
    assert curl(door, "/v1/describe", key="z" * 30) == (
        401,
        {"code": 16, "message": "a key is needed: give it as x-api-key"},
    )


def test_the_example_of_the_page(door: Door, tmp_path: Path) -> None:
    (tmp_path / "bird.png").write_bytes(GOOD)
    example = Path(__file__).parents[3] / "docs" / "examples" / "classify-json.sh"
    variables = {"FIELDMARK_KEY": ANN.secret, "CURL_CA_BUNDLE": str(door.folder / "ca.pem"), "PATH": "/usr/bin:/bin"}
    command = [example, tmp_path / "bird.png", door.url]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=variables)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["predictions"]


def test_the_go_example_of_the_page(door: Door, tmp_path: Path) -> None:
    if (go := shutil.which("go")) is None:
        pytest.skip("go is not installed here")
    example = Path(__file__).parents[3] / "docs" / "examples" / "classify.go"
    build = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "CGO_ENABLED": "0"}
    subprocess.run([go, "build", "-o", tmp_path / "classify", example], env=build, timeout=280, check=True)
    variables = {"FIELDMARK_KEY": ANN.secret, "SSL_CERT_FILE": str(door.folder / "ca.pem")}
    (tmp_path / "bird.png").write_bytes(GOOD)
    command = [tmp_path / "classify", tmp_path / "bird.png", door.url]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=variables)
    assert run.returncode == 0, run.stderr
    found = curl(door, "/v1/classify", request(GOOD))[1]["adversarial"]
    assert found["p_value"] > 0
    assert run.stdout.splitlines()[-1] == f"p-value {found['p_value']:.4f}, flagged: {str(found['flagged']).lower()}"
    (tmp_path / "bird.png").write_bytes(b"no image")
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=variables)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("400 Bad Request: not an image")
