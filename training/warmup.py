"""The start of a run on a backbone that has learned elsewhere: its heads alone, on features that are computed once.

The authors warm up for eleven thousand steps. A frozen backbone gives the same features every time, so those of a few
augmented copies are kept, and thousands of steps cost little more than the copies did.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from rich.console import Console
from torch import Tensor

from bundle.progress import shown
from training.augment import augment
from training.config import TrainingConfig
from training.feed import Walk
from training.losses import Objective
from training.networks import Network, read_heads
from training.pixels import from_bytes


def warm_up(
    network: Network,
    objective: Objective,
    batches: Walk,
    config: TrainingConfig,
    generator: torch.Generator,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    console: Console | None = None,
) -> float:
    """Take `warmup_steps` steps of the heads; returns the mean loss of the last tenth of them.

    The backbone computes under `autocast`, the heads as they always do, in float32. The rate is constant for half of
    the steps and falls to zero over the rest. Nothing but the heads changes. Shown on `console`.
    """
    # No longer than for the features: autocast keeps the weights that it has cast, and the steps below change them.
    with autocast():
        stages, labels = _features(network, batches, config, generator)
    network.train()
    network.backbone.eval()
    heads = [module for module in (network.attention_head, network.pooled_head) if module is not None]
    parameters = [each for head in heads for each in head.parameters()]
    if network.prototype_head is not None:
        parameters += [*network.prototype_head.add_on.parameters(), network.prototype_head.prototypes]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate_warmup)
    losses = []
    for step in shown(range(config.warmup_steps), "warming up the heads", unit="steps", console=console):
        chosen = torch.randint(len(labels), (config.batch_size,), generator=generator).to(labels.device)
        forward = read_heads(
            [stages[chosen].float()], network.attention_head, network.prototype_head, network.pooled_head
        )
        loss = objective(forward, labels[chosen], joint=False)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_warmup * min(1.0, 2 * (1 - step / config.warmup_steps))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses[-max(1, len(losses) // 10) :]).mean())


@torch.no_grad()
def _features(
    network: Network, batches: Walk, config: TrainingConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Last maps of `warmup_copies` augmented copies of every image, [n, C, h, w] in bfloat16, and labels [n]."""
    network.eval()
    maps, labels = [], []
    for _ in range(config.warmup_copies):
        for images, known, _ in batches():
            inputs = augment(from_bytes(images), config.augmentation, generator)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            maps.append(network.backbone(network.normalised(inputs))[-1].to(torch.bfloat16))
            labels.append(known)
    return torch.cat(maps), torch.cat(labels)
