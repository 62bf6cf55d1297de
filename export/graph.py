"""PyTorch module -> ONNX graph in memory, and ONNX Runtime on it."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper

from bundle import tensors
from bundle.errors import ExportError, first_line
from bundle.image import ImageSpec
from detector.model import Detector
from export.served import ServedNetwork

OPSET = 18
BATCH = 64


def to_onnx(module: ServedNetwork, served: str, spec: ImageSpec) -> onnx.ModelProto:
    """Export with a free batch dimension; the graph is checked and carries its weights inside."""
    names = tensors.OUTPUTS[served]
    example = torch.zeros(2, spec.height, spec.width, 3, dtype=torch.uint8)
    with _quiet():
        try:
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                input_names=[tensors.IMAGE],
                output_names=list(names),
                dynamic_shapes=({0: torch.export.Dim("N", min=1, max=4096)},),
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as problem:  # the exporter raises many kinds
            raise ExportError(f"the {served} network cannot be exported to ONNX ({first_line(problem)})") from None
    if program is None:
        raise ExportError(f"the {served} network could not be exported to ONNX")
    model: onnx.ModelProto = program.model_proto
    model.producer_name = "fieldmark"
    for value in (*model.graph.node,):
        value.doc_string = ""
        del value.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    found = [output.name for output in model.graph.output]
    if found != list(names):
        raise ExportError(f"the exported {served} graph has outputs {found}, expected {list(names)}")
    return model


def set_calibration(model: onnx.ModelProto, module: ServedNetwork, detector: Detector) -> None:
    """Put the n calibration scores, and their classes where p-values are per class, into the graph and the module.
    Recalibrating changes these initializers alone.

    n is the graph's own: a marginal p-value divides by n + 1.
    """
    values = {"calibration": detector.calibration, "calibration_classes": detector.calibration_classes}
    initializers = {initializer.name: initializer for initializer in model.graph.initializer}
    for name, scores in values.items():
        if scores is None:
            continue
        value = scores[None, :]
        if name not in initializers or tuple(initializers[name].dims) != value.shape:
            raise ExportError(f"the exported graph has no initializer {name!r} of shape {value.shape}")
        initializers[name].CopyFrom(numpy_helper.from_array(value, name))
        setattr(module, name, torch.from_numpy(value))


class GraphSession:
    """ONNX Runtime on a graph in memory."""

    def __init__(self, model: onnx.ModelProto) -> None:
        # ONNX Runtime reports its use to its makers over the internet unless this is set before it is imported.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """images : (n, H, W, 3) uint8 as one batch -> every output by name."""
        return dict(zip(self._names, self._session.run(None, {tensors.IMAGE: images}), strict=True))

    def scores(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """instance_score and predicted class of any number of images, in batches: (n,) each."""
        parts = [self.run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        scores = np.concatenate([part[tensors.INSTANCE_SCORE] for part in parts])
        return scores, np.concatenate([part[tensors.PROBABILITIES].argmax(1) for part in parts])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns of its own internals; a user can act on none of it."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
