"""How often each head of a network is right, clean and attacked: the columns of the paper's Tables 1-4, the worst of
all attacks per image, and AutoAttack.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from bundle.errors import OptionError
from bundle.progress import Work
from bundle.resolution import wilson
from training.adversaries import (
    AUTO_CLASSES,
    BATCH,
    CLEAN,
    attack_pixels,
    check_attacks,
    run_dataset,
    samples_of,
    spread,
)
from training.attack_losses import judge_of
from training.attacks import from_bytes, round_to_bytes
from training.data.loading import image_loader, load_part
from training.networks import Network
from training.run import RunRecord, image_spec

# Clean and the white-box columns of the paper; black-box ones are ATTACK@SOURCE.
PAPER = ("clean", "fgsm-2", "fgsm-8", "bim10-2", "bim10-8", "pgd10-2", "pgd10-8", "mim10-2", "mim10-8")
AUTOATTACK, WORST = "autoattack-8", "worst"
NO_AUTOATTACK = "not measured: AutoAttack needs four classes"


def evaluate_run(
    record: RunRecord,
    network: Network,
    root: Path,
    *,
    attacks: Sequence[str],
    sources: Mapping[str, Network],
    part: str,
    count: int,
    autoattack_count: int,
    seed: int,
    minutes: float | None = None,
) -> dict[str, Any]:
    """For every head and attack, image by image whether the answer stayed right.

    `right[head][attack]` is a text of 1 and 0, one for each image; `worst` is right only where every attack leaves the
    answer right. Attacked images are rounded to 8 bits, as files are. AutoAttack at 8/255 runs on the first
    `autoattack_count` images of an even spread, as `autoattack-8`. What takes longer than so many `minutes` runs on
    fewer images; `not_measured` says so.
    """
    names = tuple(dict.fromkeys((CLEAN, *attacks)))
    check_attacks(names, sources, network)
    if WORST in names:
        raise OptionError(f"{WORST!r} is no attack but the worst of all others")
    dataset = run_dataset(record, root)
    everything = samples_of(dataset, part)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for each in (network, *sources.values()):
        each.to(device)
    told: tuple[str, ...] = () if network.config.classes >= AUTO_CLASSES or not autoattack_count else (NO_AUTOATTACK,)
    if minutes is not None:
        from robustness.budget import within_paper

        asked = {"count": min(count, len(everything)), "autoattack_count": autoattack_count}
        asked, fewer = within_paper(record, network, names, everything, asked, minutes)
        count, autoattack_count, told = asked["count"], asked["autoattack_count"], (*told, *fewer)
    chosen = spread(everything, count)
    able = network.config.classes >= AUTO_CLASSES and AUTOATTACK not in names
    subset = spread(chosen, autoattack_count) if able else ()
    spec = image_spec(record.config)
    whole, some = load_part(chosen, spec), load_part(subset, spec)
    jobs = [(name, whole) for name in names] + ([(AUTOATTACK, some)] if subset else [])
    total = len(network.config.heads) * sum(len(images) for _, images in jobs)
    transferred: dict[tuple[str, int], torch.Tensor] = {}  # by attack and batch: the same for every head
    right: dict[str, dict[str, str]] = {}
    seconds: dict[str, float] = {}
    with Work("attacking", total) as work:
        for head in network.config.heads:
            survived: dict[str, list[bool]] = {}
            for name, loaded in jobs:
                work.what = f"{head}: {name}"
                started = time.perf_counter()
                generator = torch.Generator().manual_seed(seed)
                judge, answers = judge_of(network, head), []
                loader = image_loader(loaded, spec, batch_size=BATCH, shuffle_seed=None)
                for index, (images, labels, _) in enumerate(loader):
                    pixels, labels = from_bytes(images.to(device)), labels.to(device)
                    attacked = transferred.get((name, index))
                    if attacked is None:
                        made = attack_pixels(name, network, head, pixels, labels, generator, sources)
                        attacked = from_bytes(round_to_bytes(made))
                    if "@" in name:
                        transferred[name, index] = attacked
                    with torch.no_grad():
                        answers += judge(attacked, labels).tolist()
                    work.advance(len(labels))
                survived[name] = answers
                seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 2)
            survived[WORST] = [all(each) for each in zip(*(survived[name] for name in names), strict=True)]
            right[head] = {name: "".join("01"[each] for each in answers) for name, answers in survived.items()}
    return {
        "preset": record.config.preset,
        "system": record.config.system,
        "backbone": record.config.backbone,
        "adversarial": record.config.adversarial,
        "seed": record.config.seed,
        "part": part,
        "images": [sample.key for sample in chosen],
        "autoattack_images": [sample.key for sample in subset],
        "right": right,
        "not_measured": list(told),
        "seconds": seconds,
    }


def show(result: dict[str, Any]) -> Table:
    """A table for a terminal: attacks down, heads across, Wilson intervals beside the shares."""
    heads = list(result["right"])
    table = Table("attack", *heads, "images", box=SIMPLE_HEAD, padding=(0, 2))
    for column in table.columns[1:]:
        column.justify = "right"
    for name in next(iter(result["right"].values())):
        cells = []
        for head in heads:
            answers = result["right"][head][name]
            low, high = wilson(answers.count("1"), len(answers))
            cells.append(f"{answers.count('1') / len(answers):.1%} [dim]{low:.0%}..{high:.0%}[/]")
        table.add_row(escape(name), *cells, str(len(result["right"][heads[0]][name])))
    return table
