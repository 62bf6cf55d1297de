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


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of a served graph; `shape` leaves the batch dimension out."""

    name: str
    dtype: str
    shape: tuple[int, ...]
