"""Adversarial training: the single step on every batch, the watch over robustness, and what happens when it collapses.

Single-step training can overfit to its own step within one epoch (catastrophic overfitting, Wong et al. 2020): accuracy
under that step stays, accuracy under any longer attack is gone. A short PGD after every epoch sees it; the response is
to go back to the best epoch and to halve the step.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from training.attacks.loop import Attack, noisy_step, run_attack
from training.attacks.losses import loss_of
from training.config import TrainingConfig
from training.networks import Network

WATCHED = 128  # validation images under the watching attack after each epoch
COLLAPSE = 0.5  # robustness below this share of its best is taken for catastrophic overfitting
ROBUST = "robust "  # before a head's name in a row of the history


class Hardening:
    """What one run knows of its attacker; `caution` is a factor on the step, and part of the run's state."""

    def __init__(self, config: TrainingConfig, autocast: Callable[[], AbstractContextManager[None]]) -> None:
        self.config, self.autocast = config, autocast
        self.caution = 1.0

    @property
    def active(self) -> bool:
        """Whether this run trains on attacked images."""
        return self.config.adversarial != "none"

    def whole(self, progress: float) -> bool:
        """Whether a run that has come so far, a share of all epochs, has met its attacker at full strength."""
        return not self.active or progress > self.config.adversarial_full

    def attacked(
        self, network: Network, images: Tensor, labels: Tensor, progress: float, generator: torch.Generator
    ) -> Tensor:
        """A training batch, [B, 3, H, W] in [0, 1], after the single step that is due at a share `progress` of all
        epochs.
        """
        attack, head = self.config.training_attack(progress, self.caution), None
        if attack.eps == 0:
            return images
        if self.config.adversarial_climbs == "turns":
            heads = network.config.heads
            head = heads[int(torch.randint(len(heads), (), generator=generator))]
        loss = loss_of(network, head)
        with self._as_attacked(network), self.autocast():
            if self.config.adversarial == "n-fgsm":
                return noisy_step(attack.eps, attack.step, loss, images, labels, generator)
            return run_attack(attack, loss, images, labels, generator)

    @contextmanager
    def _as_attacked(self, network: Network) -> Iterator[None]:
        """The network as it will be used, without dropout and with fixed statistics; or as it trains."""
        modes = {module: module.training for module in network.modules()}
        if not self.config.adversarial_dropout:
            network.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training

    def watch(self) -> Attack:
        """Five steps of PGD."""
        eps = self.config.adversarial_eps
        return Attack(name="watch", eps=eps, steps=5, step=eps / 2, random_start=True)

    def collapsed(self, row: dict[str, float], history: list[dict[str, float]], classes: int) -> bool:
        """Whether the epoch of `row` lost robustness that was there; of `classes` one is right by chance."""
        best = max((_robustness(each) for each in history), default=0.0)
        return best > min(2 / classes, 0.6) and _robustness(row) < COLLAPSE * best


def _robustness(row: dict[str, float]) -> float:
    """Mean over heads."""
    shares = [value for name, value in row.items() if name.startswith(ROBUST)]
    return sum(shares) / len(shares) if shares else 0.0
