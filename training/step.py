"""One training step, and the moment at which it is taken.

The way of an image to the loss: `training.data.loading` decodes it, `training.feed` brings it in a batch, the step
augments and attacks it, `training.networks` answers, `training.losses` weighs the answer.
"""

import math
from dataclasses import dataclass

import torch

from bundle.errors import TrainingError
from training.augment import augment
from training.config import TrainingConfig
from training.feed import Batch
from training.hardening import Hardening
from training.learner import Learner
from training.pixels import from_bytes
from training.sharing import mean


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where in its run a step is taken, and what the config asks for there. Epochs and steps count from 0."""

    config: TrainingConfig
    epoch: int
    step: int = 0  # of the epoch
    steps_per_epoch: int

    @property
    def progress(self) -> float:
        """Share of all epochs that lies behind."""
        return (self.epoch + self.step / self.steps_per_epoch) / self.config.epochs

    @property
    def rate(self) -> float:
        """What every base learning rate is multiplied by."""
        return rate_factor(self.config, self.epoch * self.steps_per_epoch + self.step, self.steps_per_epoch)

    @property
    def joint(self) -> bool:
        """Whether the backbone learns too; before that, the heads warm up."""
        return self.epoch >= self.config.warmup_epochs

    @property
    def regularised(self) -> bool:
        """Whether the terms beside cross-entropy take part."""
        return self.joint and self.progress >= self.config.regularise_from

    @property
    def attacked(self) -> bool:
        """Whether a run that trains on attacked images does so here."""
        return self.joint or self.config.adversarial_warmup


def train_step(
    learner: Learner, hardening: Hardening, batch: Batch, moment: Moment, generator: torch.Generator
) -> float:
    """Take one step on a batch; returns its loss, the mean over all processes. Raises TrainingError, before any weight
    has moved, where that is not finite.
    """
    fabric, config = learner.fabric, moment.config
    learner.set_rates(moment.rate)

    clean = augment(from_bytes(batch.images), config.augmentation, generator)
    clean = inputs = clean.contiguous(memory_format=torch.channels_last)
    if hardening.active and moment.attacked:
        inputs = hardening.attacked(learner.network, clean, batch.labels, moment.progress, generator)

    loss = learner.loss(inputs, batch.labels, moment.regularised, None if inputs is clean else clean)
    value = mean(fabric, loss)
    if not math.isfinite(value):
        raise TrainingError(f"the loss became {value} in epoch {moment.epoch + 1}, batch {moment.step + 1}")

    learner.optimizer.zero_grad()
    fabric.backward(loss)
    if config.clip:
        fabric.clip_gradients(learner.loss, learner.optimizer, max_norm=config.clip)
    learner.optimizer.step()
    if learner.average is not None:
        learner.average.update_parameters(learner.network)
    return value


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
