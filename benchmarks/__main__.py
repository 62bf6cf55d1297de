"""`python -m benchmarks [NAME...]`: measure, print, and write benchmarks/results/NAME.json; `--help` lists them all."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.catalogue import BENCHMARKS, BUNDLE, Benchmark, load
from benchmarks.record import save
from bundle.errors import OptionError
from bundle.verbs import App, Verb
from fieldmark import as_process, guarded

PROGRAM = "python -m benchmarks"
DEMO = Path("build/demo/bundle")


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="Which to run; by default all that have no options of their own.")
    ] = None,
    bundle: Annotated[Path, typer.Option(help="The bundle to measure.")] = DEMO,
    quick: Annotated[
        bool, typer.Option("--quick", help="Rehearse, and keep nothing: those that have a rehearsal.")
    ] = False,
) -> None:
    """Measure side by side in one run and keep the results with device, versions and commit.

    A benchmark with options of its own is started by itself, with them: python -m benchmarks NAME --help
    """
    console, chosen = Console(), _chosen(names, quick=quick)
    if not bundle.exists() and any(each.needs == BUNDLE for each in chosen.values()):
        raise OptionError(f"there is no bundle at {bundle}", hint="Run 'make demo' first, or pass --bundle.")
    for name, benchmark in chosen.items():
        result = measure(benchmark, bundle, quick=quick)
        if not quick:
            path = save(bundle.parent.name if name == "demo" else name, result)  # demo, demo-small-fast, ...
            console.print(f"[bold]{name}[/] -> {path}")
            if benchmark.page:
                load(benchmark.page)(path)
        console.print_json(json.dumps(result))


def measure(benchmark: Benchmark, bundle: Path, *, quick: bool = False) -> dict[str, Any]:
    """Its figures; with backbones beside it, by network: the bundle's, and each of these with random weights."""
    call = load(benchmark.rehearsal if quick else benchmark.at)
    if benchmark.needs != BUNDLE:
        return dict(call())
    if not benchmark.beside:
        return dict(call(bundle))
    from benchmarks.synthetic import write_synthetic

    result = {"demo": call(bundle)}
    for backbone in benchmark.beside:
        with tempfile.TemporaryDirectory(prefix="fieldmark-bench-") as folder:
            result[backbone] = call(write_synthetic(Path(folder), backbone))
    return result


def listed() -> Table:
    """Every benchmark, one a row."""
    table = Table("name", "measures", "takes", "needs", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, each in BENCHMARKS.items():
        table.add_row(f"{name} ..." if each.alone else name, each.measures, each.takes, each.needs)
    return table


class Listing(Verb):
    """A command whose help ends with the list of benchmarks."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        Console().print(listed())
        Console().print(f"NAME ...: started alone, has options of its own ({PROGRAM} NAME --help)", highlight=False)


def main(arguments: list[str]) -> None:
    """Start what the arguments ask for."""
    app = App()
    name = arguments[0] if arguments else ""
    if name in BENCHMARKS and BENCHMARKS[name].alone:
        app.command()(load(BENCHMARKS[name].at))
        app(args=arguments[1:], prog_name=f"{PROGRAM} {name}")
    else:
        app.command(cls=Listing)(bench)
        app(args=arguments, prog_name=PROGRAM)


def _chosen(names: list[str] | None, *, quick: bool) -> dict[str, Benchmark]:
    """A mistyped name must not cost the minutes of those before it."""
    able = {name: each for name, each in BENCHMARKS.items() if not each.alone and (each.rehearsal or not quick)}
    for name in names or ():
        if name not in BENCHMARKS:
            raise OptionError(f"unknown benchmark {name!r}", hint=f"Choose from: {', '.join(BENCHMARKS)}.")
        if BENCHMARKS[name].alone:
            raise OptionError(
                f"{name!r} has options of its own and is started alone", hint=f"{PROGRAM} {name} --help tells them."
            )
        if name not in able:
            raise OptionError(f"{name!r} cannot be rehearsed", hint=f"Choose from: {', '.join(able)}.")
    return {name: able[name] for name in names or able}


if __name__ == "__main__":
    as_process(lambda: guarded(lambda: main(sys.argv[1:])))
