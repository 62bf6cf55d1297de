"""`fieldmark evaluate`."""

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bundle.errors import MissingExtra, OptionError
from bundle.files import write_text

MAX_SEED = 2**32 - 1
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def room() -> None:
    """Keep the verb's name, as long as there is one."""


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished training run.")],
    data: Annotated[Path | None, typer.Option(help="The dataset, if it has moved since training.")] = None,
    attacks: Annotated[
        str | None, typer.Option(help="Comma-separated attacks instead of the paper's columns; clean is always there.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(metavar="NAME=RUN", help="A run to transfer attacks from, as ATTACK@NAME.")
    ] = None,
    part: Annotated[str, typer.Option(help="Part of the dataset to attack.")] = "test",
    count: Annotated[int, typer.Option(min=1, help="Images at most, spread over the classes.")] = 400,
    autoattack_count: Annotated[int, typer.Option(min=0, help="Images at most for AutoAttack; 0 leaves it out.")] = 32,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of noise and random starts.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the result, image by image, to this JSON file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Accuracy of every head under the paper's attacks, per-image worst case and AutoAttack included."""
    try:
        from robustness.accuracy import PAPER, evaluate_run, show
        from training.adversaries import open_sources
        from training.run import Run
    except ImportError as problem:
        raise MissingExtra.named("training", "fieldmark evaluate", problem) from None
    record, model = Run(run).load_network()
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise OptionError(f"cannot write {out}", hint="Name a file in a folder that exists.")
    sources = open_sources(tuple(source or ()), record)
    chosen = PAPER if attacks is None else tuple(name.strip() for name in attacks.split(",") if name.strip())
    transferred = tuple(f"pgd10-8@{name}" for name in sources) if attacks is None else ()
    result = evaluate_run(
        record,
        model,
        data if data is not None else Path(record.dataset.root),
        attacks=(*chosen, *transferred),
        sources=sources,
        part=part,
        count=count,
        autoattack_count=autoattack_count,
        seed=seed,
    )
    text = jsonlib.dumps(result) + "\n"
    if out is not None:
        write_text(out, text)
    if json:
        sys.stdout.write(text)
    else:
        Console().print(show(result))
