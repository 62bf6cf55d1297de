"""One served graph in PyTorch and in ONNX Runtime on the device that is there: the same images, turn by turn."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import side_by_side
from bundle.errors import OptionError
from bundle.files import sha256_of
from bundle.folder import Bundle
from detector.model import Detector
from export.served import ServedNetwork
from serving.client.local import LocalInference
from training.run import Run

WARMUP, MOST_ROUNDS = 3, 50


def compare_runtimes(run: Path, bundles: Sequence[Path], batch: int, *, seconds: float) -> dict[str, Any]:
    """Milliseconds of the main network by runtime, PyTorch first, then each of the `bundles` of this run; about so many
    `seconds` in all. Images go to the device and answers come back, as a server has it.
    """
    opened, weights = Bundle.open(bundles[0]), sha256_of(run / "model.pt")
    head = opened.manifest.main_network
    detector = Detector.load(opened.file(opened.manifest.networks[head].detector.file))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, network = Run(run).load_network()
    module = ServedNetwork(network, head, detector).eval().to(device)
    spec = opened.manifest.image
    images = np.random.default_rng(0).integers(0, 256, (batch, spec.height, spec.width, 3), dtype=np.uint8)

    @torch.no_grad()
    def eager() -> None:
        for output in module(torch.from_numpy(images).to(device)):
            output.cpu()

    @torch.no_grad()
    def half() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            for output in module.forward(torch.from_numpy(images).to(device)):
                output.cpu()

    calls: dict[str, Callable[[], Any]] = {f"torch {device}": eager, f"torch {device} bf16": half}
    for bundle in bundles:
        inference = LocalInference(Bundle.open(bundle))
        if inference.manifest.training.get("weights_sha256") != weights:
            raise OptionError(f"{bundle} is of other weights than {run}", hint="Remove it, and export it anew.")
        provider = inference.provider(head).removesuffix("ExecutionProvider")
        calls[f"onnxruntime {provider} {inference.manifest.networks[head].precision}"] = partial(
            inference.infer, images, head
        )
    for call in calls.values():  # the first call compiles and loads
        call()
    started = time.perf_counter()
    for call in calls.values():
        call()
    each = time.perf_counter() - started
    rounds = max(3, min(MOST_ROUNDS, int(seconds / each) - WARMUP))
    return side_by_side(calls, rounds=rounds, warmup=WARMUP)
