"""A graph in a narrower precision: the backbone's arithmetic is narrowed, all that comes after it stays in float32.

The backbone is nearly all of the cost. Heads, pooled features, distances, softmax and p-value need the digits: near
zero the similarity of a prototype is steep, and a squared distance is a difference of large numbers.

Types are written into the graph, as casts (fp16, bf16) or as pairs of QuantizeLinear and DequantizeLinear (int8). So
every runtime computes the same, and TensorRT, where precision is no flag any more, builds what is written.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from bundle import tensors
from bundle.errors import ExportError, first_line
from bundle.files import scratch
from bundle.manifest import BF16, FP16, INT8

Images = npt.NDArray[np.uint8]
WEIGHTS = "backbone."  # the initializers' names begin so
OPERATORS = ("Conv", "Relu", "Add", "MaxPool")
BF16_OPSET = 22  # the first whose convolutions take bfloat16
RANGE_BATCH = 32
_HALF = {FP16: (TensorProto.FLOAT16, np.dtype(np.float16)), BF16: (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16))}


def narrowed(model: onnx.ModelProto, precision: str, images: Images) -> onnx.ModelProto:
    """A copy of a float32 graph in `precision`; int8 takes its ranges from `images` : (n, H, W, 3), which must not be
    those that p-values are calibrated on: these have to be new to the graph.
    """
    if precision == INT8:
        return _quantised(model, images)
    kind, dtype = _HALF[precision]
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    if precision == BF16:
        copy = onnx.version_converter.convert_version(copy, BF16_OPSET)

    def narrow(name: str) -> list[onnx.NodeProto]:
        return [helper.make_node("Cast", [name], [f"{name}/narrow"], name=f"{name}/narrow", to=kind)]

    def widen(name: str) -> list[onnx.NodeProto]:
        return [helper.make_node("Cast", [f"{name}/narrow"], [name], name=f"{name}/wide", to=TensorProto.FLOAT)]

    entry, nodes = backbone(copy)
    inside = {name for node in nodes for name in node.output}
    others = (node for node in copy.graph.node if inside.isdisjoint(node.output))
    leaving = inside & {name for node in others for name in node.input}
    _convert_weights(copy, lambda values: values.astype(dtype))
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [f"{name}/narrow" if name in inside or name == entry else name for name in names]
    after = {entry: narrow(entry)} | {f"{name}/narrow": widen(name) for name in leaving}
    _insert(copy, after)
    return copy


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph that computes what `narrowed` to bf16 does, for runtimes without such kernels, as ONNX Runtime on
    a processor: every value of the backbone is rounded to bfloat16, sums are kept in float32, as tensor cores do.
    """
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    entry, nodes = backbone(copy)
    _convert_weights(copy, lambda values: values.astype(ml_dtypes.bfloat16).astype(np.float32))
    inside = {name for node in nodes for name in node.output}
    for node in nodes:  # what reads their outputs, in the backbone or not, reads them rounded
        node.output[:] = [f"{name}/exact" for name in node.output]
        node.input[:] = [f"{name}/rounded" if name == entry else name for name in node.input]

    def round_to(exact: str, result: str) -> list[onnx.NodeProto]:
        half = f"{result}/bf16"
        return [
            helper.make_node("Cast", [exact], [half], name=half, to=TensorProto.BFLOAT16),
            helper.make_node("Cast", [half], [result], name=f"{result}/rounded", to=TensorProto.FLOAT),
        ]

    after = {f"{name}/exact": round_to(f"{name}/exact", name) for name in inside}
    _insert(copy, after | {entry: round_to(entry, f"{entry}/rounded")})
    return copy


def signed(model: onnx.ModelProto) -> onnx.ModelProto:
    """An int8 graph with the same numbers as TensorRT wants them: activations as int8 around 0 instead of uint8 around
    128, which is what processors are fast at. Other graphs are returned as they are.
    """
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    zeros = {node.input[2] for node in copy.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    for initializer in copy.graph.initializer:
        if initializer.name in zeros and initializer.data_type == TensorProto.UINT8:
            values = numpy_helper.to_array(initializer)
            if not np.all(values == 128):
                raise ExportError(f"the graph quantises around {values.max()} and not around zero")
            initializer.CopyFrom(numpy_helper.from_array(np.zeros(values.shape, np.int8), initializer.name))
    del copy.graph.value_info[:]
    return copy


def backbone(model: onnx.ModelProto) -> tuple[str, list[onnx.NodeProto]]:
    """The tensor that the backbone reads (the normalised image) and its nodes: all that read nothing but that tensor,
    each other and the backbone's weights. Raises ExportError if any of these weights is read elsewhere.
    """
    initializers = {initializer.name for initializer in model.graph.initializer}
    weights = {name for name in initializers if name.startswith(WEIGHTS)}
    readers = [node for node in model.graph.node if any(name in weights for name in node.input)]
    if not readers:
        raise ExportError("the graph has no backbone whose precision could be changed")
    entry = readers[0].input[0]
    inside, nodes = {entry}, []
    for node in model.graph.node:
        data = [name for name in node.input if name not in initializers]
        if node.op_type in OPERATORS and data and inside.issuperset(data):
            if weights.issuperset(set(node.input) - set(data)):
                nodes.append(node)
                inside.update(node.output)
        elif stray := weights.intersection(node.input):
            raise ExportError(
                f"the operator {node.op_type} of {min(stray)} cannot be narrowed",
                hint="Export it with --precision fp32.",
            )
    return entry, nodes


def _quantised(model: onnx.ModelProto, images: Images) -> onnx.ModelProto:
    """Static quantisation: weights to int8 per output channel, activations to uint8 around 128, by their extremes."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.starts = iter(range(0, len(images), RANGE_BATCH))

        def get_next(self) -> dict[str, Images] | None:
            start = next(self.starts, None)
            return None if start is None else {tensors.IMAGE: images[start : start + RANGE_BATCH]}

    _, nodes = backbone(model)
    with scratch("int8") as folder, _quiet():
        source, target = folder / "fp32.onnx", folder / "int8.onnx"
        onnx.save_model(model, source)
        try:
            quantize_static(
                source,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                nodes_to_quantize=[node.name for node in nodes],
                # Biases stay in float32: TensorRT takes no int32 there, and ONNX Runtime is no slower.
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
            )
        except Exception as problem:  # it raises many kinds
            raise ExportError(f"the graph cannot be quantised ({first_line(problem)[:300]})") from None
        return onnx.load(target)


def _convert_weights(
    model: onnx.ModelProto, convert: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.generic]]
) -> None:
    for initializer in model.graph.initializer:
        if initializer.name.startswith(WEIGHTS):
            values = convert(numpy_helper.to_array(initializer))
            initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))


def _insert(model: onnx.ModelProto, after: dict[str, list[onnx.NodeProto]]) -> None:
    """Nodes right after the one that makes the named tensor; shapes that were inferred before are dropped."""
    nodes = []
    for node in model.graph.node:
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
        for name in node.output:
            nodes.extend(after.get(name, ()))
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser recommends steps that the exporter has taken already."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
