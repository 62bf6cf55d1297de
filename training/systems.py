"""The systems that the paper compares: which heads a network has, and what they are trained for.

`ap` is attentional pooling, alone and with a triplet or the prototype conformity loss (PCL); `protopnet` is ProtoPNet;
Ours-A and Ours-FR are the two heads of one `maxsep` run. `gap`, global average pooling, is no competitor but where
transfer attacks start from.
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


_ATTENTION = (tensors.ATTENTION_ONLY,)
_NO_TERMS = LossWeights(cluster=0.0, separation=0.0)

DEFAULT = "maxsep"
SYSTEMS = {
    "maxsep": System(heads=tensors.NETWORKS, loss=LossWeights()),
    "ap": System(heads=_ATTENTION, loss=_NO_TERMS),
    "ap-triplet": System(heads=_ATTENTION, loss=LossWeights(cluster=0.0, separation=0.0, triplet=1.0)),
    "ap-pcl": System(
        heads=_ATTENTION,
        loss=LossWeights(cluster=0.0, separation=0.0, proximity=1.0, contrast=1e-4),
    ),
    "protopnet": System(
        heads=(tensors.FULL,),
        loss=LossWeights(cluster=0.8, separation=0.08, over="nearest"),
    ),
    "gap": System(heads=(POOLED,), loss=_NO_TERMS),
}
