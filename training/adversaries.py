"""Attacks by name on a network's head, and attacked images as files, as an attacker with the weights would send them.

A name is `clean`, `noise`, `autoattack-EPS`, `apgd-EPS` (its two gradient attacks alone) or an attack of
`training.attacks`, which may say what loss it raises (pgd10-8:margin; cross-entropy if it does not) and which class it
wants to be answered (pgd10-8:least-likely; any wrong one if it does not). Any of these may have a source: NAME@SOURCE
is made on another network and transferred, as by an attacker who does not have the weights.
"""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from bundle.errors import CheckpointError, OptionError
from bundle.files import atomic_folder
from bundle.progress import Work
from training.attack_losses import LOSSES, TARGETS, LogitLoss, judge_of, losses_against, targeted, targets_of
from training.attacks import Attack, Judge, attack_named, from_bytes, gaussian_noise, round_to_bytes, worst_case
from training.autoattack import PARTS, auto_attack
from training.data import Dataset, Sample, check_outside
from training.data.loading import image_loader
from training.networks import Network
from training.run import Run, RunRecord, image_spec

CLEAN, NOISE = "clean", "noise"
_AUTO = re.compile(rf"({'|'.join(PARTS)})-([1-9][0-9]{{0,2}}|0)")
AUTO_CLASSES = 4  # the targeted ratio of logits divides by the gap to the fourth
NOISE_STD = 8 / 255  # pixel units; the control is as large as the largest usual eps
BATCH = 64
T = TypeVar("T")


def run_dataset(record: RunRecord, root: Path) -> Dataset:
    """The dataset a run was trained on, divided as then; raises CheckpointError when it has changed."""
    dataset = record.dataset.open(root)
    if dataset.digest != record.dataset.digest:
        raise CheckpointError(
            f"{root} is not the data this run was trained on (files, labels or boxes differ)",
            hint="Restore it, or name the right folder with --data.",
        )
    return dataset


def samples_of(dataset: Dataset, part: str) -> tuple[Sample, ...]:
    """The samples of a part that was asked for by name; raises OptionError where there are none."""
    if part not in dataset.parts:
        raise OptionError(f"unknown part {part!r}", hint=f"Choose one of: {', '.join(dataset.parts)}.")
    if not dataset.parts[part]:
        full = [name for name, samples in dataset.parts.items() if samples]
        raise OptionError(f"the {part} part of {dataset.name} holds no images", hint=f"There are: {', '.join(full)}.")
    return dataset.parts[part]


def check_attacks(names: tuple[str, ...], sources: Mapping[str, Network], network: Network) -> None:
    """Raises OptionError for a name that `perturb` would not understand."""
    for name in names:
        method, at, source = name.partition("@")
        if at and source not in sources:
            known = ", ".join(sources) or "none"
            raise OptionError(
                f"attack {name!r} names the source {source!r}", hint=f"Sources: {known}; give one by --source."
            )
        if method in (CLEAN, NOISE):
            continue
        auto = _AUTO.fullmatch(method)
        if auto is None:
            _attack_of(method)
        elif int(auto[2]) > 255:
            raise OptionError(f"attack {name}: eps {auto[2]}/255 is outside [0, 1]")
        elif (sources[source] if at else network).config.classes < AUTO_CLASSES:
            raise OptionError(f"{method} needs at least {AUTO_CLASSES} classes", hint="Use pgd100x10 there.")


def open_sources(texts: tuple[str, ...], record: RunRecord) -> dict[str, Network]:
    """Networks to transfer attacks from, by name, from NAME=RUN texts. They must take the same images and name the same
    classes as `record`.
    """
    found: dict[str, Network] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not re.fullmatch(r"[\w-]+", name):
            raise OptionError(f"{text!r} is not NAME=RUN", hint="For example: --source bb-v=runs/gap-vgg16")
        other, network = Run(Path(path)).load_network()
        if image_spec(other.config) != image_spec(record.config) or other.labels != record.labels:
            raise OptionError(
                f"{path} takes other images or knows other classes than this run",
                hint="Train the source on the same data at the same image size.",
            )
        if name in found:
            raise OptionError(f"two sources are named {name!r}")
        found[name] = network
    return found


def attack_pixels(
    name: str,
    network: Network,
    head: str,
    pixels: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    sources: Mapping[str, Network] | None = None,
) -> Tensor:
    """[B, 3, H, W] in [0, 1] and labels [B] -> attacked images of the same shape, in floats."""
    method, at, source = name.partition("@")
    if at and sources is not None:
        network = sources[source]
        head = network.config.heads[0]
    if method == CLEAN:
        return pixels
    if method == NOISE:
        return gaussian_noise(pixels, NOISE_STD, generator)
    judge = judge_of(network, head)
    if auto := _AUTO.fullmatch(method):
        seed, eps = generator.initial_seed(), int(auto[2])
        found = auto_attack(network, head, pixels, labels, eps=eps / 255, seed=seed, name=auto[1])
        return _none_untouched(found, pixels, judge, attack_named(f"pgd10-{eps}"), network, head, labels, generator)
    attack, loss, target = _attack_of(method)
    if target is not None:
        with torch.no_grad():
            labels = targets_of(target, network(pixels, head).logits[head], labels, generator)
        loss, judge = targeted(loss), judge_of(network, head, wanted=False)
    return worst_case(attack, losses_against(network, head, loss), judge, pixels, labels, generator).images


def _none_untouched(
    found: Tensor,
    pixels: Tensor,
    judge: Judge,
    attack: Attack,
    network: Network,
    head: str,
    labels: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """AutoAttack hands back the clean image where it fails or has nothing to do; what is called attacked must be, so
    that image takes `attack` instead, unless this would turn a wrong answer right.
    """
    clean = (found == pixels).flatten(1).all(1).nonzero().flatten()
    if attack.eps == 0 or not len(clean):
        return found
    tried = worst_case(attack, losses_against(network, head), judge, pixels[clean], labels[clean], generator)
    with torch.no_grad():
        keep = tried.fooled | judge(pixels[clean], labels[clean])
    found = found.clone()
    found[clean[keep]] = tried.images[keep]
    return found


def _attack_of(name: str) -> tuple[Attack, LogitLoss, str | None]:
    method, *words = name.split(":")
    loss = words.pop(0) if words and words[0] in LOSSES else "ce"
    target = words.pop(0) if words and words[0] in TARGETS else None
    if words:
        raise OptionError(
            f"attack {name!r} names no loss and no target by {':'.join(words)!r}",
            hint=f"ATTACK[:LOSS][:TARGET]; losses: {', '.join(LOSSES)}; targets: {', '.join(TARGETS)}.",
        )
    return attack_named(method), LOSSES[loss], target


def perturb(
    name: str,
    network: Network,
    head: str,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    sources: Mapping[str, Network] | None = None,
) -> Tensor:
    """The same on uint8 images [B, H, W, 3], rounded back to uint8."""
    if name == CLEAN:
        return images
    return round_to_bytes(attack_pixels(name, network, head, from_bytes(images), labels, generator, sources))


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
    sources: Mapping[str, Network] | None = None,
    replace: bool = False,
) -> int:
    """Write OUT/<network>/<attack>/NNNNN.png and OUT/index.csv; returns the number of images."""
    check_attacks(attacks, sources or {}, network)
    dataset = run_dataset(record, root)
    check_outside(dataset, out)
    chosen = spread(samples_of(dataset, part), count)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for each in (network, *(sources or {}).values()):
        each.to(device)
    loader = image_loader(chosen, image_spec(record.config), batch_size=BATCH, shuffle_seed=None)
    rows: list[tuple[str, str, str, str, str]] = []
    total = len(networks) * len(attacks) * len(chosen)
    with atomic_folder(out, replace=replace, marker="index.csv") as folder, Work("attacking", total) as work:
        for served in networks:
            for name in attacks:
                work.what = f"{served}: {name}"
                target = folder / served / name
                target.mkdir(parents=True)
                generator = torch.Generator().manual_seed(seed)
                for images, labels, positions in loader:
                    images, labels = images.to(device), labels.to(device)
                    attacked = perturb(name, network, served, images, labels, generator, sources).cpu().numpy()
                    for pixels, position in zip(attacked, positions.tolist(), strict=True):
                        sample, file = chosen[position], f"{position:05d}.png"
                        Image.fromarray(pixels).save(target / file)
                        label = dataset.labels[sample.label]
                        rows.append((served, name, f"{served}/{name}/{file}", sample.key, label))
                    work.advance(len(attacked))
        with (folder / "index.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(("network", "attack", "path", "source", "label"))
            writer.writerows(rows)
    return len(rows)


def spread(samples: tuple[T, ...], count: int) -> tuple[T, ...]:
    """At most `count` samples, evenly over the sorted part and so over the classes."""
    if count >= len(samples):
        return samples
    return tuple(samples[index * len(samples) // count] for index in range(count))
