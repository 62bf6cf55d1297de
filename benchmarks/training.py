"""What a training step of `maxsep` costs beside that of other systems, and whether images come fast enough for it."""

import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.record import paired
from training.augment import augment
from training.data import Dataset, Sample, open_dataset
from training.data.cub_writer import BirdSet, write_birds
from training.data.loading import CACHE_BYTES, ImageLoader, image_loader, load_part
from training.fit import Trainer
from training.parallel import Devices
from training.pixels import from_bytes
from training.presets import preset
from training.run import Run

OURS, OTHERS = "maxsep", ("protopnet", "ap")
WORKERS = 2  # processes that decode, as `fieldmark train` has by default
DRAWN = 20  # images a species that are drawn; the loader goes through them again and again


@dataclass(frozen=True, kw_only=True)
class Case:
    """One backbone at one size. A round is one step of either system, or one pass of the loader and one step."""

    backbone: str
    image_size: int  # pixels
    batch: int  # images a step
    classes: int  # K; prototypes are ten times as many
    rounds: int
    loader_images: int  # a pass of the loader alone
    loader_rounds: int
    fed_steps: int  # steps of a pass that the loader feeds
    fed_rounds: int


CASES = {
    "small": Case(
        backbone="small",
        image_size=64,
        batch=64,
        classes=20,
        rounds=40,
        loader_images=2048,
        loader_rounds=10,
        fed_steps=24,
        fed_rounds=3,
    ),
    "resnet34": Case(
        backbone="resnet34",
        image_size=224,
        batch=8,
        classes=200,
        rounds=12,
        loader_images=256,
        loader_rounds=8,
        fed_steps=12,
        fed_rounds=3,
    ),
}


def measure_training(cases: Mapping[str, Case] = CASES) -> dict[str, Any]:
    """For each case milliseconds of a step, `maxsep` after each other system, and images/s of the loader beside it.

    Float32 on the CPU, random weights: speed does not depend on what a network has learned.
    """
    return {name: _measure_case(case) for name, case in cases.items()}


def _measure_case(case: Case) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="fieldmark-bench-") as folder:
        dataset = draw(Path(folder) / "birds", case)
        trainers = {system: make_trainer(Path(folder), dataset, case, system) for system in (OURS, *OTHERS)}
        images, labels = made_up_batch(case)
        steps: dict[str, Callable[[], Tensor]] = {
            system: partial(optimisation_step, trainer, images, labels) for system, trainer in trainers.items()
        }
        result: dict[str, Any] = {
            "image": [case.image_size, case.image_size],
            "batch": case.batch,
            "classes": case.classes,
            "threads": torch.get_num_threads(),
            "step": {other: paired(steps[other], steps[OURS], rounds=case.rounds, warmup=2) for other in OTHERS},
        }
        return result | {"loader": _measure_loader(case, dataset.parts["train"], trainers[OURS], steps[OURS])}


def draw(folder: Path, case: Case) -> Dataset:
    """A few JPEG files of birds as large as the network wants them, under the names of `case.classes` species."""
    write_birds(folder, BirdSet(species=2, size=case.image_size, images_train=DRAWN, images_test=1, seed=0))
    labels = tuple(f"class {index}" for index in range(case.classes))
    return replace(open_dataset(folder), labels=labels)


def make_trainer(folder: Path, dataset: Dataset, case: Case, system: str) -> Trainer:
    """The product's own trainer of a system, ready for its first step; every system starts from the same backbone."""
    config = preset(case.backbone, system=system, image_size=case.image_size, batch_size=case.batch)
    config = replace(config, weights=None)
    return Trainer(
        Run(folder / system), dataset, config, Devices(accelerator="cpu", workers=WORKERS), Console(quiet=True)
    )


def made_up_batch(case: Case) -> tuple[Tensor, Tensor]:
    """Random images [B, 3, H, W] in [0, 1], laid out as the training loop has them, and labels [B]."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(case.batch, 3, case.image_size, case.image_size, generator=generator)
    labels = torch.randint(case.classes, (case.batch,), generator=generator)
    return images.contiguous(memory_format=torch.channels_last), labels


def optimisation_step(trainer: Trainer, images: Tensor, labels: Tensor) -> Tensor:
    """Forward, the whole objective, backward, Adam, as in the training loop after warm-up; returns the loss, []."""
    learner = trainer.learner
    loss: Tensor = learner.loss(images, labels, True)
    learner.optimizer.zero_grad()
    learner.fabric.backward(loss)
    learner.optimizer.step()
    return loss.detach()


def _measure_loader(
    case: Case, samples: tuple[Sample, ...], trainer: Trainer, step: Callable[[], Tensor]
) -> dict[str, Any]:
    """Images/s of loading against those of the step; each pass starts its workers anew, as each epoch does.

    `memory` and `decoding` run alone. `fed` is milliseconds of `fed_steps` steps, on one batch (first) and on batches
    that workers decode meanwhile on the same cores (second): what loading costs where both have to share. `augmenting`
    is the work between the two, and belongs to neither.
    """

    spec = trainer.feed.spec

    def loader(count: int, cache_bytes: int) -> ImageLoader:
        return image_loader(
            load_part(tuple(itertools.islice(itertools.cycle(samples), count)), spec, cache_bytes=cache_bytes),
            spec,
            batch_size=case.batch,
            shuffle_seed=0,
            workers=WORKERS,
        )

    def pass_over(batches: ImageLoader) -> None:
        for _ in batches:
            pass

    def unfed() -> None:
        for _ in range(case.fed_steps):
            step()

    feeding = loader(case.fed_steps * case.batch, 0)

    def fed() -> None:
        for pixels, labels, _ in feeding:
            optimisation_step(trainer, from_bytes(pixels).contiguous(memory_format=torch.channels_last), labels)

    def rates(work: Callable[[], Any], images: int) -> dict[str, Any]:
        timed = paired(work, step, rounds=case.loader_rounds, warmup=1)
        return images_per_second(timed, images, case.batch)

    count, batch, generator = case.loader_images, made_up_batch(case)[0], torch.Generator().manual_seed(0)
    return {
        "workers": WORKERS,
        "memory": rates(partial(pass_over, loader(count, CACHE_BYTES)), count),
        "decoding": rates(partial(pass_over, loader(count, 0)), count),
        "augmenting": rates(lambda: augment(batch, trainer.config.augmentation, generator), case.batch),
        "fed": paired(unfed, fed, rounds=case.fed_rounds, warmup=0),
    }


def images_per_second(timed: dict[str, Any], images: int, step_images: int) -> dict[str, Any]:
    """Images/s from paired times of some work on `images` (first) and of a step on `step_images` (second); a ratio
    above 1 says that the work is faster than the step.
    """
    scale = images / step_images
    return {
        "rounds": timed["rounds"],
        "images": images,
        "images_per_s": round(1e3 * images / timed["first_ms"]["p50"], 1),
        "step_images_per_s": round(1e3 * step_images / timed["second_ms"]["p50"], 1),
        "ratio": round(scale * timed["ratio"], 4),
        "ratio_5_95": [round(scale * value, 4) for value in timed["ratio_5_95"]],
    }
