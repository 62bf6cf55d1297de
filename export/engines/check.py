"""An engine on the GPU of this machine: its answers against ONNX Runtime's on the same graph, and its speed."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle import Bundle, tensors
from bundle.engines import EngineRecord, EngineSet
from bundle.errors import EngineError, first_line
from bundle.manifest import BF16, FP16, FP32, INT8
from export.engines.compiler import Compiler, local_target

WARM_UP, RUNS = 20, 200
# precision -> largest difference of a number, relative to the output's largest (or 1); least share of images whose
# label, p-value, flag and prototypes agree. Both sides round in the same precision, in another order.
BOUNDS = {FP32: (2e-3, 0.99), FP16: (2e-2, 0.95), BF16: (1e-1, 0.9), INT8: (1e-1, 0.9)}
Answers = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Check:
    """Largest relative difference of each output over the profile's three batches; milliseconds of `runs` runs of the
    batch that the engine is tuned for, on the GPU and with the images already there.
    """

    differences: dict[str, float]
    batch: int
    runs: int
    median_ms: float
    p95_ms: float


def cannot_check(record: EngineRecord) -> str | None:
    """Why an engine cannot be run here, or None."""
    here = local_target()
    if here is None:
        return "no GPU"
    if here != record.target:
        return f"the GPU is {here}"
    try:
        import torch
    except ImportError as problem:
        return f"PyTorch is not installed ({first_line(problem)})"
    return None if torch.cuda.is_available() else "PyTorch sees no GPU"


def check_engine(compiler: Compiler, engines: EngineSet, record: EngineRecord, bundle: Bundle) -> Check:
    """Run an engine at the profile's three batches and time it; raises EngineError where it answers otherwise than
    ONNX Runtime.
    """
    import onnx

    from export.graph import GraphSession

    engine = compiler.load(engines.file(record).read_bytes())
    session = GraphSession(widened(onnx.load(bundle.model(record.network))))
    names = tensors.OUTPUTS[record.network]
    profile, images = record.profile, _images(bundle, record.profile.max)
    worst = dict.fromkeys(names, 0.0)
    for batch in sorted({profile.min, profile.opt, profile.max}):
        expected = session.run(images[:batch])
        found = _Loaded(engine, images[:batch]).answers()
        where = f"the engine of {record.network} for {record.target} at batch {batch}"
        for name, difference in check_answers(expected, found, record.precision, where).items():
            worst[name] = max(worst[name], difference)
    loaded = _Loaded(engine, images[: profile.opt])
    times = [loaded.run() for _ in range(WARM_UP + RUNS)][WARM_UP:]
    return Check(
        differences=worst,
        batch=profile.opt,
        runs=RUNS,
        median_ms=1000 * statistics.median(times),
        p95_ms=1000 * float(np.percentile(times, 95)),
    )


def widened(model: Any) -> Any:
    """The same graph with bfloat16, in which ONNX Runtime has no convolutions on a processor, computed in float32."""
    from onnx import TensorProto, numpy_helper

    for initializer in model.graph.initializer:
        if initializer.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(initializer).astype(np.float32)
            initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    del model.graph.value_info[:]
    return model


def check_answers(expected: Answers, found: Answers, precision: str, where: str) -> dict[str, float]:
    """Difference of each output: relative to its largest number, or, of p-values, flags and prototypes, the share of
    images that disagree; raises EngineError beyond the bounds of the precision.
    """
    bound, share = BOUNDS[precision]
    differences = {}
    for name, want in expected.items():
        have = found[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            raise EngineError(
                f"{where}: {name} is {have.dtype} {have.shape}, not {want.dtype} {want.shape}", hint=DO_NOT_SERVE
            )
        rows = len(want)
        if name == tensors.PROTOTYPE_INDICES:  # equal ones may change places
            agree = [len(set(a) & set(b)) / len(a) for a, b in zip(want.tolist(), have.tolist(), strict=True)]
            difference, limit = 1 - float(np.mean(agree)), 1 - share
        elif name == tensors.IS_ADVERSARIAL:
            difference, limit = float(np.mean(want != have)), 1 - share
        elif name == tensors.P_VALUE:  # a step of the calibration wherever a score lies next to one
            difference, limit = float(np.mean(~(np.abs(want - have) <= bound + 0.01))), 1 - share
        else:
            scale = max(1.0, float(np.abs(want).max()))
            difference, limit = float(np.abs(want.astype(np.float64) - have).max()) / scale, bound
            if name == tensors.PROBABILITIES:
                labels = np.mean(want.reshape(rows, -1).argmax(1) == have.reshape(rows, -1).argmax(1))
                if not labels >= share:
                    raise EngineError(f"{where}: {1 - labels:.1%} of the labels differ", hint=DO_NOT_SERVE)
        if not difference <= limit + 1e-9:  # not a number is a difference too
            raise EngineError(f"{where}: {name} differs from ONNX Runtime by {difference:.3g}", hint=DO_NOT_SERVE)
        differences[name] = difference
    return differences


DO_NOT_SERVE = "Do not serve it; please report it with the versions of runtime and driver."


class _Loaded:
    """An engine with one batch of images on the GPU. images : (n, H, W, 3) uint8."""

    def __init__(self, engine: Any, images: npt.NDArray[np.uint8]) -> None:
        import torch

        types = {"UINT8": torch.uint8, "FP32": torch.float32, "BOOL": torch.bool, "INT64": torch.int64}
        self._stream = torch.cuda.Stream()
        self._context = engine.create_execution_context()
        self._context.set_input_shape(tensors.IMAGE, images.shape)
        self._buffers = {tensors.IMAGE: torch.from_numpy(images).cuda()}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            if name not in self._buffers:
                shape = tuple(self._context.get_tensor_shape(name))
                self._buffers[name] = torch.empty(shape, dtype=types[tensors.DTYPES[name]], device="cuda")
            self._context.set_tensor_address(name, self._buffers[name].data_ptr())
        torch.cuda.synchronize()

    def run(self) -> float:
        """Seconds of one run."""
        started = time.perf_counter()
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise EngineError("the engine cannot be run on this GPU", hint=DO_NOT_SERVE)
        self._stream.synchronize()
        return time.perf_counter() - started

    def answers(self) -> Answers:
        self.run()
        return {name: buffer.cpu().numpy() for name, buffer in self._buffers.items() if name != tensors.IMAGE}


def _images(bundle: Bundle, count: int) -> npt.NDArray[np.uint8]:
    """Images to compare on : (count, H, W, 3): the bundle's prototypes, and noise, which is to be flagged."""
    spec, random = bundle.manifest.image, np.random.default_rng(0)
    files = sorted({prototype.image for prototype in bundle.manifest.prototypes})[: max(1, count // 2)]
    images = [spec.read(bundle.file(name)) for name in files]
    images.append(random.integers(0, 256, (spec.height, spec.width, 3), dtype=np.uint8))
    return np.resize(np.stack(images), (count, spec.height, spec.width, 3))
