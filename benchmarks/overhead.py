"""What the detector costs: the served graph against the same graph cut before the detector."""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.utils import extract_model

from benchmarks.record import paired
from bundle import tensors
from bundle.folder import Bundle
from export.graph import quiet_onnxruntime

DETECTOR_OUTPUTS = (tensors.INSTANCE_SCORE, tensors.P_VALUE, tensors.IS_ADVERSARIAL, tensors.LAYER_SCORES)
ROUNDS = {1: 200, 8: 60}
SECONDS = 20.0  # a large network takes fewer rounds, so that it ends


def measure_overhead(bundle_path: Path) -> dict[str, Any]:
    """Milliseconds without (first) and with the detector (second) on ONNX Runtime CPU, by network and batch."""
    bundle = Bundle.open(bundle_path)
    spec = bundle.manifest.image
    rng = np.random.default_rng(0)
    result: dict[str, Any] = {"bundle_id": bundle.bundle_id, "image": [spec.height, spec.width]}
    with tempfile.TemporaryDirectory() as folder:
        for network in tensors.NETWORKS:
            whole = bundle.model(network)
            cut = Path(folder) / f"{network}.onnx"
            kept = [name for name in tensors.OUTPUTS[network] if name not in DETECTOR_OUTPUTS]
            extract_model(str(whole), str(cut), [tensors.IMAGE], kept)
            nodes = {"without": len(onnx.load(cut).graph.node), "with": len(onnx.load(whole).graph.node)}
            result[network] = {"nodes": nodes}
            without, with_detector = _session(cut), _session(whole)
            for batch, rounds in ROUNDS.items():
                images = rng.integers(0, 256, (batch, spec.height, spec.width, 3), dtype=np.uint8)
                feed = {tensors.IMAGE: images}
                started = time.perf_counter()
                for session in (without, with_detector):
                    session.run(None, feed)
                pair = time.perf_counter() - started
                result[network][f"batch{batch}"] = paired(
                    partial(without.run, None, feed),
                    partial(with_detector.run, None, feed),
                    rounds=max(5, min(rounds, int(SECONDS / pair))),
                    warmup=max(1, min(10, int(SECONDS / pair / 5))),
                )
    return result


def _session(path: Path) -> Any:
    return quiet_onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
