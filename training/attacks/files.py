"""Attacked images as files, as an attacker with the weights would send them."""

import csv
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bundle.attack_index import COLUMNS, INDEX
from bundle.files import atomic_folder
from bundle.progress import Work
from training.attacks.attacker import Attackers
from training.data import check_outside
from training.data.choice import samples_of, spread
from training.data.loading import image_loader
from training.run import RunRecord, image_spec

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class AttackOrder:
    """What is to be attacked: at most `count` images of a part, by every attack on every head."""

    attacks: tuple[str, ...]
    heads: tuple[str, ...]
    part: str = "test"
    count: int

    @property
    def jobs(self) -> list[tuple[str, str]]:
        """Head and attack."""
        return [(head, name) for head in self.heads for name in self.attacks]


def write_attacks(
    record: RunRecord, attackers: Attackers, root: Path, out: Path, order: AttackOrder, *, replace: bool = False
) -> int:
    """Write OUT/<head>/<attack>/NNNNN.png and OUT/index.csv; returns the number of images."""
    attackers.check(order.attacks)
    dataset = record.dataset.unchanged_at(root)
    check_outside(dataset, out)
    chosen = spread(samples_of(dataset, order.part), order.count)
    device = attackers.to_device()
    loader = image_loader(chosen, image_spec(record.config), batch_size=BATCH, shuffle_seed=None)
    rows: list[tuple[str, str, str, str, str]] = []
    total = len(order.jobs) * len(chosen)
    with atomic_folder(out, replace=replace, marker=INDEX) as folder, Work("attacking", total) as work:
        for head, name in order.jobs:
            work.what = f"{head}: {name}"
            target = folder / head / name
            target.mkdir(parents=True)
            attacker = attackers.on(head)
            for images, labels, positions in loader:
                attacked = attacker.attack_bytes(name, images.to(device), labels.to(device)).cpu().numpy()
                for pixels, position in zip(attacked, positions.tolist(), strict=True):
                    sample, file = chosen[position], f"{position:05d}.png"
                    Image.fromarray(pixels).save(target / file)
                    rows.append((head, name, f"{head}/{name}/{file}", sample.key, dataset.labels[sample.label]))
                work.advance(len(attacked))
        with (folder / INDEX).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(COLUMNS)
            writer.writerows(rows)
    return len(rows)
