"""What the answers of a running gateway say of drift, over the wire; and that a new bundle begins anew."""

import asyncio
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle import Bundle, Manifest, detector_file
from bundle.manifest import PER_CLASS
from serving.gateway import server
from serving.gateway.drift import QUESTION, DriftMeters
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.journal import Journal
from serving.gateway.metrics import Metrics
from serving.gateway.upstream import TritonAddress
from serving.promise import WINDOW, Promise
from serving.triton.server import TritonServer
from tests.conftest import CALIBRATION, LABELS, draw_toy
from tests.serving.gateway.gateway_thread import encode, metric, running, stub_of
from tests.serving.triton.played import PlayedTriton, listen
from tests.serving.upkeep.remade import remade

MOST = Promise(CALIBRATION, 0.05).most


class Meters:
    """DriftMeters of a bundle, and what they say."""

    def __init__(self) -> None:
        self.metrics, self._log = Metrics(), io.StringIO()
        self._journal = Journal(self._log)
        self.meters = DriftMeters(self.metrics, self._journal)

    def see(self, bundle_id: str, p_value: float, *, network: str = "full", label: str = LABELS[0]) -> None:
        self.meters.see(
            v1.ClassifyResponse(
                predictions=[v1.Prediction(label=label, probability=1.0)],
                adversarial=v1.Adversarial(p_value=p_value, flagged=False, alpha=0.5),
                network=network,
                bundle_id=bundle_id,
            )
        )

    def value(self, name: str, network: str = "full") -> float:
        return float(self.metrics.registry.get_sample_value(f"fieldmark_gateway_{name}", {"network": network}) or 0.0)

    def said(self, event: str) -> list[dict[str, Any]]:
        self._journal.close()
        return [each for line in self._log.getvalue().splitlines() if (each := json.loads(line))["event"] == event]


@pytest.mark.triton
def test_images_of_another_kind_are_seen_and_said(toy_server: TritonServer, toy_bundle: Bundle) -> None:
    log = io.StringIO()
    noise = [
        encode(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)) for seed in range(MOST + 1)
    ]
    with running(toy_server.grpc_url, bundle=toy_bundle, log=log) as gateway, stub_of(gateway) as stub:
        assert metric(gateway, "drift_log10", network="full") == 0
        for image in noise:
            stub.Classify(v1.ClassifyRequest(image=image, alpha=0.5))
        assert metric(gateway, "promises_broken_total", network="full") == 1
        assert metric(gateway, "drift_highest_log10", network="full") > 2
        assert metric(gateway, "promises_broken_total", network="attention") == 0
        assert metric(gateway, "drift_highest_log10", network="attention") == 0
    said = [json.loads(line) for line in log.getvalue().splitlines()]
    (broken,) = [each for each in said if each["event"] == "promise_broken"]
    assert (broken["network"], broken["flagged"], broken["images"], broken["alpha"]) == (
        "full",
        MOST + 1,
        MOST + 1,
        0.05,
    )
    assert broken["sentence"].endswith(QUESTION)
    assert [each["network"] for each in said if each["event"] == "drift"] == ["full"]


@pytest.mark.triton
def test_clean_images_say_nothing(toy_server: TritonServer, toy_bundle: Bundle) -> None:
    log = io.StringIO()
    with running(toy_server.grpc_url, bundle=toy_bundle, log=log) as gateway, stub_of(gateway) as stub:
        for seed in range(150):
            stub.Classify(v1.ClassifyRequest(image=encode(draw_toy(seed % len(LABELS), 5000 + seed))))
        assert metric(gateway, "promises_broken_total", network="full") == 0
        assert metric(gateway, "drift_log10", network="full") != 0
        assert metric(gateway, "drift_highest_log10", network="full") < 2
    assert not [line for line in log.getvalue().splitlines() if "promise_broken" in line or '"drift"' in line]


def test_the_sentence_comes_once_in_ten_minutes_and_the_counter_goes_on(toy_bundle: Bundle) -> None:
    meters = Meters()
    meters.meters.begin(toy_bundle.manifest)
    for _ in range(3 * WINDOW):
        meters.see(toy_bundle.bundle_id, 0.01)
    assert meters.value("promises_broken_total") == 3 * WINDOW // (MOST + 1)
    assert len(meters.said("promise_broken")) == 1
    assert len(meters.said("drift")) == 1


def test_the_callers_alpha_is_not_the_promises(toy_bundle: Bundle) -> None:
    """Who asks for alpha 0.5 is told of half of his images that they are flagged, and that is as it should be."""
    meters = Meters()
    meters.meters.begin(toy_bundle.manifest)
    for place in range(2 * WINDOW):
        meters.see(toy_bundle.bundle_id, (1 + place * 37 % 100) / 100)
    assert meters.value("promises_broken_total") == 0


def test_a_new_bundle_begins_anew_and_the_old_ones_answers_do_not_count(
    toy_bundle: Bundle, make_toy_bundle: Any, tmp_path: Path
) -> None:
    meters, other = Meters(), make_toy_bundle(tmp_path / "other", name="other")
    meters.meters.learn(toy_bundle)
    meters.meters.begin(toy_bundle.manifest)
    for _ in range(MOST):
        meters.see(toy_bundle.bundle_id, 0.01)
    high = meters.value("drift_highest_log10")
    assert high > 2
    meters.meters.learn(toy_bundle)
    meters.meters.begin(toy_bundle.manifest)
    assert meters.value("drift_highest_log10") == high, "the same bundle, seen again, goes on"
    meters.meters.learn(other)
    meters.meters.begin(other.manifest)
    assert (meters.value("drift_highest_log10"), meters.value("drift_log10")) == (0, 0)
    for _ in range(MOST):
        meters.see(toy_bundle.bundle_id, 0.01)  # still in work when the bundle changed
    assert meters.value("drift_highest_log10") == 0
    for _ in range(2):  # the first image of all wins and loses nothing
        meters.see(other.bundle_id, 0.01)
    assert meters.value("promises_broken_total") == 0
    assert meters.value("drift_log10") != 0


def test_p_values_by_class_need_to_know_how_many_scores_are_behind_them(toy_bundle: Bundle, tmp_path: Path) -> None:
    """Each class has an urn of its own: 9 scores for the first label, 90 for the second, none for the others."""
    found = toy_bundle.manifest
    detector = replace(found.networks["full"].detector, calibration=PER_CLASS, calibration_n=9)
    network = replace(found.networks["full"], detector=detector)
    manifest = replace(found, networks={"full": network})
    bare = Meters()
    bare.meters.begin(manifest)
    assert math.isnan(bare.value("drift_log10"))
    bare.see(manifest.bundle_id, 0.1)
    assert math.isnan(bare.value("drift_log10"))

    shutil.copytree(toy_bundle.path, tmp_path / "bundle")
    scores = np.arange(99, dtype=np.float32)
    np.savez(tmp_path / "bundle" / detector.file, calibration=scores, calibration_classes=np.repeat([0, 1], (9, 90)))
    meters = Meters()
    meters.meters.learn(_Folder(tmp_path / "bundle", manifest))  # type: ignore[arg-type]
    meters.meters.begin(manifest)
    urns = meters.meters._meters["full"].urns
    assert {label: urn.n for label, urn in urns.items()} == {LABELS[0]: 9, LABELS[1]: 90}
    for _ in range(20):
        meters.see(manifest.bundle_id, 0.1, label=LABELS[0])  # its smallest
        meters.see(manifest.bundle_id, 1 / 91, label=LABELS[1])
    assert meters.value("drift_highest_log10") > 2
    before = meters.value("drift_log10")
    meters.see(manifest.bundle_id, 1.0, label=LABELS[2])
    assert meters.value("drift_log10") == before, "nothing is known of this class"


def test_no_answer_waits_for_a_file_that_is_read(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls are answered in the event loop's thread, so that nothing is read there, at the start and at a move."""
    in_the_loop: list[bool] = []

    def noted(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def reading(path: Path) -> Any:
            in_the_loop.append(asyncio._get_running_loop() is not None)
            return read(path)

        return reading

    monkeypatch.setattr(detector_file, "read_arrays", noted(detector_file.read_arrays))
    monkeypatch.setattr(server, "read_tally", noted(server.read_tally))
    sizes = io.BytesIO()
    np.savez(sizes, calibration=np.arange(99, dtype=np.float32), calibration_classes=np.repeat([0, 1], (9, 90)))
    found = toy_bundle.manifest
    networks, files = {}, {}
    for name, info in found.networks.items():
        networks[name] = replace(info, detector=replace(info.detector, calibration=PER_CLASS, calibration_n=9))
        files[info.detector.file] = sizes.getvalue()
    fields = {"networks": networks, "files": files}
    bundles = [Bundle.open(remade(toy_bundle, tmp_path / name, name=name, **fields)) for name in ("a", "b")]
    listeners = [listen(PlayedTriton(bundle)) for bundle in bundles]
    with running(listeners[0][1], bundle=bundles[0], replaced=tmp_path / "tally") as gateway:
        loop = gateway._behind._probing.get_loop()  # type: ignore[union-attr]
        move = gateway.move(TritonAddress(url=listeners[1][1]), bundles[1])
        asyncio.run_coroutine_threadsafe(move, loop).result(timeout=60)
        assert set(gateway._service.drift._meters["full"].urns) == set(LABELS[:2])
    for each, _ in listeners:
        each.stop(0).wait()
    assert len(in_the_loop) >= 2 * len(networks) + 1
    assert not any(in_the_loop)


class _Folder:
    """A bundle's folder, as far as it is asked here."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest, self.bundle_id = path, manifest, manifest.bundle_id

    def file(self, name: str) -> Path:
        return self.path / name
