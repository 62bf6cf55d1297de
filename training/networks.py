"""The network of the paper: a backbone, an attention head (Ours-A) and a prototype head (Ours-FR) that it gates.

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

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What the state dict needs around it."""

    backbone: str  # a name in training.backbones.BACKBONES
    classes: int  # K
    prototypes_per_class: int = 10  # c
    prototype_channels: int = 128  # D
    attention_dropout: float = 0.8  # on the class-specific branch only
    gamma: float = 1e-4  # floor of the similarity log((d + 1) / (d + gamma)); the paper prints 1e-5, its code 1e-4


class Forward(NamedTuple):
    """Everything one pass computes."""

    stages: list[Tensor]  # backbone maps, [B, C_s, H_s, W_s]
    attention_logits: Tensor  # [B, K]
    attention: Tensor  # A, [B, h, w], peak 1
    local: Tensor  # x_i^t, the add-on output, [B, D, h, w]
    distances: Tensor  # [B, m, h, w]
    similarities: Tensor  # attention-gated, spatially max-pooled, [B, m]
    logits: Tensor  # [B, K]

    def head(self, network: str) -> Tensor:
        """Logits of `full` (prototype head) or `attention`."""
        return self.logits if network == tensors.FULL else self.attention_logits


class AttentionHead(nn.Module):
    """Class-agnostic times class-specific 1x1 filters: rank-1 second-order pooling (Girdhar & Ramanan 2017)."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.agnostic = nn.Conv2d(channels, 1, 1)
        self.specific = nn.Conv2d(channels, classes, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features : [B, C, h, w] -> logits [B, K], attention A [B, h, w] with spatial peak 1."""
        features = torch.relu(features)
        maps = self.agnostic(features) * self.specific(self.dropout(features))
        strongest = torch.relu(maps).amax(dim=1)
        # A map without a positive value has no peak to divide by; it stays zero instead of becoming 0/0.
        peak = strongest.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
        return maps.mean(dim=(2, 3)), strongest / peak


class PrototypeHead(nn.Module):
    """ProtoPNet's head (Chen et al. 2019) with similarity maps gated by attention."""

    def __init__(self, channels: int, config: NetworkConfig) -> None:
        super().__init__()
        count, depth = config.classes * config.prototypes_per_class, config.prototype_channels
        self.gamma = config.gamma
        self.add_on = nn.Sequential(nn.Conv2d(channels, depth, 1), nn.ReLU(), nn.Conv2d(depth, depth, 1), nn.Sigmoid())
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

    def forward(self, features: Tensor, attention: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B, C, h, w], A [B, h, w] -> local [B, D, h, w], distances [B, m, h, w], similarity [B, m], logits [B, K]"""
        local = self.add_on(features)
        distances = self.distances(local)
        maps = torch.log((distances + 1) / (distances + self.gamma)) * attention[:, None]
        similarities = maps.amax(dim=(2, 3))
        return local, distances, similarities, self.classifier(similarities)


class Network(nn.Module):
    """Backbone + both heads. `forward` gives everything; `attend` stops before the prototype head."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = make_backbone(config.backbone)
        self.attention_head = AttentionHead(self.backbone.channels[-1], config.classes, config.attention_dropout)
        self.prototype_head = PrototypeHead(self.backbone.channels[-1], config)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def attend(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """The standalone attention network: [B, 3, H, W] in [0, 1] -> stages, logits [B, K], A [B, h, w]."""
        stages = self.backbone((images - self.mean) / self.std)
        logits, attention = self.attention_head(stages[-1])
        return stages, logits, attention

    def forward(self, images: Tensor) -> Forward:
        stages, attention_logits, attention = self.attend(images)
        local, distances, similarities, logits = self.prototype_head(stages[-1], attention)
        return Forward(
            stages=stages,
            attention_logits=attention_logits,
            attention=attention,
            local=local,
            distances=distances,
            similarities=similarities,
            logits=logits,
        )


def detector_features(stages: list[Tensor], attention: Tensor, local: Tensor | None) -> dict[str, Tensor]:
    """What the detector looks at, by layer name, [B, channels] each: the spatial mean of every stage (Lee et al. 2018);
    the last stage's spatial standard deviation (`spread`) and attention-weighted mean (`attended`); and, where there is
    an add-on output, its plain and attention-weighted means (`local`, `focus`).
    """
    last, means = stages[-1], [maps.mean(dim=(2, 3)) for maps in stages]
    weights = (attention / attention.sum(dim=(1, 2), keepdim=True).clamp_min(1e-6))[:, None]
    features = {f"stage{index}": mean for index, mean in enumerate(means, start=1)}
    variance = (last - means[-1][:, :, None, None]).square().mean(dim=(2, 3))
    features["spread"] = torch.sqrt(variance + 1e-6)
    features["attended"] = (last * weights).sum(dim=(2, 3))
    if local is not None:
        features["local"] = local.mean(dim=(2, 3))
        features["focus"] = (local * weights).sum(dim=(2, 3))
    return features
