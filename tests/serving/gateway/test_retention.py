"""What is kept of requests over the wire: flagged images, audit lines; and that keeping them never costs an answer."""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from bundle import Bundle
from serving.gateway.audit import AuditOptions
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.retention import RetentionOptions
from serving.quarantine.options import QuarantineOptions
from serving.quarantine.reader import entries, read_image
from serving.triton.server import TritonServer
from tests.serving.disks import fill
from tests.serving.gateway.gateway_thread import encode, metric, running, stub_of

pytestmark = pytest.mark.triton

SHOP = (("x-fieldmark-key-name", "shop"), ("x-api-key", "s3cr3t-key"), ("x-request-id", "mine-1"))


def noise(seed: int = 0, side: int = 32) -> bytes:
    """What the toy flags."""
    return encode(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def ask(image: bytes, **fields: Any) -> v1.ClassifyRequest:
    return v1.ClassifyRequest(image=image, **fields)


def audited(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def quarantine(root: Path | str, **options: Any) -> RetentionOptions:
    return RetentionOptions(quarantine=QuarantineOptions(root=str(root), **options))


def test_flagged_images_are_kept_with_their_answers(
    toy_server: TritonServer, toy_bundle: Bundle, toy_images: np.ndarray, tmp_path: Path
) -> None:
    clean, bad, streamed = encode(toy_images[0]), noise(), noise(1)
    with running(toy_server.grpc_url, retention=quarantine(tmp_path)) as gateway, stub_of(gateway) as stub:
        stub.Classify(ask(clean), metadata=SHOP)
        answer = stub.Classify(ask(bad), metadata=SHOP)
        requests = iter([v1.ClassifyStreamRequest(id="a", request=ask(streamed, network="attention"))])
        (other,) = stub.ClassifyStream(requests, metadata=SHOP)
        with pytest.raises(grpc.RpcError):
            stub.Classify(ask(b"\x89PNG no image"))
    assert metric(gateway, "quarantine_written_total", reason="flagged") == 2
    assert metric(gateway, "quarantine_written_total", reason="sample") == 0
    assert metric(gateway, "quarantine_dropped_total") == 0
    assert metric(gateway, "quarantine_bytes") == sum(each.stat().st_size for each in tmp_path.rglob("*.*"))
    first, second = [found.entry for found in entries(str(tmp_path)) if found.entry]
    assert [read_image(str(tmp_path), entry) for entry in (first, second)] == [bad, streamed]
    for entry, told in ((first, answer), (second, other.response)):
        assert (entry.bundle_id, entry.network, entry.alpha) == (toy_bundle.bundle_id, told.network, 0.05)
        assert (entry.request_id, entry.caller, entry.reason) == ("mine-1", "shop", "flagged")
        assert entry.label == told.predictions[0].label
        assert entry.probability == pytest.approx(told.predictions[0].probability)
        assert entry.score == pytest.approx(told.adversarial.score)
        assert (entry.p_value, entry.flagged) == (pytest.approx(told.adversarial.p_value), True)
        assert [(each.layer, each.squared_distance) for each in entry.layers] == [
            (each.layer, pytest.approx(each.squared_distance)) for each in told.adversarial.layers
        ]


def test_the_alpha_that_was_asked_for_decides(toy_server: TritonServer, toy_images: np.ndarray, tmp_path: Path) -> None:
    clean = encode(toy_images[0])
    with running(toy_server.grpc_url, retention=quarantine(tmp_path)) as gateway, stub_of(gateway) as stub:
        assert stub.Classify(ask(clean, alpha=0.9999)).adversarial.flagged
        assert not stub.Classify(ask(clean)).adversarial.flagged
    (found,) = entries(str(tmp_path))
    assert found.entry
    assert found.entry.alpha == 0.9999


def test_a_sample_of_everything(toy_server: TritonServer, toy_images: np.ndarray, tmp_path: Path) -> None:
    with running(toy_server.grpc_url, retention=quarantine(tmp_path, sample=1.0)) as gateway, stub_of(gateway) as stub:
        for image in (encode(toy_images[0]), noise()):
            stub.Classify(ask(image))
    assert [(f.entry.reason, f.entry.drawn) for f in entries(str(tmp_path)) if f.entry] == [
        ("sample", True),
        ("flagged", True),
    ]


def test_a_full_disk_costs_the_copy_and_the_line_and_not_the_answer(toy_server: TritonServer, small_disk: Path) -> None:
    log = io.StringIO()
    kept = RetentionOptions(
        quarantine=QuarantineOptions(root=str(small_disk / "q")), audit=AuditOptions(path=small_disk / "audit.log")
    )
    with running(toy_server.grpc_url, retention=kept, log=log) as gateway, stub_of(gateway) as stub:
        fill(small_disk, 0)
        for seed in range(20):
            assert stub.Classify(ask(noise(seed, side=64))).adversarial.flagged
    assert metric(gateway, "quarantine_dropped_total") == 20
    assert metric(gateway, "quarantine_written_total", reason="flagged") == 0
    assert metric(gateway, "lost_audit_lines_total") == 20
    assert metric(gateway, "requests_total", method="Classify", code="OK", reason="") == 20
    said = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [each["cause"] for each in said if each["event"] == "quarantine"] == [
        "no space left on the quarantine's disk"
    ], "once a minute"
    assert [each["cause"] for each in said if each["event"] == "audit"] == ["no space left on device"]
    assert str(small_disk) not in log.getvalue()


def test_a_store_out_of_reach_costs_the_copy_and_not_the_answer(
    toy_server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    log = io.StringIO()
    with running(toy_server.grpc_url, retention=quarantine("s3://evidence/q"), log=log) as gateway:
        with stub_of(gateway) as stub:
            assert stub.Classify(ask(noise())).adversarial.flagged
        assert metric(gateway, "quarantine_written_total", reason="flagged") == 0
    assert metric(gateway, "quarantine_dropped_total") == 1
    assert "evidence" not in log.getvalue()


# the audit log


def test_every_request_has_a_line(toy_server: TritonServer, toy_bundle: Bundle, tmp_path: Path) -> None:
    audit, bad = tmp_path / "audit.log", noise()
    kept = RetentionOptions(audit=AuditOptions(path=audit))
    with running(toy_server.grpc_url, retention=kept) as gateway, stub_of(gateway) as stub:
        answer = stub.Classify(ask(bad), metadata=SHOP)
        for refused in (ask(b"\x89PNG s3cr3t-image"), ask(b""), ask(bad, network="s3cr3t")):
            with pytest.raises(grpc.RpcError):
                stub.Classify(refused, metadata=SHOP)
        stub.Describe(v1.DescribeRequest())
        list(stub.ClassifyStream(iter([v1.ClassifyStreamRequest(id="a", request=ask(bad))]), metadata=SHOP))
    first, damaged, empty, unknown, described, one, stream = audited(audit)
    digest = hashlib.sha256(bad).hexdigest()
    stages = first.pop("ms")
    assert set(stages) == {"queue", "decode", "inference", "total"}
    assert 0 < stages["inference"] < stages["total"]
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "request_id": "mine-1",
        "caller": "shop",
        "method": "Classify",
        "network": "full",
        "code": "OK",
        "reason": "",
        "bundle_id": toy_bundle.bundle_id,
        "label": answer.predictions[0].label,
        "p_value": pytest.approx(answer.adversarial.p_value),
        "alpha": 0.05,
        "flagged": True,
        "bytes": len(bad),
        "sha256": digest,
    }
    assert (damaged["reason"], damaged["code"]) == ("IMAGE_REFUSED", "INVALID_ARGUMENT")
    assert damaged["sha256"] == hashlib.sha256(b"\x89PNG s3cr3t-image").hexdigest()
    assert "flagged" not in damaged
    assert (empty["reason"], "sha256" in empty) == ("IMAGE_EMPTY", False)
    assert (unknown["reason"], unknown["network"], unknown["sha256"]) == ("NETWORK_UNKNOWN", "", digest)
    assert (described["method"], described["code"]) == ("Describe", "OK")
    assert (one["method"], one["sha256"], one["request_id"]) == ("ClassifyStream/request", digest, "mine-1")
    assert (stream["method"], "sha256" in stream) == ("ClassifyStream", False)
    assert "s3cr3t" not in audit.read_text()


def test_a_log_that_is_taken_away_is_written_anew(toy_server: TritonServer, tmp_path: Path) -> None:
    audit = tmp_path / "audit.log"
    kept = RetentionOptions(audit=AuditOptions(path=audit))
    with running(toy_server.grpc_url, retention=kept) as gateway, stub_of(gateway) as stub:
        stub.Describe(v1.DescribeRequest())
        while not audit.stat().st_size:
            pass
        os.rename(audit, tmp_path / "audit.moved")
        stub.Describe(v1.DescribeRequest())
    assert [len(audited(path)) for path in (tmp_path / "audit.moved", audit)] == [1, 1]


def test_it_is_rotated(toy_server: TritonServer, tmp_path: Path) -> None:
    kept = RetentionOptions(audit=AuditOptions(path=tmp_path / "audit.log", bytes=4096, files=2))
    with running(toy_server.grpc_url, retention=kept) as gateway, stub_of(gateway) as stub:
        for _ in range(60):
            stub.Describe(v1.DescribeRequest())
    assert sorted(os.listdir(tmp_path)) == ["audit.log", "audit.log.1"]
    assert all(path.stat().st_size <= 4096 for path in tmp_path.iterdir())
    assert 20 < sum(len(audited(path)) for path in tmp_path.iterdir()) < 60
