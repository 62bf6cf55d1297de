"""Attacked images as files: what an attacker with the weights would upload."""

import csv
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from bundle.errors import CheckpointError, OptionError
from bundle.files import atomic_folder
from training.attack_losses import judge_of, losses_against
from training.attacks import attack_named, from_bytes, gaussian_noise, round_to_bytes, worst_case
from training.data import Dataset, Sample, check_outside, open_dataset
from training.data.loading import image_loader
from training.networks import Network
from training.run import RunRecord, image_spec

CLEAN, NOISE = "clean", "noise"
NOISE_STD = 8 / 255  # pixel units; the control is as large as the largest usual eps
BATCH = 64


def run_dataset(record: RunRecord, root: Path) -> Dataset:
    """The dataset a run was trained on, divided as then; raises CheckpointError when it has changed."""
    dataset = open_dataset(root, seed=record.dataset.seed)
    if dataset.digest != record.dataset.digest:
        raise CheckpointError(
            f"{root} is not the data this run was trained on (files, labels or boxes differ)",
            hint="Restore it, or name the right folder with --data.",
        )
    return dataset


def perturb(
    name: str, network: Network, served: str, images: Tensor, labels: Tensor, generator: torch.Generator
) -> Tensor:
    """`clean`, `noise` or an attack's name, on uint8 images [B, H, W, 3]; rounded back to uint8."""
    if name == CLEAN:
        return images
    pixels = from_bytes(images)
    if name == NOISE:
        return round_to_bytes(gaussian_noise(pixels, NOISE_STD, generator))
    losses, judge = losses_against(network, served), judge_of(network, served)
    return round_to_bytes(worst_case(attack_named(name), losses, judge, pixels, labels, generator).images)


def write_attacks(
    record: RunRecord,
    network: Network,
    root: Path,
    out: Path,
    *,
    attacks: tuple[str, ...],
    networks: tuple[str, ...],
    part: str,
    count: int,
    seed: int,
    replace: bool = False,
) -> int:
    """Write OUT/<network>/<attack>/NNNNN.png and OUT/index.csv; returns the number of images."""
    for name in attacks:
        if name not in (CLEAN, NOISE):
            attack_named(name)
    dataset = run_dataset(record, root)
    check_outside(dataset, out)
    if part not in dataset.parts:
        raise OptionError(f"unknown part {part!r}", hint=f"Choose one of: {', '.join(dataset.parts)}.")
    chosen = spread(dataset.parts[part], count)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    loader = image_loader(chosen, image_spec(record.config), batch_size=BATCH, shuffle_seed=None)
    rows: list[tuple[str, str, str, str, str]] = []
    talk = Console(stderr=True)
    with atomic_folder(out, replace=replace, marker="index.csv") as folder:
        for served in networks:
            progress = track(attacks, f"attacking {served}", console=talk, transient=True, disable=not talk.is_terminal)
            for name in progress:
                target = folder / served / name
                target.mkdir(parents=True)
                generator = torch.Generator().manual_seed(seed)
                for images, labels, positions in loader:
                    images, labels = images.to(device), labels.to(device)
                    attacked = perturb(name, network, served, images, labels, generator).cpu().numpy()
                    for pixels, position in zip(attacked, positions.tolist(), strict=True):
                        sample, file = chosen[position], f"{position:05d}.png"
                        Image.fromarray(pixels).save(target / file)
                        label = dataset.labels[sample.label]
                        rows.append((served, name, f"{served}/{name}/{file}", sample.key, label))
        with (folder / "index.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(("network", "attack", "path", "source", "label"))
            writer.writerows(rows)
    return len(rows)


def spread(samples: tuple[Sample, ...], count: int) -> tuple[Sample, ...]:
    """At most `count` samples, evenly over the sorted part and so over the classes."""
    if count >= len(samples):
        return samples
    return tuple(samples[index * len(samples) // count] for index in range(count))
