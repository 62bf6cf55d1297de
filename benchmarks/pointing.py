"""`python -m benchmarks pointing [RUN...]`: do attention and prototypes lie on the birds' parts, clean and attacked?

A run's folder is named ROW-SEED, as `make study` names it; the seeds of a row are summed up together.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.record import result_file, save
from bundle.errors import OptionError
from bundle.false_alarms import wilson
from robustness.pointing import ANY, MEASURES, RADIUS, SHOWN, TELLING, pointing
from training.attacks.attacker import Attackers
from training.run import Run

STUDY = Path("build/study/small")
SYSTEMS = ("maxsep", "ap", "protopnet")


def bench(
    runs: Annotated[list[Path] | None, typer.Argument(help="Finished runs; those of the study by default.")] = None,
    data: Annotated[Path | None, typer.Option(help="The dataset, if it has moved since training.")] = None,
    attacks: Annotated[str, typer.Option(help="Comma-separated attacks; clean is always there.")] = "pgd10-8",
    count: Annotated[int, typer.Option(min=1, help="Test images at most, spread over the classes.")] = 100,
    name: Annotated[str, typer.Option(help="benchmarks/results/NAME.json")] = "pointing",
) -> None:
    """Measure every run on the same images, print a table and keep the result with device, versions and commit."""
    result_file(name)
    if not runs:
        study = (STUDY.glob(f"{system}-small{fast}-[0-9]") for system in SYSTEMS for fast in ("", "-fast"))
        runs = [run for found in study for run in sorted(found) if Run(run).finished]
    if not runs:
        raise OptionError(f"there are no finished runs in {STUDY}", hint="Run 'make study' first, or name the runs.")
    console = Console()
    measured: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    chosen = [each.strip() for each in attacks.split(",") if each.strip()]
    for run in runs:
        record, network = Run(run).load_network()
        dataset = record.dataset.unchanged_at(data if data is not None else Path(record.dataset.root))
        row = re.sub(r"-\d+$", "", run.resolve().name)
        attackers = Attackers(network=network, seed=record.config.seed)
        measured[row].append(pointing(record, attackers, dataset, attacks=chosen, count=count))
        console.print(f"{run.name} measured", highlight=False)
    rows = [row for row_name, results in measured.items() for row in summed_up(row_name, results)]
    result = {"radius": RADIUS, "prototypes_shown": SHOWN, "rows": rows}
    console.print(table(rows))
    console.print(f"-> {save(name, result)}", highlight=False, soft_wrap=True)


def summed_up(row: str, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a head and attack, from the results of a row's seeds."""
    return [
        {
            "row": row,
            "head": head,
            "attack": attack,
            "seeds": [each["seed"] for each in results],
            "right": _mean([each["heads"][head][attack]["right"] for each in results]),
        }
        | {kind: _means([each["heads"][head][attack][kind] for each in results]) for kind in (ANY, TELLING)}
        for head, columns in results[0]["heads"].items()
        for attack in columns
    ]


def _means(seeds: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    known = [each for each in seeds if each is not None]
    return {measure: _mean([each[measure] for each in known]) for measure in MEASURES} if known else None


def _mean(seeds: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The mean over seeds, with Wilson's interval for the images (the same for all), widened to hold each seed."""
    known = [each for each in seeds if each is not None]
    if not known:
        return None
    shares, images = [each["share"] for each in known], min(each["images"] for each in known)
    mean = sum(shares) / len(shares)
    low, high = wilson(mean * images, images)
    return {
        "mean": round(mean, 4),
        "interval": [round(min(low, *shares), 4), round(max(high, *shares), 4)],
        "by_seed": shares,
        "images": images,
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Means for a terminal: on any part, and on those that tell the species apart."""
    shown = Table("row", "head", "attack", "right", box=SIMPLE_HEAD, caption="on any part / on field marks")
    for measure in MEASURES:
        shown.add_column(measure.replace("_", " "), justify="right")
    for row in rows:
        cells = [
            " / ".join(_percent((row[kind] or {}).get(measure)) for kind in (ANY, TELLING)) for measure in MEASURES
        ]
        shown.add_row(row["row"], row["head"], row["attack"], _percent(row["right"]), *cells)
    return shown


def _percent(share: dict[str, Any] | None) -> str:
    return "-" if share is None else f"{share['mean']:.0%}"
