"""The training objective: Eqs. 1-3 and the total loss of Nakka & Salzmann (ACCV 2020).

B images, t locations, c prototypes a class, K classes. Distances are squared L2.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.networks import Forward, Network, PrototypeHead


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Factors of the terms; the defaults are those of the authors' code, where cluster and separation are means."""

    cluster: float = 100.0  # lambda_1
    separation: float = 0.08  # lambda_2
    sparsity: float = 1e-4  # last-layer phase: on |W| between a class and others' prototypes
    label_smoothing: float = 0.0


def nearest_prototypes(distances: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """distances : [B, m, h, w] -> squared distance of each location to the nearest own-class prototype and to the
    nearest prototype of any other class, both [B, h, w].
    """
    batch, _, height, width = distances.shape
    per_class = distances.view(batch, classes, -1, height, width).amin(dim=2)
    index = labels.view(-1, 1, 1, 1).expand(-1, 1, height, width)
    own = per_class.gather(1, index).squeeze(1)
    others = per_class.scatter(1, index, torch.inf).amin(dim=1)
    return own, others


def regulariser(distances: Tensor, attention: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Attentional clustering and separation of Eq. 3, each the mean over i, j and t of a_j^t * min_l ||x_i^t - p_l||^2.

    The double sum over images i and j equals sum_{i,t} (sum_j a_j^t) d_i^t, so the cost is O(B), not O(B^2).
    """
    own, others = nearest_prototypes(distances, labels, classes)
    shared = attention.mean(dim=0)
    return (own * shared).mean(), (others * shared).mean()


def total_loss(forward: Forward, labels: Tensor, weights: LossWeights, *, joint: bool) -> Tensor:
    """CE_att + CE_reg + L_reg. During warm-up (`joint` false) the regulariser is off, as in the authors' code."""
    smoothing = weights.label_smoothing
    loss = F.cross_entropy(forward.attention_logits, labels, label_smoothing=smoothing)
    loss = loss + F.cross_entropy(forward.logits, labels, label_smoothing=smoothing)
    if joint:
        cluster, separation = regulariser(forward.distances, forward.attention, labels, forward.logits.shape[1])
        loss = loss + weights.cluster * cluster - weights.separation * separation
    return loss


def sparsity(network: Network) -> Tensor:
    """L1 norm of the last layer's weights from other classes' prototypes, for the last-layer phase."""
    weight = network.prototype_head.classifier.weight
    own = PrototypeHead.own_class(network.config.classes, network.config.prototypes_per_class).to(weight)
    return (weight * (1 - own)).abs().sum()
