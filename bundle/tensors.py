"""Names, types and shapes of the served graph's tensors. N is the batch, everything else is fixed per bundle.

K classes, L detector layers, t prototypes shown per image, (h, w) the feature map, (H, W) the image.
"""

from dataclasses import dataclass

IMAGE = "image"
PROBABILITIES = "probabilities"
INSTANCE_SCORE = "instance_score"
P_VALUE = "p_value"
IS_ADVERSARIAL = "is_adversarial"
LAYER_SCORES = "layer_scores"
ATTENTION = "attention"
PROTOTYPE_INDICES = "prototype_indices"
PROTOTYPE_SIMILARITIES = "prototype_similarities"

FULL = "full"
ATTENTION_ONLY = "attention"
NETWORKS = (FULL, ATTENTION_ONLY)

OUTPUTS: dict[str, tuple[str, ...]] = {
    ATTENTION_ONLY: (PROBABILITIES, INSTANCE_SCORE, P_VALUE, IS_ADVERSARIAL, LAYER_SCORES, ATTENTION),
    FULL: (
        PROBABILITIES,
        INSTANCE_SCORE,
        P_VALUE,
        IS_ADVERSARIAL,
        LAYER_SCORES,
        ATTENTION,
        PROTOTYPE_INDICES,
        PROTOTYPE_SIMILARITIES,
    ),
}

DTYPES: dict[str, str] = {
    IMAGE: "UINT8",
    PROBABILITIES: "FP32",
    INSTANCE_SCORE: "FP32",
    P_VALUE: "FP32",
    IS_ADVERSARIAL: "BOOL",
    LAYER_SCORES: "FP32",
    ATTENTION: "FP32",
    PROTOTYPE_INDICES: "INT64",
    PROTOTYPE_SIMILARITIES: "FP32",
}

# how many sizes follow the batch
RANKS: dict[str, int] = {
    IMAGE: 3,
    PROBABILITIES: 1,
    INSTANCE_SCORE: 0,
    P_VALUE: 0,
    IS_ADVERSARIAL: 0,
    LAYER_SCORES: 1,
    ATTENTION: 2,
    PROTOTYPE_INDICES: 1,
    PROTOTYPE_SIMILARITIES: 1,
}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of a served graph; `shape` leaves the batch dimension out."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def check_tensors(
    network: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], sizes: dict[str, tuple[int, ...]]
) -> None:
    """Raise ValueError unless a network has exactly these tensors, in this order, each of its type and rank.

    `sizes` gives the shapes that the rest of the manifest fixes, by name; the feature map and t are the graph's own.
    """
    if [tensor.name for tensor in inputs] != [IMAGE]:
        raise ValueError(f"{network}: expected the one input {IMAGE!r}")
    if tuple(tensor.name for tensor in outputs) != OUTPUTS[network]:
        raise ValueError(f"{network}: expected the outputs {', '.join(OUTPUTS[network])}")
    for tensor in (*inputs, *outputs):
        if tensor.dtype != DTYPES[tensor.name]:
            raise ValueError(f"{network}.{tensor.name}: expected the type {DTYPES[tensor.name]}")
        if len(tensor.shape) != RANKS[tensor.name] or min(tensor.shape, default=1) < 1:
            raise ValueError(f"{network}.{tensor.name}: expected {RANKS[tensor.name]} sizes, each at least 1")
        if tensor.shape != sizes.get(tensor.name, tensor.shape):
            raise ValueError(f"{network}.{tensor.name}: expected the shape {list(sizes[tensor.name])}")
    shown = {tensor.shape for tensor in outputs if tensor.name in (PROTOTYPE_INDICES, PROTOTYPE_SIMILARITIES)}
    if len(shown) > 1:
        raise ValueError(f"{network}: {PROTOTYPE_INDICES} and {PROTOTYPE_SIMILARITIES} have different shapes")
