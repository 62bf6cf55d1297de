"""The systems that the paper compares: which heads a network has, and what they are trained for.

Ours-A and Ours-FR are the two heads of one `maxsep` run. `gap` is no competitor but where transfer attacks start from.
"""

from dataclasses import dataclass

from bundle import tensors
from training.losses import LossWeights
from training.networks import POOLED


@dataclass(frozen=True, kw_only=True)
class System:
    """A network's heads and the objective's weights, those of the published code where there is one."""

    heads: tuple[str, ...]
    loss: LossWeights
    title: str


_ATTENTION = (tensors.ATTENTION_ONLY,)
_NO_TERMS = LossWeights(cluster=0.0, separation=0.0)

DEFAULT = "maxsep"
SYSTEMS = {
    "maxsep": System(heads=tensors.NETWORKS, loss=LossWeights(), title="maximal separation (ours: heads A and FR)"),
    "ap": System(heads=_ATTENTION, loss=_NO_TERMS, title="attentional pooling"),
    "ap-triplet": System(
        heads=_ATTENTION, loss=LossWeights(cluster=0.0, separation=0.0, triplet=1.0), title="AP + triplet loss"
    ),
    "ap-pcl": System(
        heads=_ATTENTION,
        loss=LossWeights(cluster=0.0, separation=0.0, proximity=1.0, contrast=1e-4),
        title="AP + prototype conformity loss",
    ),
    "protopnet": System(
        heads=(tensors.FULL,),
        loss=LossWeights(cluster=0.8, separation=0.08, over="nearest"),
        title="ProtoPNet",
    ),
    "gap": System(heads=(POOLED,), loss=_NO_TERMS, title="global average pooling (a substitute to attack from)"),
}
