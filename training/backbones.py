"""Fully convolutional backbones: an image tensor becomes one feature map per stage, the last of which feeds the heads.

H, W: image pixels. Every stage map is [B, C_s, H_s, W_s] and non-negative (after a ReLU).
"""

import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from bundle.errors import CheckpointError, OptionError, first_line

IMAGENET = "imagenet"
"""The weights that torchvision publishes, by name; any other name is a file's."""
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


class Backbone(nn.Module):
    """A chain of stages. `channels` holds C_s of each stage, `stride` the pixels per cell of the last map (the output
    stride).
    """

    def __init__(self, stages: Sequence[nn.Module], channels: tuple[int, ...], stride: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels = channels
        self.stride = stride

    def learn_from(self, stage: int | None) -> None:
        """Let stages learn from this one on (0: all); the ones before it, or with None all, stay as they are, their
        statistics too.
        """
        for index, each in enumerate(self.stages):
            learns = stage is not None and index >= stage
            each.train(learns)
            each.requires_grad_(learns)

    def forward(self, images: Tensor) -> list[Tensor]:
        """images : [B, 3, H, W], normalised -> one map per stage."""
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        return maps


class Residual(nn.Module):
    """The basic residual block (He et al. 2016): two 3x3 convolutions, a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu(self.body(maps) + self.shortcut(maps))


def _small(stride: int) -> Backbone:
    """Four stages of total stride 8: 64 px give an 8x8 map. About 0.1 GMAC at 64 px, for training on a CPU."""
    stem = nn.Sequential(nn.Conv2d(3, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
    return Backbone([stem, Residual(24, 48, 2), Residual(48, 96, 2), Residual(96, 128, 2)], (24, 48, 96, 128), stride)


def _vgg(depth: int, stride: int) -> Backbone:
    """All five blocks, at stride 32 with the last max-pool (7x7x512 at 224 px), at 16 without it."""
    import torchvision

    layers = list(getattr(torchvision.models, f"vgg{depth}")(weights=None).features)
    stages, block = [], []
    for layer in layers:
        block.append(layer)
        if isinstance(layer, nn.MaxPool2d):
            stages.append(block)
            block = []
    if stride == 16:
        stages[-1].pop()
    return Backbone([nn.Sequential(*each) for each in stages], (64, 128, 256, 512, 512), stride)


def _resnet34(stride: int) -> Backbone:
    """At stride 16 the last stage does not step, and its other convolutions reach twice as far, as their weights are
    used to (a dilation of 2).
    """
    import torchvision

    net = torchvision.models.resnet34(weights=None)
    if stride == 16:
        for name, layer in net.layer4.named_modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
                if layer.kernel_size == (3, 3) and name != "0.conv1":
                    layer.dilation = layer.padding = (2, 2)
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
    return Backbone([stem, net.layer2, net.layer3, net.layer4], (64, 128, 256, 512), stride)


def _densenet121(stride: int) -> Backbone:
    """At stride 16 the last transition does not pool."""
    import torchvision

    features = torchvision.models.densenet121(weights=None).features
    block, stages = [features.conv0, features.norm0, features.relu0, features.pool0], []
    for index in (1, 2, 3):  # a stage ends with the ReLU before the transition's convolution
        transition = features.get_submodule(f"transition{index}")
        block += [features.get_submodule(f"denseblock{index}"), transition.norm, transition.relu]
        stages.append(nn.Sequential(*block))
        block = [transition.conv, transition.pool]
    if stride == 16:
        block[-1] = nn.Identity()  # layers keep their numbers, and so weights their names
    stages.append(nn.Sequential(*block, features.denseblock4, features.norm5, nn.ReLU()))
    return Backbone(stages, (256, 512, 1024, 1024), stride)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """`make(stride)` gives the backbone with random weights; `strides` are the output strides it can have, the first as
    it was published.
    """

    make: Callable[[int], Backbone]
    strides: tuple[int, ...]


BACKBONES = {
    "small": Architecture(make=_small, strides=(8,)),
    "vgg16": Architecture(make=partial(_vgg, 16), strides=(32, 16)),
    "vgg19": Architecture(make=partial(_vgg, 19), strides=(32, 16)),
    "resnet34": Architecture(make=_resnet34, strides=(32, 16)),
    "densenet121": Architecture(make=_densenet121, strides=(32, 16)),
}


def check_backbone(name: str, stride: int) -> None:
    """Raise OptionError for a backbone that is not there, or not with this output stride (0: as it was published)."""
    if name not in BACKBONES:
        raise OptionError(f"unknown backbone {name!r}", hint=f"Choose one of: {', '.join(BACKBONES)}.")
    strides = BACKBONES[name].strides
    if stride and stride not in strides:
        raise OptionError(
            f"{name} has no output stride of {stride}", hint=f"Choose one of: {', '.join(map(str, strides))}."
        )


def make_backbone(name: str, stride: int = 0) -> Backbone:
    """A backbone with random weights and an output stride, by default the published one."""
    check_backbone(name, stride)
    return BACKBONES[name].make(stride or BACKBONES[name].strides[0])


def check_weights(name: str, weights: str) -> None:
    """Raise OptionError where a backbone takes none, or there is no such file; long work asks before it begins."""
    if name == "small":
        raise OptionError(
            "the small backbone takes no weights: nobody has trained it on ImageNet", hint="Leave --weights out."
        )
    if weights != IMAGENET and not Path(weights).is_file():
        raise OptionError(f"no weights file at {weights}", hint="Give a torchvision state dict, or 'imagenet'.")


def load_weights(backbone: Backbone, name: str, weights: str) -> None:
    """`imagenet` loads through torchvision's hub, anything else is a local state dict in torchvision's names."""
    check_weights(name, weights)
    if weights == IMAGENET:
        state = _download(name)
    else:
        path = Path(weights)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as problem:
            raise CheckpointError(f"{path} is not a PyTorch state dict ({first_line(problem)})") from None
    if isinstance(state, dict) and name == "densenet121":  # its published files keep the names of torch 0.3
        state = {_DENSE_LAYER.sub(r"\1\2", str(key)): value for key, value in state.items()}
    reference = _torchvision_names(backbone, name)
    missing = [key for key in reference if not isinstance(state, dict) or key not in state]
    if missing:
        raise CheckpointError(f"the weights do not belong to {name}: {missing[0]!r} is missing")
    try:
        backbone.load_state_dict({ours: state[theirs] for theirs, ours in reference.items()}, strict=False)
    except RuntimeError as problem:
        raise CheckpointError(f"the weights do not belong to {name}: {str(problem).splitlines()[-1].strip()}") from None


def _download(name: str) -> dict[str, Tensor]:
    import torchvision

    try:
        state: dict[str, Tensor] = torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=True)
    except (OSError, RuntimeError) as problem:
        raise CheckpointError(
            f"ImageNet weights of {name} could not be downloaded ({problem})",
            hint="Fetch torchvision's file on a connected machine and pass --weights FILE, or pass --weights none.",
        ) from None
    return state


def _torchvision_names(backbone: Backbone, name: str) -> dict[str, str]:
    """torchvision's parameter name -> ours, found by running the same modules through both containers in order."""
    import torchvision

    net = getattr(torchvision.models, name)(weights=None)
    source = getattr(net, "features", net)
    prefix = "features." if source is not net else ""
    theirs = [f"{prefix}{key}" for key in source.state_dict() if not key.startswith("fc.")]
    return dict(zip(theirs, backbone.state_dict(), strict=True))
