"""`fieldmark data make|show|check`."""

import json as jsonlib
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bundle.console import lay_out, say
from bundle.errors import printable
from bundle.false_alarms import smallest_alpha
from bundle.image import ImageSpec
from bundle.progress import Work
from bundle.verbs import App
from training.data.check import examine
from training.data.cub_writer import BirdSet, write_birds
from training.data.dataset import Dataset, open_dataset
from training.data.division import lacking
from training.data.look import SPEC, look
from training.data.sheet import draw_sheet

LISTED = 20  # of each kind, in text
_FORMATS = {
    "cub": "in the format of CUB-200-2011",
    "cars": "in the format of Stanford Cars-196",
    "folder": "a folder of class folders",
    "manifest": "a manifest",
}
FOUND = 4  # exit code of a check that found something

Data = Annotated[
    Path, typer.Argument(metavar="DATA", help="CUB-200-2011, Stanford Cars, a folder of class folders, or a manifest.")
]
Seed = Annotated[
    int, typer.Option("--division-seed", "--seed", min=0, help="Divides the training data into parts, as in training.")
]
Validation = Annotated[float | None, typer.Option(help="Share of the training images, as in training.")]
Calibration = Annotated[float | None, typer.Option(help="Share of the training images, as in training.")]
Test = Annotated[float | None, typer.Option(help="Share of all images, where the data have no test part.")]

app = App()
verbs = App(help="Draw the built-in set of birds; look at any dataset, or check it.")
app.add_typer(verbs, name="data")


@app.callback()
def _root() -> None:
    """Keep `data` a named verb, whatever else this application holds."""


@verbs.command()
def make(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; CUB-200-2011's on-disk format.")],
    species: Annotated[int, typer.Option(help="How many species.")] = 20,
    size: Annotated[int, typer.Option(help="Longer side of a bird's box in pixels, roughly.")] = 64,
    images_train: Annotated[int, typer.Option(help="Training images a species.")] = 210,
    images_test: Annotated[int, typer.Option(help="Test images a species.")] = 30,
    seed: Annotated[int, typer.Option(help="The same seed draws the same set.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes; 0 takes one for each core.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier set in DIR.")] = False,
) -> None:
    """Draw birds whose species differ only by local field marks."""
    wanted = BirdSet(species=species, size=size, images_train=images_train, images_test=images_test, seed=seed)
    with Work("drawing birds", wanted.images) as work:
        write_birds(
            path, wanted, workers=workers or len(os.sched_getaffinity(0)), force=force, tick=lambda n: work.advance(n)
        )
    say(
        Console(),
        f"{path}: {wanted.species} species, {wanted.species * wanted.images_train:,} training images, "
        f"{wanted.species * wanted.images_test:,} test images, birds of about {wanted.size} px, seed {wanted.seed}",
    )


@verbs.command()
def show(
    path: Data,
    out: Annotated[Path, typer.Option(help="The picture to write, a .png file.")] = Path("sheet.png"),
    rows: Annotated[int, typer.Option(help="Most rows on the sheet.")] = 4,
    columns: Annotated[int, typer.Option(help="Pictures a row.")] = 6,
    parts: Annotated[bool, typer.Option("--parts", help="Mark the part locations.")] = False,
    seed: Seed = 0,
    validation: Validation = None,
    calibration: Calibration = None,
    test: Test = None,
    json: Annotated[bool, typer.Option("--json", help="Print what the dataset holds as JSON.")] = False,
) -> None:
    """Draw a contact sheet of any dataset and say what it holds."""
    dataset = open_dataset(path, seed=seed, validation=validation, calibration=calibration, test=test)
    shown = draw_sheet(dataset, out, rows=rows, columns=columns, parts=parts)
    if json:
        sys.stdout.write(jsonlib.dumps({**_facts(dataset), "sheet": str(out)}, ensure_ascii=False) + "\n")
        return
    console = Console()
    _tell(dataset, console)
    say(console, f"{shown} training images on {out}")


@verbs.command()
def check(
    path: Data,
    seed: Seed = 0,
    validation: Validation = None,
    calibration: Calibration = None,
    test: Test = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, max=10**9, help="Largest image that is decoded, as in training.")
    ] = ImageSpec.max_pixels,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, lists complete.")] = False,
) -> None:
    """Decode every image and say what is wrong: bad files, one photograph twice, parts that lack classes.

    Exit code 0: nothing is wrong. 4: files that cannot be read, the same file twice, one photograph or one group in
    two parts, one photograph in two classes.
    """
    dataset = open_dataset(path, seed=seed, validation=validation, calibration=calibration, test=test)
    seen = look(dataset.samples, replace(SPEC, max_pixels=max_pixels))
    findings = examine(dataset, seen)
    if json:
        document = {**_facts(dataset), **findings.document(), "classes_by_part": _classes_by_part(dataset)}
        sys.stdout.write(jsonlib.dumps(document, ensure_ascii=False) + "\n")
    else:
        console = Console()
        _tell(dataset, console)
        say(console, *findings.lines(LISTED))
        if findings.clean:
            say(console, f"{len(dataset.samples):,} images decoded, nothing wrong")
    if not findings.clean:
        raise typer.Exit(FOUND)


def _facts(dataset: Dataset) -> dict[str, Any]:
    n = len(dataset.parts["calibration"])
    return {
        "format": dataset.format,
        "classes": len(dataset.labels),
        "images": {part: len(samples) for part, samples in dataset.parts.items()},
        "division": dataset.division,
        "series": dataset.series,
        "smallest_alpha": smallest_alpha(n) if n else None,
        "passed_over": dataset.passed,
        "notes": dataset.notes,
    }


def _classes_by_part(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Images by class and part."""
    counts = {part: Counter(sample.label for sample in samples) for part, samples in dataset.parts.items()}
    return {name: {part: counts[part][code] for part in counts} for code, name in enumerate(dataset.labels)}


def _tell(dataset: Dataset, console: Console) -> None:
    """Images and classes by part, how they came about, and notes."""
    classes = {part: len(dataset.labels) - len(lacking(dataset.labels, each)) for part, each in dataset.parts.items()}
    table = Table(escape(printable(dataset.name)), *dataset.parts)
    table.add_row("images", *(str(len(samples)) for samples in dataset.parts.values()))
    table.add_row(f"classes of {len(dataset.labels)}", *map(str, classes.values()))
    lay_out(console, table)
    say(console, f"{dataset.name} is {_FORMATS[dataset.format]}", dataset.division)
    if dataset.series:
        say(console, f"series: {len(dataset.series)} found, {len(max(dataset.series, key=len))} images the longest")
    if n := len(dataset.parts["calibration"]):
        say(console, f"calibration: {n} images support an alpha of {smallest_alpha(n):g} and above")
    say(console, *(f"note: {note}" for note in dataset.notes))
