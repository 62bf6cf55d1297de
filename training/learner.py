"""What is optimised, in one hand: a network under an objective, the optimiser of both, an average over the weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.backbones import load_weights
from training.config import TrainingConfig
from training.losses import BatchLoss, Objective
from training.networks import Network
from training.run import network_config, start_from
from training.sharing import gathered, share_statistics

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True, kw_only=True)
class Learner:
    """One set of weights and all that changes it. `loss` and `optimizer` are as `fabric` has set them up: it knows the
    device, the precision, and the processes that train together.
    """

    fabric: "Fabric"
    network: Network  # the one inside `loss`
    loss: BatchLoss
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None  # over the network's weights, step by step

    @property
    def kept(self) -> Network:
        """The network that is validated and kept: the average over the weights, where there is one."""
        if self.average is None:
            return self.network
        average: Any = self.average.module
        return average  # type: ignore[no-any-return]

    def begin_average(self) -> None:
        """Let the average go on from the weights as they are now."""
        if self.average is not None:
            self.average.module.load_state_dict(self.network.state_dict())

    def set_rates(self, factor: float) -> None:
        """Every group's learning rate: its base times `factor`."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor

    @property
    def finite(self) -> bool:
        """Whether all weights and statistics are numbers."""
        return bool(torch.stack([value.isfinite().all() for value in self.loss.state_dict().values()]).all())


def make_learner(config: TrainingConfig, classes: int, fabric: "Fabric") -> Learner:
    """What a run begins with: weights by its seed, or those that its config names."""
    torch.manual_seed(config.seed)
    network = Network(network_config(config, classes))
    objective = Objective(config.loss, network.config, network.backbone.channels[-1])
    if config.weights:
        load_weights(network.backbone, config.backbone, config.weights)
    if config.start:
        start_from(network, Path(config.start))
    if fabric.world_size > 1:
        share_statistics(network, fabric.device)
        objective.gather = gathered
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(parameter_groups(network, objective, config))
    loss, optimizer = fabric.setup(BatchLoss(network, objective), optimizer)
    average = None
    if config.ema:
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
        average.requires_grad_(False)
    return Learner(fabric=fabric, network=network, loss=loss, optimizer=optimizer, average=average)


def parameter_groups(network: Network, objective: Objective, config: TrainingConfig) -> list[dict[str, Any]]:
    """Everything but the last layer of prototypes, which keeps +1 / -0.5 until they are projected. `base` is a group's
    rate before the schedule.
    """
    head = network.prototype_head
    free = [] if head is None else [head.prototypes]  # no weight decay on points of feature space
    free += [] if objective.centers is None else [objective.centers]
    apart = {id(each) for each in (*free, *([] if head is None else head.classifier.parameters()))}
    backbone = list(network.backbone.parameters())
    apart |= {id(each) for each in backbone}
    heads = [each for each in network.parameters() if id(each) not in apart]
    groups: list[dict[str, Any]] = [
        {"params": backbone, "base": config.learning_rate_backbone, "weight_decay": config.weight_decay},
        {"params": heads, "base": config.learning_rate_heads, "weight_decay": config.weight_decay},
        {"params": free, "base": config.learning_rate_heads, "weight_decay": 0.0},
    ]
    return [{**group, "lr": group["base"]} for group in groups if group["params"]]
