"""One epoch: every step, then what the network answers on validation, and under attack where it trains on such."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from bundle.errors import TrainingError
from training.attacks.loop import Attack, run_attack
from training.attacks.losses import loss_of
from training.feed import Feed
from training.hardening import ROBUST, Hardening
from training.learner import Learner
from training.networks import Network
from training.outcome import Row
from training.pixels import from_bytes
from training.sharing import total
from training.step import Moment, train_step


def train_epoch(learner: Learner, hardening: Hardening, feed: Feed, epoch: int, advance: Callable[[], None]) -> Row:
    """Train for one pass over the training part, calling `advance` after each step; returns the epoch's figures.
    Raises TrainingError where loss or weights are no longer finite.
    """
    started = time.perf_counter()
    moment = Moment(config=feed.config, epoch=epoch, steps_per_epoch=feed.steps_per_epoch)
    generator = feed.draws(epoch)
    learner.network.train()
    learner.network.backbone.learn_from(feed.config.frozen_stages if moment.joint else None)
    summed, seen = 0.0, 0
    for step, batch in enumerate(feed.batches("train", epoch)):
        value = train_step(learner, hardening, batch, replace(moment, step=step), generator)
        summed, seen = summed + value * len(batch.labels), seen + len(batch.labels)
        advance()
    if not learner.finite:
        raise TrainingError(f"the weights are no longer finite after epoch {epoch + 1}")
    row = {"loss": summed / seen, **accuracy(learner.kept, feed, "validation")}
    if hardening.active:
        robust = accuracy(learner.kept, feed, "watched", hardening.watch())
        row |= {f"{ROBUST}{head}": share for head, share in robust.items()} | {"caution": hardening.caution}
    return row | {"seconds": time.perf_counter() - started}


@torch.no_grad()
def accuracy(network: Network, feed: Feed, part: str, attack: Attack | None = None) -> Row:
    """Share of the part's images that each head gets right, clean or after an attack on all heads together."""
    network.eval()
    heads = network.config.heads
    right = torch.zeros(len(heads), device=feed.fabric.device)
    generator = torch.Generator().manual_seed(feed.config.seed)
    for images, labels, _ in feed.batches(part):
        inputs = from_bytes(images)
        if attack is not None:
            inputs = run_attack(attack, loss_of(network), inputs, labels, generator)
        logits = network(inputs).logits
        right += torch.stack([(logits[head].argmax(1) == labels).sum() for head in heads])
    if not len(feed.parts[part]):
        return {}
    shares = (total(feed.fabric, right) / len(feed.parts[part])).tolist()
    return dict(zip(heads, shares, strict=True))
