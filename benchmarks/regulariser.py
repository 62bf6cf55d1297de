"""What the O(B) form of Eq. 3 saves beside the form that materialises all pairs of images, in time and in memory.

Most of the term's cost is common to both: the smallest distance over prototypes. So the double sum alone (`pairs`) is
measured apart from the whole term (`term`).

B images, m = cK prototypes, (h, w) the feature map. own, others and attention are [B, h, w], distances [B, m, h, w].
"""

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.record import paired
from training.losses import nearest_prototypes, regulariser

BATCHES = (8, 32, 128)
CLASSES, PER_CLASS, SIDE = 200, 10, 7  # K, c and cells, as for CUB at 224 pixels
ROUNDS = {8: 200, 32: 100, 128: 30}
LOOP_ROUNDS = 10

Terms = tuple[Tensor, Tensor]  # cluster and separation, [] each


def pairs_in_one(own: Tensor, others: Tensor, attention: Tensor) -> Terms:
    """The double sum as `training.losses.regulariser` has it: O(B)."""
    shared = attention.mean(dim=0)
    return (own * shared).mean(), (others * shared).mean()


def pairs_in_full(own: Tensor, others: Tensor, attention: Tensor) -> Terms:
    """The double sum as Eq. 3 is written: a_j^t d_i^t for all i and j at once, [B, B, h, w]: O(B^2)."""
    return (attention[None] * own[:, None]).mean(), (attention[None] * others[:, None]).mean()


def term_in_full(distances: Tensor, attention: Tensor, labels: Tensor, classes: int) -> Terms:
    """The whole regulariser with all pairs materialised."""
    own, others = nearest_prototypes(distances, labels, classes)
    return pairs_in_full(own, others, attention)


def term_in_a_loop(distances: Tensor, attention: Tensor, labels: Tensor, classes: int) -> Terms:
    """The triple loop over i, j and t, with the minimum inside, as a first draft would have it."""
    batch, count, height, width = distances.shape
    owners = torch.arange(count) // (count // classes)
    weights = [image.unbind(0) for image in attention.flatten(1).unbind(0)]  # a_j^t, []
    cluster, separation = distances.new_zeros(()), distances.new_zeros(())
    for image, label in zip(distances.flatten(2).unbind(0), labels, strict=True):
        own, other = (owners == label).nonzero().flatten(), (owners != label).nonzero().flatten()
        locations = image.unbind(1)  # distances of x_i^t, [m]
        for j in range(batch):
            for t, location in enumerate(locations):
                cluster = cluster + weights[j][t] * location[own].min()
                separation = separation + weights[j][t] * location[other].min()
    pairs = batch * batch * height * width
    return cluster / pairs, separation / pairs


def measure_regulariser(
    batches: Sequence[int] = BATCHES, *, classes: int = CLASSES, per_class: int = PER_CLASS, side: int = SIDE
) -> dict[str, Any]:
    """Milliseconds and peak bytes of forward and backward, O(B) first and all pairs second, so that a ratio above 1
    says how many times dearer all pairs are; by batch. The loop is timed at the smallest batch alone.

    `growth` is how many times time and memory grow from the smallest batch to the largest.
    """
    result: dict[str, Any] = {
        "classes": classes,
        "prototypes_per_class": per_class,
        "map": [side, side],
        "threads": torch.get_num_threads(),
        "memory": "peak of live tensors above the start, from the allocator's own events (torch.profiler)",
    }
    for batch in batches:
        inputs = made_up(batch, classes, per_class, side)
        rounds = ROUNDS.get(batch, 3)
        calls = _calls(*inputs, classes)
        result[f"batch{batch}"] = {
            part: paired(ours, full, rounds=rounds, warmup=2) | {"first_bytes": peak(ours), "second_bytes": peak(full)}
            for part, (ours, full) in calls.items()
        }
    result["growth"] = {
        "batch": batches[-1] / batches[0],
        **{part: _growth(result, batches, part) for part in ("pairs", "term")},
    }
    distances, attention, labels = made_up(batches[0], classes, per_class, side)
    cheap = partial(there_and_back, partial(regulariser, labels=labels, classes=classes), distances, attention)
    loop = partial(there_and_back, partial(term_in_a_loop, labels=labels, classes=classes), distances, attention)
    result["loop"] = {"batch": batches[0]} | paired(cheap, loop, rounds=LOOP_ROUNDS, warmup=1)
    return result


def made_up(batch: int, classes: int, per_class: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances [B, m, h, w], attention [B, h, w] in [0, 1], both with gradients, and labels [B]."""
    generator = torch.Generator().manual_seed(batch)
    distances = 30 * torch.rand(batch, classes * per_class, side, side, generator=generator)
    attention = torch.rand(batch, side, side, generator=generator)
    labels = torch.randint(classes, (batch,), generator=generator)
    return distances.requires_grad_(), attention.requires_grad_(), labels


def there_and_back(terms: Callable[..., Terms], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Forward, and backward to every input."""
    cluster, separation = terms(*inputs)
    return torch.autograd.grad(cluster - separation, inputs)


def peak(call: Callable[[], Any]) -> int:
    """The most bytes that tensors took at one time during the call, above what was live before.

    Exact and repeatable, to the byte. A process's resident size (ru_maxrss) is not: it holds what the C library keeps,
    and cannot see the few kilobytes of a small batch.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler speaks of devices that are not asked for
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        call()
    results: Any = watched.profiler.kineto_results if watched.profiler else None
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    live = highest = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        live += change
        highest = max(highest, live)
    return highest


def _calls(
    distances: Tensor, attention: Tensor, labels: Tensor, classes: int
) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """For the double sum and for the whole term: ours, and all pairs."""
    with torch.no_grad():
        own, others = nearest_prototypes(distances, labels, classes)
    maps = (own.requires_grad_(), others.requires_grad_(), attention)
    return {
        "pairs": (partial(there_and_back, pairs_in_one, *maps), partial(there_and_back, pairs_in_full, *maps)),
        "term": (
            partial(there_and_back, partial(regulariser, labels=labels, classes=classes), distances, attention),
            partial(there_and_back, partial(term_in_full, labels=labels, classes=classes), distances, attention),
        ),
    }


def _growth(result: dict[str, Any], batches: Sequence[int], part: str) -> dict[str, Any]:
    """From the smallest to the largest batch: factors, and the exponents of B that they amount to."""
    small, large = (result[f"batch{batch}"][part] for batch in (batches[0], batches[-1]))
    found: dict[str, Any] = {}
    for name, which in (("ours", "first"), ("all_pairs", "second")):
        time = large[f"{which}_ms"]["p50"] / small[f"{which}_ms"]["p50"]
        memory = large[f"{which}_bytes"] / small[f"{which}_bytes"]
        steps = math.log(batches[-1] / batches[0])
        found[name] = {
            "time": round(time, 2),
            "time_exponent": round(math.log(time) / steps, 2),
            "memory": round(memory, 2),
            "memory_exponent": round(math.log(memory) / steps, 2),
        }
    return found
