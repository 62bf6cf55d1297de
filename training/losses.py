"""The training objectives: Eqs. 1-3 and the total loss of Nakka & Salzmann (ACCV 2020), and those it is compared with.

B images, t locations, c prototypes a class, K classes, C channels. Distances are squared L2. An objective is a weighted
sum of terms, and a weight of zero switches its term off; no code asks which system it trains.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle import tensors
from bundle.errors import MissingExtra, OptionError
from training.networks import Forward, Network, NetworkConfig, PrototypeHead

# How locations count in the prototype terms: each by the batch's attention (Eq. 3), each by its own image's (Eqs. 1-2),
# or the closest alone (ProtoPNet).
LOCATIONS = ("attention", "own", "nearest")


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Factors of the terms; the defaults are those of the authors' code, where cluster and separation are means."""

    cluster: float = 100.0  # lambda_1
    separation: float = 0.08  # lambda_2
    over: str = "attention"  # one of LOCATIONS
    sparsity: float = 1e-4  # last-layer phase: on |W| between a class and others' prototypes
    triplet: float = 0.0  # on the unit-length embedding
    triplet_margin: float = 0.2
    proximity: float = 0.0  # PCL: an embedding to the centre of its class
    contrast: float = 0.0  # PCL: away from the other centres
    label_smoothing: float = 0.0
    # Adversarial training: divergence of the answer to the attacked image from that to the clean one, as in TRADES
    # (Zhang et al. 2019), of the attention head where there is one.
    consistency: float = 0.0

    def __post_init__(self) -> None:
        if self.over not in LOCATIONS:
            raise OptionError(f"unknown locations {self.over!r}", hint=f"Choose one of: {', '.join(LOCATIONS)}.")
        for name, value in vars(self).items():
            if isinstance(value, float) and not 0 <= value < float("inf"):
                raise OptionError(f"loss {name} must be a number of at least 0, not {value:g}")
        if self.label_smoothing >= 1:
            raise OptionError(f"label smoothing {self.label_smoothing:g} is outside [0, 1)")


def nearest_prototypes(distances: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """distances : [B, m, h, w] -> squared distance of each location to the nearest own-class prototype and to the
    nearest prototype of any other class, both [B, h, w].
    """
    batch, _, height, width = distances.shape
    # `min` keeps an index where `amin` would keep the whole tensor for its gradient
    per_class = distances.view(batch, classes, -1, height, width).min(dim=2).values
    index = labels.view(-1, 1, 1, 1).expand(-1, 1, height, width)
    own = per_class.gather(1, index).squeeze(1)
    others = per_class.scatter(1, index, torch.inf).amin(dim=1)
    return own, others


def regulariser(distances: Tensor, attention: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Attentional clustering and separation of Eq. 3, each the mean over i, j and t of a_j^t * min_l ||x_i^t - p_l||^2.

    The double sum over images i and j equals sum_{i,t} (sum_j a_j^t) d_i^t, so the cost is O(B), not O(B^2).
    `attention` may be of more images than `distances`: of the whole batch, where other processes hold the rest.
    """
    own, others = nearest_prototypes(distances, labels, classes)
    shared = attention.mean(dim=0)
    return (own * shared).mean(), (others * shared).mean()


def own_regulariser(distances: Tensor, attention: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Eqs. 1 and 2, each the mean over i and t of a_i^t * min_l ||x_i^t - p_l||^2: every image by its own attention."""
    own, others = nearest_prototypes(distances, labels, classes)
    return (own * attention).mean(), (others * attention).mean()


def divergence(clean: Tensor, attacked: Tensor) -> Tensor:
    """KL(p || q) of the answers to clean and attacked images, logits [B, K] each: the mean over images, []."""
    return F.kl_div(attacked.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="batchmean")


def closest_patches(distances: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """ProtoPNet's cluster and separation cost (Chen et al. 2019): the mean over images of the smallest distance between
    any location and any prototype of the image's own class, or of any other.
    """
    own, others = nearest_prototypes(distances, labels, classes)
    return own.amin(dim=(1, 2)).mean(), others.amin(dim=(1, 2)).mean()


def prototype_conformity(embedding: Tensor, labels: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """PCL (Mustafa et al. 2019, Eq. 3-4) on e : [B, C] and centres w : [K, C]: the means over images of ||e - w_y||^2,
    and of ||e - w_j||^2 + ||w_y - w_j||^2 averaged over the other classes j.
    """
    to_all = (embedding[:, None] - centers).square().sum(dim=2)  # [B, K]
    between = (centers[:, None] - centers).square().sum(dim=2)  # [K, K], zero on its diagonal
    own = to_all.gather(1, labels[:, None]).squeeze(1)
    away = (to_all.sum(dim=1) - own + between[labels].sum(dim=1)) / (len(centers) - 1)
    return own.mean(), away.mean()


def _alone(rows: Tensor) -> Tensor:
    return rows


class Objective(nn.Module):
    """The weighted sum of terms. `gather` brings the rows of all processes together, for the terms that couple images;
    the mean of the processes' losses is then the loss of the whole batch.
    """

    centers: nn.Parameter | None

    def __init__(self, weights: LossWeights, config: NetworkConfig, channels: int) -> None:
        super().__init__()
        self.weights, self.classes = weights, config.classes
        self.gather: Callable[[Tensor], Tensor] = _alone
        conforming = weights.proximity or weights.contrast
        self.centers = nn.Parameter(0.1 * torch.randn(config.classes, channels)) if conforming else None
        self.triplet: nn.Module | None = None
        if weights.triplet:
            try:
                from pytorch_metric_learning.losses import TripletMarginLoss
            except ImportError as problem:
                raise MissingExtra.named("training", "The triplet loss", problem) from None
            self.triplet = TripletMarginLoss(margin=weights.triplet_margin)

    def forward(self, forward: Forward, labels: Tensor, *, joint: bool) -> Tensor:
        """Cross-entropy of every head, and from `joint` epochs on the other terms; warm-up, as in the authors' code, is
        without them.
        """
        weights = self.weights
        loss = torch.stack(
            [
                F.cross_entropy(logits, labels, label_smoothing=weights.label_smoothing)
                for logits in forward.logits.values()
            ]
        ).sum()
        if not joint:
            return loss
        if forward.distances is not None and (weights.cluster or weights.separation):
            if forward.attention is not None and weights.over == "attention":
                attention = self.gather(forward.attention)
                cluster, separation = regulariser(forward.distances, attention, labels, self.classes)
            elif forward.attention is not None and weights.over == "own":
                cluster, separation = own_regulariser(forward.distances, forward.attention, labels, self.classes)
            else:
                cluster, separation = closest_patches(forward.distances, labels, self.classes)
            loss = loss + weights.cluster * cluster - weights.separation * separation
        if forward.embedding is not None and self.triplet is not None:
            loss = loss + weights.triplet * self.triplet(self.gather(forward.embedding), self.gather(labels))
        if forward.embedding is not None and self.centers is not None:
            near, away = prototype_conformity(forward.embedding, labels, self.centers)
            loss = loss + weights.proximity * near - weights.contrast * away
        return loss


class BatchLoss(nn.Module):
    """The loss of a batch, with network and objective in one module, so that processes that train together share every
    parameter.
    """

    def __init__(self, network: Network, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, images: Tensor, labels: Tensor, joint: bool, clean: Tensor | None = None) -> Tensor:
        """The loss, [], of images [B, 3, H, W] in [0, 1] and labels [B]; `clean` are the same before an attack."""
        found = self.network(images)
        loss: Tensor = self.objective(found, labels, joint=joint)
        weight = self.objective.weights.consistency
        if clean is None or not weight:
            return loss
        head = tensors.ATTENTION_ONLY if tensors.ATTENTION_ONLY in found.logits else next(iter(found.logits))
        return loss + weight * divergence(self.network(clean, head).logits[head], found.logits[head])


def others_mask(head: PrototypeHead) -> Tensor:
    """[K, m], 1 where the last layer weighs another class's prototype."""
    weight = head.classifier.weight
    return 1 - PrototypeHead.own_class(weight.shape[0], weight.shape[1] // weight.shape[0]).to(weight)


def sparsity(head: PrototypeHead, others: Tensor | None = None) -> Tensor:
    """L1 norm of the last layer's weights from other classes' prototypes, for the last-layer phase. Who asks often
    gives `others_mask(head)`.
    """
    return (head.classifier.weight * (others_mask(head) if others is None else others)).abs().sum()
