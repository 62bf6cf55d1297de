"""Which parameters learn how fast: groups with a rate of their own, and a schedule that needs no state."""

import math
from typing import Any

from training.config import TrainingConfig
from training.losses import Objective
from training.networks import Network


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


def rate_factor(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """What every base rate is multiplied by: a pure function of the step, so a resumed run has no scheduler to lose.

    "step" is the authors': their scheduler moves at the start of each joint epoch, so a tenth is due before the tenth.
    """
    if config.schedule == "step":
        joint = step // steps_per_epoch - config.warmup_epochs + 1  # 1 in the first joint epoch
        return float(0.1 ** (max(joint, 0) // 10))
    total = config.epochs * steps_per_epoch
    warm = max(1, total // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
