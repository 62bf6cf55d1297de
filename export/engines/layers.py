"""What the layers of an engine compute in, from the three that can tell: inspector, builder, network.

Each answer counts layers by type and data type: {"CONVOLUTION": {"HALF": 36}}. A layer counts as what its first input
is (in a network: its first output), whatever the runtime calls that.
"""

import json
import re
from collections import Counter
from typing import Any

CONVOLUTION = "CONVOLUTION"
# What runtimes call a type -> what the format calls it.
DTYPES = {
    "float": "FLOAT",
    "fp32": "FLOAT",
    "half": "HALF",
    "fp16": "HALF",
    "bfloat16": "BF16",
    "bf16": "BF16",
    "int8": "INT8",
    "fp8": "FP8",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
_LAYER = re.compile(r"^Name: .*?, LayerType: (?P<kind>\S+?), Inputs: (?P<rest>.*)$", re.MULTILINE)
_DATATYPE = re.compile(r"Datatype: (\w+)")


def listed_layers(text: str) -> dict[str, dict[str, int]]:
    """Layers of an engine from the list that its builder logs, one a line; empty where the list has another form."""
    pairs = []
    for line in _LAYER.finditer(text):
        if found := _DATATYPE.search(line["rest"]):  # of the first input, or, without inputs, of the first output
            pairs.append((line["kind"], found[1]))
    return _count(pairs)


def inspected_layers(text: str) -> dict[str, dict[str, int]]:
    """The same from the inspector's JSON; empty where it names no types."""
    pairs = []
    for layer in json.loads(text).get("Layers", []):
        if isinstance(layer, dict):
            for tensor in (*layer.get("Inputs", []), *layer.get("Outputs", []))[:1]:
                # "Datatype"; "Format/Datatype" in TensorRT 10, split in two in TensorRT 11
                words = [str(value) for key, value in tensor.items() if key.lower().endswith("datatype")]
                pairs.append((str(layer.get("LayerType", "")), " ".join(words)))
    return _count(pairs)


def network_layers(network: Any) -> dict[str, dict[str, int]]:
    """The same from a parsed, strongly typed network: types of first outputs. A convolution of dequantised values is
    counted as what they were before, since that is what the builder is asked to compute in.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    quantised = {
        layer.get_output(0).name: layer.get_input(0).dtype.name for layer in layers if layer.type.name == "DEQUANTIZE"
    }
    pairs = []
    for layer in layers:
        if layer.num_outputs:
            own = layer.get_output(0).dtype.name
            source = layer.get_input(0).name if layer.type.name == CONVOLUTION else ""
            pairs.append((layer.type.name, quantised.get(source, own)))
    return _count(pairs)


def _count(pairs: list[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Layers by type and data type, leaving out what names none; every way to say convolution is one type."""
    counts: dict[str, Counter[str]] = {}
    for kind, text in pairs:
        words = re.findall(r"[a-z]+\d*", text.lower())
        dtype = next((DTYPES[word] for word in words if word in DTYPES), None)
        if dtype is not None and kind:
            is_convolution = ("conv" in kind.lower() and "deconv" not in kind.lower()) or kind == "correlation"
            counts.setdefault(CONVOLUTION if is_convolution else kind, Counter())[dtype] += 1
    return {kind: dict(sorted(found.items())) for kind, found in sorted(counts.items())}
