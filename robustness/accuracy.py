"""How often each head of a network is right, clean and attacked: the columns of the paper's Tables 1-4, the worst of
all attacks per image, and AutoAttack.
"""

import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from bundle.errors import OptionError
from bundle.false_alarms import wilson
from bundle.progress import Work
from robustness.journal import Journal, Success, key_of
from robustness.suites import Suite
from training.attacks.attacker import Attacker, Attackers
from training.attacks.files import BATCH
from training.attacks.losses import judge_of
from training.attacks.names import AUTO_CLASSES, CLEAN
from training.data.choice import samples_of, spread
from training.data.loading import image_loader, load_part
from training.pixels import from_bytes, round_to_bytes
from training.run import RunRecord, image_spec

Transferred = dict[tuple[str, int], torch.Tensor]  # attacked images by attack and batch: the same for every head
AUTOATTACK, WORST = "autoattack-8", "worst"
NO_AUTOATTACK = "not measured: AutoAttack needs four classes"


def evaluate_run(
    record: RunRecord,
    attackers: Attackers,
    root: Path,
    suite: Suite,
    *,
    part: str = "test",
    minutes: float | None = None,
    journal: Journal | None = None,
) -> dict[str, Any]:
    """For every head and attack, image by image whether the answer stayed right. An attack that `journal` has is not
    made again, since each begins its chance anew; its `seconds` are then left out.

    `right[head][attack]` is a text of 1 and 0, one for each image; `worst` is right only where every attack leaves the
    answer right. Attacked images are rounded to 8 bits, as files are. AutoAttack at 8/255 runs on the first
    `autoattack_count` images of an even spread, as `autoattack-8`. What takes longer than so many `minutes` runs on
    fewer images; `not_measured` says so.
    """
    names, network = tuple(dict.fromkeys((CLEAN, *suite.attacks))), attackers.network
    attackers.check(names)
    if WORST in names:
        raise OptionError(f"{WORST!r} is no attack but the worst of all others")
    dataset = record.dataset.unchanged_at(root)
    everything = samples_of(dataset, part)
    device = attackers.to_device()
    journal = Journal() if journal is None else journal
    given = {"seed": attackers.seed, "digest": record.dataset.digest, "size": record.config.image_size}
    told = () if network.config.classes >= AUTO_CLASSES or not suite.autoattack_count else (NO_AUTOATTACK,)
    if minutes is not None:
        from robustness.budget import within_paper

        asked = replace(suite, attacks=names, count=min(suite.count, len(everything)))
        choose = partial(within_paper, asked, record, network, everything, minutes)
        suite = journal.chosen({**given, "part": part, "minutes": minutes, "suite": asdict(asked)}, network, choose)
    chosen = spread(everything, suite.count)
    able = network.config.classes >= AUTO_CLASSES and AUTOATTACK not in names
    subset = spread(chosen, suite.autoattack_count) if able else ()
    spec = image_spec(record.config)
    whole, some = load_part(chosen, spec), load_part(subset, spec)
    jobs = [(name, chosen, whole) for name in names] + ([(AUTOATTACK, subset, some)] if subset else [])
    total = len(network.config.heads) * sum(len(images) for _, images, _ in jobs)
    weights = key_of(given, network, *(attackers.sources[name] for name in sorted(attackers.sources)))
    transferred: Transferred = {}
    right: dict[str, dict[str, str]] = {}
    seconds: dict[str, float] = {}
    told_before: set[str] = set()
    with Work("attacking", total) as work:
        for head in network.config.heads:
            survived: dict[str, list[bool]] = {}
            for name, samples, loaded in jobs:
                work.what = f"{head}: {name}"
                images_asked = [sample.key for sample in samples]
                key = key_of({"weights": weights, "head": head, "attack": name, "images": images_asked})
                known = journal.outcome(key, len(samples))
                if known is None:
                    started = time.perf_counter()
                    loader = image_loader(loaded, spec, batch_size=BATCH, shuffle_seed=None)
                    known = _stayed_right(attackers.on(head), name, loader, device, transferred, work)
                    journal.note(key, known)
                    seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 2)
                else:
                    told_before.add(name)
                    work.advance(len(known))
                survived[name] = known.tolist()
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
        "not_measured": [*told, *suite.left_out],
        "seconds": {name: each for name, each in seconds.items() if name not in told_before},
    }


def _stayed_right(
    attacker: Attacker, name: str, loader: Any, device: torch.device, transferred: Transferred, work: Work
) -> Success:
    """Which of a loader's images an attack leaves rightly answered, (n,)."""
    judge, answers = judge_of(attacker.network, attacker.head), []
    for index, (images, labels, _) in enumerate(loader):
        pixels, labels = from_bytes(images.to(device)), labels.to(device)
        attacked = transferred.get((name, index))
        if attacked is None:
            attacked = from_bytes(round_to_bytes(attacker.attack(name, pixels, labels)))
        if "@" in name:
            transferred[name, index] = attacked
        with torch.no_grad():
            answers += judge(attacked, labels).tolist()
        work.advance(len(labels))
    return np.array(answers, np.bool_)


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
