"""`fieldmark data make|show`."""

import json as jsonlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bundle.progress import Work
from training.data.cub_writer import Recipe, write_birds
from training.data.dataset import open_dataset
from training.data.sheet import draw_sheet

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
verbs = typer.Typer(no_args_is_help=True, help="Draw the built-in set of birds, or look at any dataset.")
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
    recipe = Recipe(species=species, size=size, images_train=images_train, images_test=images_test, seed=seed)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    with Work("drawing birds", recipe.images) as work:
        write_birds(
            path, recipe, workers=workers or len(os.sched_getaffinity(0)), force=force, tick=lambda n: work.advance(n)
        )
    console.print(
        f"{path}: {recipe.species} species, {recipe.species * recipe.images_train} training images, "
        f"{recipe.species * recipe.images_test} test images, birds of about {recipe.size} px, seed {recipe.seed}"
    )


@verbs.command()
def show(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="CUB-200-2011, Stanford Cars, or a plain image folder.")],
    out: Annotated[Path, typer.Option(help="The picture to write, a .png file.")] = Path("sheet.png"),
    rows: Annotated[int, typer.Option(help="Most rows on the sheet.")] = 4,
    columns: Annotated[int, typer.Option(help="Pictures a row.")] = 6,
    parts: Annotated[bool, typer.Option("--parts", help="Mark the part locations.")] = False,
    seed: Annotated[int, typer.Option(help="Divides the training data into parts, as in training.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print what the dataset holds as JSON.")] = False,
) -> None:
    """Draw a contact sheet of any dataset and say what it holds."""
    dataset = open_dataset(path, seed=seed)
    shown = draw_sheet(dataset, out, rows=rows, columns=columns, parts=parts)
    counts = {part: len(samples) for part, samples in dataset.parts.items()}
    if json:
        facts = {"format": dataset.format, "classes": len(dataset.labels), "images": counts, "sheet": str(out)}
        sys.stdout.write(jsonlib.dumps(facts, ensure_ascii=False) + "\n")
        return
    console = Console(markup=False, highlight=False, soft_wrap=True)
    table = Table("format", "classes", *counts)
    table.add_row(dataset.format, str(len(dataset.labels)), *map(str, counts.values()))
    console.print(table)
    console.print(f"{shown} training images on {out}")
