"""What runs a network fastest on a processor: ONNX Runtime in float32 and int8 against PyTorch, eager and compiled.

All of them compute the whole served graph, detector included, from uint8 images, with the same number of threads.
Weights are random: speed does not depend on what a network has learned. FLOP are those of PyTorch's counter (a
multiplication and an addition are two); the peak is that of the best float32 matrix product here, in the same run.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import side_by_side
from benchmarks.synthetic import Synthetic, synthetic
from bundle import tensors
from bundle.manifest import INT8
from export.graph import CPU, IR_VERSION, OPSET, PROVIDERS, GraphSession, quiet_onnxruntime, to_onnx
from export.precision import narrowed
from export.served import ServedNetwork

SIDE = 2048  # of the matrices whose product is the peak
RANGES = 16  # images that int8 takes its ranges from: any will do for speed


@dataclass(frozen=True, kw_only=True)
class Setup:
    """`backbones` with their image sizes; rounds so that each batch takes about `seconds`, and at least `rounds`."""

    backbones: tuple[tuple[str, int], ...] = (("small", 64), ("resnet34", 224), ("vgg16", 224))
    batches: tuple[int, ...] = (1, 8, 32)
    classes: tuple[int, ...] = (20, 200, 1000)  # for the cost of more of them, on the first backbone
    seconds: float = 20.0
    rounds: int = 5


def measure_runtime(setup: Setup = Setup()) -> dict[str, Any]:
    """Milliseconds by runtime, backbone and batch, and ratios to PyTorch eager; then what K and the head cost."""
    console = Console(stderr=True)
    peaks = peak()
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "peak_gflops": {name: round(found / 1e9, 1) for name, found in peaks.items()},
    }
    for backbone, size in setup.backbones:
        console.print(f"runtime: {backbone}")
        made = synthetic(backbone, size=size)
        result[backbone] = {"image": size} | _runtimes(made, setup, max(peaks.values()))
    backbone, size = setup.backbones[0]
    result["classes"] = {
        str(classes): _heads(synthetic(backbone, size=size, classes=classes), setup) for classes in setup.classes
    }
    return result


def _runtimes(made: Synthetic, setup: Setup, most: float) -> dict[str, Any]:
    module = ServedNetwork(made.network, tensors.FULL, made.detectors[tensors.FULL]).eval()
    last = copy.deepcopy(module).to(memory_format=torch.channels_last)
    model = to_onnx(module, made.spec)
    wide, narrow = GraphSession(model), GraphSession(narrowed(model, INT8, made.images[:RANGES]))
    flop = flop_of(module, made.images[:1])
    result: dict[str, Any] = {"gflop_an_image": round(flop / 1e9, 3)}
    for batch in setup.batches:
        images = np.resize(made.images, (batch, *made.images.shape[1:]))
        compiled = torch.compile(module, dynamic=False)
        calls: dict[str, Callable[[], Any]] = {
            "torch eager": _torch(module, images),
            "torch eager, channels last": _torch(last, images),
            "torch.compile": _torch(compiled, images),
            "onnxruntime fp32": partial(wide.run, images),
            "onnxruntime int8": partial(narrow.run, images),
        }
        found = side_by_side(calls, rounds=_rounds(calls, setup))
        torch._dynamo.reset()  # the next batch size is compiled for itself, not as one of any size
        for name in calls:
            achieved = flop * batch / (found[name]["ms"]["p50"] / 1e3)
            found[name]["gflops"] = round(achieved / 1e9, 1)
            found[name]["share_of_peak"] = round(achieved / most, 3)
        result[f"batch{batch}"] = found
    return result | {"heads": _heads(made, setup)}


def _heads(made: Synthetic, setup: Setup) -> dict[str, Any]:
    """The full network against the one with attention alone."""
    sessions = {head: _session(made, head) for head in tensors.NETWORKS}
    return {
        f"batch{batch}": _turns_of(sessions, np.resize(made.images, (batch, *made.images.shape[1:])), setup)
        for batch in setup.batches[:2]
    }


def _session(made: Synthetic, head: str) -> GraphSession:
    return GraphSession(to_onnx(ServedNetwork(made.network, head, made.detectors[head]), made.spec))


def _turns_of(sessions: dict[str, GraphSession], images: Any, setup: Setup) -> dict[str, Any]:
    calls: dict[str, Callable[[], Any]] = {name: partial(session.run, images) for name, session in sessions.items()}
    return side_by_side(calls, rounds=_rounds(calls, setup))


def _torch(module: Any, images: Any) -> Callable[[], Any]:
    pixels = torch.from_numpy(images)

    def call() -> Any:
        with torch.inference_mode():
            return module(pixels)

    return call


def _rounds(calls: dict[str, Callable[[], Any]], setup: Setup) -> int:
    """After one call of each, which also compiles."""
    for call in calls.values():
        call()
    once = side_by_side(calls, rounds=1, warmup=0)
    seconds = sum(once[name]["ms"]["p50"] for name in calls) / 1e3
    return max(setup.rounds, min(200, int(setup.seconds / seconds)))


def flop_of(module: torch.nn.Module, images: Any) -> float:
    """Floating-point operations of convolutions and matrix products on a batch of images."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.from_numpy(images))
    return float(counter.get_total_flops())


def peak(repeats: int = 10) -> dict[str, float]:
    """FLOP/s of the best float32 product of two SIDE x SIDE matrices, by library: which is fast depends on the chip."""
    left, right = (np.random.default_rng(seed).random((SIDE, SIDE), dtype=np.float32) for seed in (0, 1))
    product = _product()
    calls: dict[str, Callable[[], Any]] = {
        "torch": partial(torch.mm, torch.from_numpy(left), torch.from_numpy(right)),
        "onnxruntime": partial(product.run, None, {"left": left, "right": right}),
    }
    times = [side_by_side(calls, rounds=1, warmup=0) for _ in range(repeats + 1)]
    return {name: 2 * SIDE**3 / min(found[name]["ms"]["p50"] / 1e3 for found in times) for name in calls}


def _product() -> Any:
    float32 = onnx.TensorProto.FLOAT
    left, right, found = (
        onnx.helper.make_tensor_value_info(name, float32, [SIDE, SIDE]) for name in ("left", "right", "found")
    )
    node = onnx.helper.make_node("MatMul", ["left", "right"], ["found"])
    graph = onnx.helper.make_graph([node], "product", [left, right], [found])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return quiet_onnxruntime().InferenceSession(model.SerializeToString(), providers=[PROVIDERS[CPU]])
