"""What the demo asks the endpoint: files over fieldmark.v1, answered as the graph answers in process."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle import Bundle
from demo.endpoint import ask, look, served
from demo.stages import StageFailed
from serving.gateway.client import FieldmarkClient
from serving.local import LocalInference
from serving.prediction import predictions

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
    with served(toy_bundle.path) as endpoint, FieldmarkClient(endpoint["url"]) as client:
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
