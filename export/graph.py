"""PyTorch module -> ONNX graph in memory, and ONNX Runtime on it."""

import contextlib
import hashlib
import io
import logging
import os
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from bundle import tensors
from bundle.errors import ExportError, OptionError, first_line
from bundle.image import ImageSpec
from detector.model import Detector
from export.served import ServedNetwork

OPSET = 18  # and 22 where bfloat16 needs it
IR_VERSION = 10
BATCH = 64
FOLD_BYTES = 2**28  # of constants that are computed while exporting
CPU = "cpu"
PROVIDERS = {CPU: "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}

_NODE = re.compile(r"translating node %(\w+)")


def to_onnx(module: ServedNetwork, spec: ImageSpec) -> onnx.ModelProto:
    """Export with a free batch dimension; what is constant is computed once, the weights are inside."""
    from onnxscript import optimizer

    head, names = module.head, tensors.OUTPUTS[module.head]
    example = torch.zeros(2, spec.height, spec.width, 3, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("N", min=1, max=4096)},)
    traced = None
    with _quiet():
        try:
            traced = torch.export.export(module.eval(), (example,), dynamic_shapes=shapes, strict=False)
            program = torch.onnx.export(
                traced,
                dynamo=True,
                input_names=[tensors.IMAGE],
                output_names=list(names),
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as problem:  # the exporter raises many kinds
            layer = _failed_layer(module, traced, problem)
            raise ExportError(
                f"the {head} network cannot be exported to ONNX: layer {layer or 'unknown'} ({_reason(problem)})",
                hint="Write that layer with operators that ONNX has, without decisions that depend on pixels.",
            ) from None
    if program is None:
        raise ExportError(f"the {head} network could not be exported to ONNX")
    model: onnx.ModelProto = optimizer.optimize(
        program.model_proto, input_size_limit=FOLD_BYTES, output_size_limit=FOLD_BYTES
    )
    found = [output.name for output in model.graph.output]
    if found != list(names):
        raise ExportError(f"the exported {head} graph has outputs {found}, expected {list(names)}")
    return model


def finish(model: onnx.ModelProto, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The graph as it goes into a bundle: `metadata` inside, without the notes of the tools that made it, checked."""
    model.ir_version, model.producer_name, model.producer_version = IR_VERSION, "fieldmark", ""
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    del model.graph.value_info[:], model.graph.metadata_props[:], model.metadata_props[:]
    onnx.helper.set_model_props(model, {f"fieldmark.{key}": value for key, value in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    return model


def labels_digest(labels: Sequence[str]) -> str:
    """Hex SHA-256 of the labels, one a line: that of the labels.txt beside a served graph."""
    return hashlib.sha256("".join(f"{label}\n" for label in labels).encode("utf-8")).hexdigest()


def check_device(device: str) -> None:
    """Raise OptionError if this ONNX Runtime has no provider for it."""
    available = quiet_onnxruntime().get_available_providers()
    if PROVIDERS[device] not in available:
        raise OptionError(
            f"this ONNX Runtime has no {PROVIDERS[device]}, so nothing can be calibrated on {device!r}",
            hint=f"Here: {', '.join(name for name, provider in PROVIDERS.items() if provider in available)}. "
            "A GPU needs the 'gpu' extra: pip install '.[gpu]'",
        )


def set_calibration(model: onnx.ModelProto, detector: Detector) -> None:
    """Put the n calibration scores, and their classes where p-values are per class, into the graph. Recalibrating
    changes these initializers alone.

    n is the graph's own: a marginal p-value divides by n + 1.
    """
    initializers = {initializer.name: initializer for initializer in model.graph.initializer}
    for name, value in detector.calibration_rows.items():
        if name not in initializers or tuple(initializers[name].dims) != value.shape:
            raise ExportError(f"the exported graph has no initializer {name!r} of shape {value.shape}")
        initializers[name].CopyFrom(numpy_helper.from_array(value, name))


class GraphSession:
    """ONNX Runtime on a graph in memory; `device` is one of PROVIDERS, what cannot run there runs on the processor."""

    def __init__(self, model: onnx.ModelProto, device: str = CPU) -> None:
        onnxruntime = quiet_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        providers = list(dict.fromkeys((PROVIDERS[device], PROVIDERS[CPU])))
        try:
            self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
        except Exception as problem:  # ONNX Runtime's exceptions share no base class but Exception
            raise ExportError(f"ONNX Runtime cannot run the graph ({first_line(problem)[:300]})") from None
        self.runtime = f"onnxruntime {onnxruntime.__version__} {self._session.get_providers()[0]}"
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """images : (n, H, W, 3) uint8 as one batch -> every output by name."""
        return dict(zip(self._names, self._session.run(None, {tensors.IMAGE: images}), strict=True))

    def answers(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Every output by name, of any number of images, in batches."""
        parts = [self.run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._names}

    def scores(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """instance_score and predicted class of any number of images: (n,) each."""
        found = self.answers(images)
        return found[tensors.INSTANCE_SCORE], found[tensors.PROBABILITIES].argmax(1)


def quiet_onnxruntime() -> Any:
    """ONNX Runtime's module. It reports its use to its makers over the internet unless told before its import."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress, its own internals and warnings of them; a user can act on none of it."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _failed_layer(module: nn.Module, traced: torch.export.ExportedProgram | None, problem: BaseException) -> str:
    """Name of the layer that could not be traced, by the frames of the error, or not be translated, by its node."""
    names = {id(layer): name for name, layer in module.named_modules()}
    found = ""
    for error in _causes(problem):
        for frame, _ in traceback.walk_tb(error.__traceback__):
            found = names.get(id(frame.f_locals.get("self"))) or found
        if traced is not None and (match := _NODE.search(str(error))):
            nodes = [*traced.graph.nodes, *traced.run_decompositions().graph.nodes]
            stacks = [node.meta.get("nn_module_stack") for node in nodes if node.name == match[1]]
            found = next((str(list(stack.values())[-1][0]) for stack in stacks if stack), found)
    return found


def _reason(problem: BaseException) -> str:
    """What the exporter could not do; its own message is a page."""
    return first_line(_causes(problem)[-1])[:300]


def _causes(problem: BaseException) -> list[BaseException]:
    causes = [problem]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    return causes
