"""What the demo asks the endpoint: files over fieldmark.v1, answered as the graph answers in process."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle import Bundle
from demo import endpoint
from demo.endpoint import ask, look, served
from demo.stages import StageFailed
from serving.client.local import LocalInference
from serving.client.prediction import predictions
from serving.gateway.client import FieldmarkClient

NAMES = ("clean", "fgsm-8")


@pytest.fixture
def attacked(tmp_path: Path, toy_bundle: Bundle, toy_images: np.ndarray) -> Path:
    """A folder as `fieldmark attack` writes it: three images of each attack."""
    with (tmp_path / "index.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["path", "label", "attack", "network"])
        writer.writeheader()
        for attack in NAMES:
            for number in range(3):
                path = f"{attack}-{number}.png"
                Image.fromarray(toy_images[number]).save(tmp_path / path)
                writer.writerow({"path": path, "label": "x", "attack": attack, "network": "full"})
    return tmp_path


@pytest.mark.triton
def test_the_demo_is_answered_as_the_graph_answers(attacked: Path, toy_bundle: Bundle, toy_images: np.ndarray) -> None:
    outputs = LocalInference(toy_bundle).infer(toy_images[:3], "full")
    expected = predictions(outputs, toy_bundle.manifest, "full")
    with served(toy_bundle.path) as facts, FieldmarkClient(facts["url"]) as client:
        answers = ask(client, attacked, "full")
        attention = look(client, answers["clean"].paths[0], "full")
        (attacked / "clean-1.png").write_bytes(b"no image")
        with pytest.raises(StageFailed, match=r"clean-1\.png was not classified: not an image"):
            ask(client, attacked, "full")
    assert tuple(answers) == NAMES
    for said in answers.values():
        assert [path.name.rpartition("-")[2] for path in said.paths] == ["0.png", "1.png", "2.png"]
        for found, wanted in zip(said.predictions, expected, strict=True):
            assert (found.label, found.is_adversarial) == (wanted.label, wanted.is_adversarial)
            assert found.p_value == pytest.approx(wanted.p_value, abs=1e-6)
            assert found.instance_score == pytest.approx(wanted.instance_score, rel=1e-4)
            assert found.layer_scores == pytest.approx(wanted.layer_scores, rel=1e-3)
            assert found.bundle_id == toy_bundle.bundle_id
    spec = toy_bundle.manifest.image
    assert attention.shape == (spec.height, spec.width)
    assert 0 <= attention.min() <= attention.max() <= 1


def test_a_server_that_does_not_stop_is_killed_and_nothing_of_it_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = tmp_path / "deaf"
    deaf.write_text(f"#!/bin/sh\ntrap '' INT\nexec {sys.executable} -c 'print({{}}, flush=True); input()'\n")
    deaf.chmod(0o755)
    started = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, stdin=subprocess.PIPE, **options)
            started.append(self)

    monkeypatch.setattr(sys, "executable", str(deaf))
    monkeypatch.setattr(subprocess, "Popen", Noted)
    monkeypatch.setattr(endpoint, "STOP_SECONDS", 0.2)
    with served(tmp_path):
        pass
    (process,) = started
    process.stdin.close()
    assert process.returncode == -9, "it is killed, and waited for"
    assert process.stdout.closed
