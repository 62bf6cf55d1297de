"""The networks compared in the paper: one backbone under any of three heads.

`attention` alone is attentional pooling (AP; Girdhar & Ramanan 2017); `full` alone is ProtoPNet (Chen et al. 2019);
both together are the paper's network, where attention (Ours-A) gates the prototypes (Ours-FR). `pooled` is global
average pooling and one linear layer, the substitute that transfer attacks start from.

Shapes: B images, K classes, c prototypes a class, m = cK prototypes, (h, w) the feature map, C its channels,
D the add-on channels. Images are [B, 3, H, W] in [0, 1]; normalisation lives inside, so epsilon has one meaning.
Distances are squared L2.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bundle import tensors
from training.backbones import make_backbone

POOLED = "pooled"
HEADS = (*tensors.NETWORKS, POOLED)
# The add-on convolutions' first weights: PyTorch's own, or the authors', normal by fan-out (He et al. 2015), no biases.
ADD_ON_STARTS = ("uniform", "kaiming")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What the state dict needs around it."""

    backbone: str  # a name in training.backbones.BACKBONES
    output_stride: int = 0  # pixels per cell of the map that the heads read; 0: as the backbone was published
    classes: int  # K
    heads: tuple[str, ...] = tensors.NETWORKS  # some of HEADS
    prototypes_per_class: int = 10  # c
    prototype_channels: int = 128  # D
    attention_dropout: float = 0.8  # on the class-specific branch only
    add_on_start: str = "uniform"  # of the add-on convolutions, one of ADD_ON_STARTS
    gamma: float = 1e-4  # floor of the similarity log((d + 1) / (d + gamma)); the paper prints 1e-5, its code 1e-4


class Forward(NamedTuple):
    """What one pass computes; None where the heads that were asked for do not need it."""

    stages: list[Tensor]  # backbone maps, [B, C_s, H_s, W_s]
    logits: dict[str, Tensor]  # by head, [B, K]
    attention: Tensor | None = None  # A, [B, h, w], peak 1
    embedding: Tensor | None = None  # the second-order pooling e of an image, [B, C]
    local: Tensor | None = None  # x_i^t, the add-on output, [B, D, h, w]
    distances: Tensor | None = None  # [B, m, h, w]
    similarities: Tensor | None = None  # attention-gated, spatially max-pooled, [B, m]


class AttentionHead(nn.Module):
    """Class-agnostic times class-specific 1x1 filters: rank-1 second-order pooling (Girdhar & Ramanan 2017)."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.agnostic = nn.Conv2d(channels, 1, 1)
        self.specific = nn.Conv2d(channels, classes, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """features : [B, C, h, w] -> logits [B, K], attention A [B, h, w] with spatial peak 1, embedding e [B, C].

        e = mean_t a(x_t) x_t, the rank-1 second-order pooling: logits are linear in it, dropout and biases left aside.
        """
        features = torch.relu(features)
        saliency = self.agnostic(features)
        maps = saliency * self.specific(self.dropout(features))
        strongest = torch.relu(maps).amax(dim=1)
        # A map without a positive value has no peak to divide by; it stays zero instead of becoming 0/0.
        peak = strongest.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
        return maps.mean(dim=(2, 3)), strongest / peak, (saliency * features).mean(dim=(2, 3))


class PrototypeHead(nn.Module):
    """ProtoPNet's head (Chen et al. 2019) with similarity maps gated by attention."""

    def __init__(self, channels: int, config: NetworkConfig) -> None:
        super().__init__()
        count, depth = config.classes * config.prototypes_per_class, config.prototype_channels
        self.gamma = config.gamma
        self.add_on = nn.Sequential(nn.Conv2d(channels, depth, 1), nn.ReLU(), nn.Conv2d(depth, depth, 1), nn.Sigmoid())
        if config.add_on_start == "kaiming":
            for layer in self.add_on:
                if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                    nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.rand(count, depth))
        self.classifier = nn.Linear(count, config.classes, bias=False)
        own = self.own_class(config.classes, config.prototypes_per_class)
        with torch.no_grad():
            self.classifier.weight.copy_(1.5 * own - 0.5)  # +1 for a class's own prototypes, -0.5 for all others

    @staticmethod
    def own_class(classes: int, per_class: int) -> Tensor:
        """[K, m], 1 where a prototype belongs to the class: prototype l belongs to class l // c."""
        return torch.eye(classes).repeat_interleave(per_class, dim=1)

    def distances(self, local: Tensor) -> Tensor:
        """Squared distance of every location to every prototype: [B, D, h, w] -> [B, m, h, w].

        The norm expansion loses digits where it matters most, at distance zero: there the similarity's slope is
        1 / gamma. Shifting both sides by the prototypes' mean makes the norms, and so the rounding, smaller.
        """
        center = self.prototypes.detach().mean(dim=0)
        local, prototypes = local - center[:, None, None], self.prototypes - center
        cross = torch.einsum("bdhw,md->bmhw", local, prototypes)
        norms = prototypes.square().sum(dim=1)[None, :, None, None]
        return (local.square().sum(dim=1, keepdim=True) - 2 * cross + norms).clamp_min(0)

    def similarity(self, distances: Tensor, attention: Tensor | None) -> Tensor:
        """log((d + 1) / (d + gamma)), gated by A [B, h, w] if there is one: where prototypes fire, [B, m, h, w]."""
        maps = torch.log((distances + 1) / (distances + self.gamma))
        return maps if attention is None else maps * attention[:, None]

    def forward(self, features: Tensor, attention: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B, C, h, w], A [B, h, w] or none -> local [B, D, h, w], distances [B, m, h, w], similarities [B, m], logits
        [B, K].
        """
        local = self.add_on(features)
        distances = self.distances(local)
        similarities = self.similarity(distances, attention).amax(dim=(2, 3))
        return local, distances, similarities, self.classifier(similarities)


class PooledHead(nn.Module):
    """Global average pooling and one linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> logits [B, K]"""
        logits: Tensor = self.classifier(torch.relu(features).mean(dim=(2, 3)))
        return logits


def read_heads(
    stages: list[Tensor],
    attention_head: AttentionHead | None,
    prototype_head: PrototypeHead | None,
    pooled_head: PooledHead | None = None,
) -> Forward:
    """What the given heads make of the backbone's maps; an attention head gates the prototype head beside it."""
    logits: dict[str, Tensor] = {}
    attention = embedding = local = distances = similarities = None
    if attention_head is not None:
        logits[tensors.ATTENTION_ONLY], attention, embedding = attention_head(stages[-1])
    if prototype_head is not None:
        local, distances, similarities, logits[tensors.FULL] = prototype_head(stages[-1], attention)
    if pooled_head is not None:
        logits[POOLED] = pooled_head(stages[-1])
    return Forward(stages, logits, attention, embedding, local, distances, similarities)


def _at_least_float32(maps: Tensor) -> Tensor:
    return maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps


class Network(nn.Module):
    """Backbone and heads; a head that the config leaves out is None."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = make_backbone(config.backbone, config.output_stride)
        channels, wanted = self.backbone.channels[-1], config.heads
        attention = tensors.ATTENTION_ONLY in wanted
        self.attention_head = AttentionHead(channels, config.classes, config.attention_dropout) if attention else None
        self.prototype_head = PrototypeHead(channels, config) if tensors.FULL in wanted else None
        self.pooled_head = PooledHead(channels, config.classes) if POOLED in wanted else None
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, head: str | None = None) -> Forward:
        """[B, 3, H, W] in [0, 1] -> everything, or what one head needs: `attention` leaves the prototypes out."""
        stages = self.backbone(self.normalised(images))
        prototype_head = None if head in (tensors.ATTENTION_ONLY, POOLED) else self.prototype_head
        attention_head = None if head == POOLED else self.attention_head
        pooled_head = self.pooled_head if head in (None, POOLED) else None
        # In mixed precision the heads stay in float32: near zero, where similarity is steepest, distances need digits.
        with torch.autocast(images.device.type, enabled=False):
            return read_heads([_at_least_float32(maps) for maps in stages], attention_head, prototype_head, pooled_head)

    def normalised(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] as the backbone takes them."""
        return (images - self.mean) / self.std


def detector_features(forward: Forward) -> dict[str, Tensor]:
    """What the detector looks at, by layer name, [B, channels] each: the spatial mean of every stage (Lee et al. 2018)
    and the last stage's spatial standard deviation (`spread`); with an add-on output, its mean (`local`); with
    attention also the means that it weights, of the last stage (`attended`) and of the add-on output (`focus`).
    """
    stages, attention, local = forward.stages, forward.attention, forward.local
    last, means = stages[-1], [maps.mean(dim=(2, 3)) for maps in stages]
    features = {f"stage{index}": mean for index, mean in enumerate(means, start=1)}
    variance = (last - means[-1][:, :, None, None]).square().mean(dim=(2, 3))
    features["spread"] = torch.sqrt(variance + 1e-6)
    weights = None
    if attention is not None:
        weights = (attention / attention.sum(dim=(1, 2), keepdim=True).clamp_min(1e-6))[:, None]
        features["attended"] = (last * weights).sum(dim=(2, 3))
    if local is not None:
        features["local"] = local.mean(dim=(2, 3))
        if weights is not None:
            features["focus"] = (local * weights).sum(dim=(2, 3))
    return features
