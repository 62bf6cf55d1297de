"""ONNX Runtime in this process: its answers are the graph's own, and what cannot work says so in one sentence."""

import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from bundle import Bundle, tensors
from bundle.errors import BundleMissing, BundleUnsupported, MissingExtra, ScoringError
from serving.client.local import LocalInference


@pytest.mark.parametrize("network", tensors.NETWORKS)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_answers_are_those_of_a_direct_call(
    toy_bundle: Bundle, toy_images: np.ndarray, network: str, count: int
) -> None:
    session = onnxruntime.InferenceSession(str(toy_bundle.model(network)), providers=["CPUExecutionProvider"])
    direct = session.run(None, {tensors.IMAGE: toy_images[:count]})
    expected = dict(zip((output.name for output in session.get_outputs()), direct, strict=True))

    outputs = LocalInference(toy_bundle).infer(toy_images[:count], network)

    assert set(outputs) == set(tensors.OUTPUTS[network])
    for name, value in outputs.items():
        np.testing.assert_array_equal(value, expected[name])
        assert len(value) == count


def test_the_identity_is_the_bundles(toy_bundle: Bundle) -> None:
    inference = LocalInference(toy_bundle)
    assert inference.bundle_id == toy_bundle.bundle_id
    assert inference.manifest is toy_bundle.manifest


def test_a_session_is_made_when_first_asked_for_and_only_once(
    toy_bundle: Bundle, toy_images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    original = onnxruntime.InferenceSession

    def counted(path: str, *arguments: object, **options: object) -> object:
        made.append(Path(path).parent.name)
        return original(path, *arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    inference = LocalInference(toy_bundle)
    assert made == []
    threads = [threading.Thread(target=inference.infer, args=(toy_images[:1], "attention")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["attention"]
    inference.infer(toy_images[:1], "full")
    assert made == ["attention", "full"]


def test_threads_and_providers_reach_the_session(toy_bundle: Bundle, toy_images: np.ndarray) -> None:
    inference = LocalInference(toy_bundle, threads=1, providers=["CPUExecutionProvider"])
    inference.infer(toy_images[:1], "full")
    session = inference._sessions["full"]
    assert session.get_session_options().intra_op_num_threads == 1
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_remote_and_compiling_providers_are_not_taken_unasked(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "AzureExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    assert LocalInference(toy_bundle).providers == ("CUDAExecutionProvider", "CPUExecutionProvider")


def test_without_onnxruntime_the_extra_is_named(toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"'scoring' extra \(onnxruntime is not installed\).*pip install"):
        LocalInference(toy_bundle)


def test_an_unknown_network_is_named(toy_bundle: Bundle, toy_images: np.ndarray) -> None:
    with pytest.raises(BundleMissing, match="no network 'half'"):
        LocalInference(toy_bundle).infer(toy_images[:1], "half")


def test_images_of_another_size_are_a_sentence(toy_bundle: Bundle) -> None:
    with pytest.raises(ScoringError, match="failed on 2 images of network 'full'") as caught:
        LocalInference(toy_bundle).infer(np.zeros((2, 8, 8, 3), np.uint8), "full")
    assert "\n" not in str(caught.value)


def test_a_graph_that_onnxruntime_cannot_load_is_a_sentence(
    toy_bundle: Bundle, toy_images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"no graph at all")
    monkeypatch.setattr(toy_bundle, "model", lambda network: graph)
    with pytest.raises(BundleUnsupported, match="cannot load") as caught:
        LocalInference(toy_bundle).infer(toy_images[:1], "full")
    assert "\n" not in str(caught.value)
