"""The pictures of a study: what the paper shows in Figs. 2, 4, 5, 6 and 8, of the main systems' first seed.

Accuracy against eps for all of them in one picture (Fig. 6), clean and adversarially trained; of each run what the
attention does under attack (Figs. 5, 8), the prototypes (Fig. 4) and where they lie (Fig. 2). What is there is not made
again.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.record import read_kept
from benchmarks.study.place import Place
from benchmarks.study.tables import ORDER
from bundle.files import atomic_file, write_text
from robustness.curve import accuracy_curve
from robustness.figures import accuracy_against_eps, activations, prototype_sheet, prototype_space
from robustness.shown import images_looked_at, prototypes_shown
from training.attacks.attacker import Attackers
from training.data.choice import spread
from training.data.loading import images_array
from training.run import Run, image_spec

MAIN = ("ap", "maxsep", "protopnet")  # the comparison that is whole first
IMAGES, STEPS = 60, 10  # of accuracy against eps


def draw_pictures(place: Place, data: Path) -> Path:
    """Every picture of a study's runs that are finished; returns the folder of pictures."""
    out = place.folder / "pictures"
    out.mkdir(exist_ok=True)
    for suffix in ("", "-fast"):
        curves: dict[str, Any] = {}
        classes = 2
        for system in MAIN:
            run = Run(place.run(f"{system}-{place.backbone}{suffix}", 0))
            if not run.finished:
                continue
            record = run.read_record()
            classes = len(record.labels)
            kept = out / f"{run.path.name}.json"
            if not kept.is_file():
                _draw(run, data, out, kept)
            told = read_kept(kept)
            names = {head: label.strip("*") for name, head, label in ORDER if name == system}
            curves |= {names[head]: {"curve": curve} for head, curve in told.items()}
        if curves:
            _write(out / f"accuracy-against-eps{suffix}.png", accuracy_against_eps(curves, classes))
    return out


def _draw(run: Run, data: Path, out: Path, kept: Path) -> None:
    """One run's own pictures, and at last its curves, by which it counts as drawn."""
    record, network = run.load_network()
    Attackers(network=network).to_device()
    dataset, seed, name = record.dataset.unchanged_at(data), record.config.seed, run.path.name
    if network.attention_head is not None:
        _write(out / f"attention-{name}.png", activations(images_looked_at(record, network, dataset, seed)))
    if network.prototype_head is not None:
        prototypes = network.prototype_head.prototypes.detach().cpu().numpy()
        _write(out / f"prototypes-{name}.png", prototype_sheet(prototypes_shown(run, record, network, dataset)))
        _write(out / f"prototype-space-{name}.png", prototype_space(prototypes, record.labels))
    part = images_array(spread(dataset.parts["test"], IMAGES), image_spec(record.config))
    curves = {head: accuracy_curve(network, head, part, STEPS, seed) for head in network.config.heads}
    write_text(kept, json.dumps(curves) + "\n")


def _write(path: Path, picture: bytes) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(picture)
