"""Our PGD against torchattacks and foolbox: the same network, the same head, the same images, at equal success.

All of them attack the cross-entropy of one head, which alone is computed, through a network whose weights take no
gradients. What differs is the bookkeeping: who goes on attacking images that are already fooled.

B images, [B, 3, H, W] in [0, 1]; labels [B]; eps in [0, 1] pixel units.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.record import paired
from bundle import tensors
from bundle.errors import MissingExtra, TrainingError
from training.attacks.autoattack import HeadLogits
from training.attacks.loop import Attack, run_attack
from training.attacks.losses import judge_of, loss_of
from training.attacks.names import attack_named
from training.attacks.worst import worst_case
from training.data import open_dataset
from training.data.cub_writer import BirdSet, write_birds
from training.data.loading import images_array
from training.fit import Trainer
from training.networks import Network
from training.parallel import Devices
from training.pixels import from_bytes
from training.presets import preset
from training.run import Run, image_spec

OURS = "ours"
Batch = tuple[Tensor, Tensor]  # images, labels
Contender = Callable[[Tensor, Tensor], Tensor]  # images, labels -> [B] bool, whether fooled


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A briefly trained network and the attacks on it."""

    species: int = 8
    image_size: int = 48  # pixels
    images_train: int = 60  # a species
    images_test: int = 12  # a species
    epochs: int = 3
    one_pass: str = "pgd10-8"  # run without its random start, so that all make the same images
    one_pass_images: int = 32
    rounds: int = 6
    # Where almost all images are fooled at once, and where most survive.
    restarted: tuple[tuple[str, str], ...] = (
        (tensors.ATTENTION_ONLY, "pgd100x10-8"),
        (tensors.FULL, "pgd100x10-8"),
        (tensors.ATTENTION_ONLY, "pgd100x10-2"),
    )
    groups: int = 3
    group_images: int = 6


def measure_attacks(setup: Setup = Setup()) -> dict[str, Any]:
    """Times of ours (first) and of each library (second): a ratio above 1 says how many times faster ours is."""
    torchattacks, foolbox = _libraries()
    with tempfile.TemporaryDirectory(prefix="fieldmark-bench-") as folder:
        network, images, labels = trained(Path(folder), setup)
    result: dict[str, Any] = {
        "image": [setup.image_size, setup.image_size],
        "classes": setup.species,
        "threads": torch.get_num_threads(),
        "versions": {"torchattacks": torchattacks.__version__, "foolbox": foolbox.__version__},
    }
    for head in tensors.NETWORKS:
        batch, accuracy = answered_rightly(network, head, images, labels, setup.one_pass_images)
        result[head] = {"accuracy": round(accuracy, 4)}
        result[head][setup.one_pass] = compare_one_pass(network, head, setup.one_pass, batch, setup.rounds)
    for head, name in setup.restarted:
        batch, _ = answered_rightly(network, head, images, labels, setup.groups * setup.group_images)
        groups = list(zip(batch[0].split(setup.group_images), batch[1].split(setup.group_images), strict=True))
        result[head][name] = compare_restarts(network, head, name, groups)
    return result


def trained(folder: Path, setup: Setup) -> tuple[Network, Tensor, Tensor]:
    """A `maxsep` network after a few epochs on a few drawn birds, and all test images with their labels."""
    recipe = BirdSet(
        species=setup.species,
        size=setup.image_size,
        images_train=setup.images_train,
        images_test=setup.images_test,
        seed=0,
    )
    write_birds(folder / "birds", recipe)
    config = preset("small", image_size=setup.image_size, epochs=setup.epochs, batch_size=32, seed=0)
    dataset = open_dataset(folder / "birds", seed=config.seed)
    run = Run(folder / "run")
    Trainer(run, dataset, config, Devices(accelerator="cpu"), Console(quiet=True)).fit(resume=False)
    pixels, labels = images_array(dataset.parts["test"], image_spec(config))
    return run.load_network()[1], from_bytes(torch.from_numpy(pixels)), torch.from_numpy(labels)


@torch.no_grad()
def answered_rightly(network: Network, head: str, images: Tensor, labels: Tensor, count: int) -> tuple[Batch, float]:
    """At most `count` images that the head gets right before any attack, evenly over the classes, and its accuracy."""
    right = judge_of(network, head)(images, labels)
    indices = right.nonzero().flatten()
    if not len(indices):
        raise TrainingError(f"the benchmark's network gets no image right with its head {head!r}")
    wanted = min(count, len(indices))
    chosen = indices[torch.arange(wanted) * len(indices) // wanted]
    return (images[chosen], labels[chosen]), right.float().mean().item()


def compare_one_pass(network: Network, head: str, name: str, batch: Batch, rounds: int) -> dict[str, Any]:
    """Milliseconds of one pass without a random start over the whole batch, against each library; with the share of
    images fooled by each, and the share of pixel values in which theirs differ from ours.
    """
    torchattacks, foolbox = _libraries()
    attack, model = replace(attack_named(name), random_start=False), HeadLogits(network, head).eval()
    theirs = torchattacks.PGD(model, eps=attack.eps, alpha=attack.step, steps=attack.steps, random_start=False)
    other = foolbox.attacks.LinfPGD(abs_stepsize=attack.step, steps=attack.steps, random_start=False)
    wrapped, wrong = foolbox.PyTorchModel(model, bounds=(0, 1)), foolbox.criteria.Misclassification(batch[1])
    ours = partial(run_attack, attack, loss_of(network, head), *batch)
    libraries: dict[str, Callable[[], Tensor]] = {
        "torchattacks": partial(theirs, *batch),
        "foolbox": partial(other.run, wrapped, batch[0], wrong, epsilon=attack.eps),
    }
    judge, made = judge_of(network, head), ours()
    result: dict[str, Any] = {"images": len(batch[1]), "fooled": {OURS: _share(~judge(made, batch[1]))}}
    for library, call in libraries.items():
        images = call()
        result["fooled"][library] = _share(~judge(images, batch[1]))
        differ = _share((images - made).abs() > 1e-6)
        result[library] = paired(ours, call, rounds=rounds, warmup=1) | {"pixels_that_differ": differ}
    return result


def compare_restarts(network: Network, head: str, name: str, groups: Sequence[Batch]) -> dict[str, Any]:
    """Seconds of an attack with restarts, of ours and of three others, turn by turn on each group of images.

    `torchattacks_repeated` is its PGD run as often, on every image every time; `foolbox_repeat` is that library's own
    `repeat`, which does the same; `torchattacks_multiattack` goes on with the survivors, as ours does.
    """
    return race(_contenders(network, head, attack_named(name)), network, groups)


def race(contenders: Mapping[str, Contender], network: Network, groups: Sequence[Batch]) -> dict[str, Any]:
    """For each contender its seconds, the share of images fooled and the images that went through the network (a count
    that no other work on the machine disturbs); for all but ours, theirs / ours in time, with the least and the
    greatest such ratio of any group.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    fooled: dict[str, list[Tensor]] = {name: [] for name in names}
    forwarded = dict.fromkeys(names, 0)
    for turn, (images, labels) in enumerate(groups):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            torch.manual_seed(turn)
            with _counting(network) as count:
                started = time.perf_counter()
                found = contenders[name](images, labels)
                seconds[name].append(time.perf_counter() - started)
            fooled[name].append(found)
            forwarded[name] += count()
    result: dict[str, Any] = {"images": sum(len(labels) for _, labels in groups), "groups": len(groups)}
    for name in names:
        result[name] = {
            "seconds": round(sum(seconds[name]), 3),
            "fooled": _share(torch.cat(fooled[name])),
            "images_forward": forwarded[name],
        }
        if name != OURS:
            ratios = [theirs / ours for theirs, ours in zip(seconds[name], seconds[OURS], strict=True)]
            result[name] |= {
                "ratio": round(sum(seconds[name]) / sum(seconds[OURS]), 4),
                "ratio_of_groups": [round(min(ratios), 4), round(max(ratios), 4)],
            }
    return result


def _contenders(network: Network, head: str, attack: Attack) -> dict[str, Contender]:
    torchattacks, foolbox = _libraries()
    judge, model = judge_of(network, head), HeadLogits(network, head).eval()

    def theirs() -> Any:
        return torchattacks.PGD(model, eps=attack.eps, alpha=attack.step, steps=attack.steps, random_start=True)

    @torch.no_grad()
    def fooled_by(made: Tensor, labels: Tensor) -> Tensor:
        return ~judge(made, labels)

    def ours(images: Tensor, labels: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return worst_case(attack, [loss_of(network, head)], judge, images, labels, generator).fooled

    def repeated(images: Tensor, labels: Tensor) -> Tensor:
        found, one = torch.zeros(len(labels), dtype=torch.bool), theirs()
        for _ in range(attack.restarts):
            found |= fooled_by(one(images, labels), labels)
        return found

    def multi(images: Tensor, labels: Tensor) -> Tensor:
        together = torchattacks.MultiAttack([theirs() for _ in range(attack.restarts)])
        return fooled_by(together(images, labels), labels)

    def repeat(images: Tensor, labels: Tensor) -> Tensor:
        one = foolbox.attacks.LinfPGD(abs_stepsize=attack.step, steps=attack.steps, random_start=True)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
        wrong = foolbox.criteria.Misclassification(labels)
        found: Tensor = one.repeat(attack.restarts)(wrapped, images, wrong, epsilons=attack.eps)[2]
        return found

    return {OURS: ours, "torchattacks_repeated": repeated, "foolbox_repeat": repeat, "torchattacks_multiattack": multi}


@contextmanager
def _counting(network: Network) -> Iterator[Callable[[], int]]:
    """Count the images that go through the network."""
    sizes: list[int] = []
    handle = network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    try:
        yield lambda: sum(sizes)
    finally:
        handle.remove()


def _share(mask: Tensor) -> float:
    return round(mask.float().mean().item(), 4)


def _libraries() -> tuple[Any, Any]:
    try:
        import foolbox
        import torchattacks  # type: ignore[import-untyped]
    except ImportError as problem:
        raise MissingExtra.named("dev", "Comparing attacks", problem) from None
    return torchattacks, foolbox
