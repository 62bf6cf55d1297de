"""`python -m benchmarks [NAME...]`: measure, print, and write benchmarks/results/NAME.json."""

import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import (
    attacks,
    detector,
    detector_speed,
    endpoint,
    gateway,
    gateway_page,
    regulariser,
    review,
    runtime,
    scoring,
    training,
)
from benchmarks.detectors import measure_detectors
from benchmarks.record import save
from benchmarks.synthetic import write_synthetic
from bundle.errors import OptionError
from bundle.folder import Bundle
from bundle.manifest import PRECISIONS
from demo.stages import fieldmark
from fieldmark import guarded

DEMO = Path("build/demo")


def demo(bundle: Path) -> dict[str, Any]:
    """The figures of the `make demo` that made the bundle: seconds of each stage, accuracy, flagged shares, AUROC."""
    path = bundle.parent / "report.json"
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if report["reused"]:
            reused = ", ".join(report["reused"])
            report["note"] = f"stages {reused} were reused; their seconds are those of their first run"
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise OptionError(f"{path} cannot be read ({problem})", hint="Run 'make demo' again.") from None
    return report


def footprint(_: Path) -> dict[str, Any]:
    """Disk taken by each environment and by the bundle, in MB."""
    return {name: _megabytes(path) for name, path in (("server", ".venv-triton"), ("development", ".venv"))}


def precisions(trained: Path) -> dict[str, Any]:
    """A bundle's run exported in every precision: size, parity and what it costs, as the manifests have it."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fieldmark-bench-") as folder:
        for precision in PRECISIONS:
            words = ("--precision", precision, "--report", "none", "--max-accuracy-loss", "100")
            fieldmark("export", trained.parent / "run", "--out", Path(folder) / precision, *words)
            bundle = Bundle.open(Path(folder) / precision)
            result[precision] = {
                name: {
                    "bytes": bundle.model(name).stat().st_size,
                    "parity": asdict(network.parity),
                    "quality": {key: asdict(quality) for key, quality in network.quality.items()},
                }
                for name, network in bundle.manifest.networks.items()
            }
    return result


def beside(measure: Callable[[Path], dict[str, Any]], *backbones: str) -> Callable[[Path], dict[str, Any]]:
    """The same measurement of the demo's network and of the paper's, which have random weights."""

    def measure_all(trained: Path) -> dict[str, Any]:
        result = {"demo": measure(trained)}
        for backbone in backbones:
            with tempfile.TemporaryDirectory(prefix="fieldmark-bench-") as folder:
                result[backbone] = measure(write_synthetic(Path(folder), backbone))
        return result

    return measure_all


def alone(measure: Callable[[], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    """A measurement that makes all it needs, and so takes no bundle."""
    return lambda _: measure()


MEASURES = {
    "demo": demo,
    "endpoint": beside(endpoint.measure, "resnet34"),
    "gateway": beside(gateway.measure, "resnet34"),
    "detector": beside(detector.measure, "resnet34", "vgg16"),
    "detectors": measure_detectors,
    "detector_speed": alone(detector_speed.measure),
    "scoring": scoring.measure_and_tell,
    "footprint": footprint,
    "runtime": alone(runtime.measure),
    "precisions": precisions,
    "training": alone(training.measure),
    "regulariser": alone(regulariser.measure),
    "attacks": alone(attacks.measure),
    "review": review.measure,
}
# A few seconds each, to see that a measurement works before it is given its minutes.
REHEARSALS = {"gateway": beside(partial(gateway.measure, plan=gateway.REHEARSAL), "resnet34")}
PAGES: dict[str, Callable[[Path], None]] = {"gateway": gateway_page.write_page}
WITHOUT_BUNDLE = {"runtime", "training", "regulariser", "attacks", "detector_speed"}
# What asks for more than a bundle has options of its own and is measured alone: `python -m benchmarks NAME --help`.
ALONE = {"calibrate": "benchmarks.calibrate", "gpu": "benchmarks.gpu", "sr5": "benchmarks.sr5"}


def bench(
    names: Annotated[list[str] | None, typer.Argument(help="Which to run; all of them by default.")] = None,
    bundle: Annotated[Path, typer.Option(help="The bundle to measure.")] = DEMO / "bundle",
    quick: Annotated[
        bool, typer.Option("--quick", help=f"Rehearse, and keep nothing: {', '.join(REHEARSALS)}.")
    ] = False,
) -> None:
    """Measure side by side in one run and keep the results with device, versions and commit."""
    console, measures = Console(), REHEARSALS if quick else MEASURES
    for name in names or ():  # a mistyped name must not cost the minutes of those before it
        if name not in measures:
            what = f"{name!r} cannot be rehearsed" if name in MEASURES else f"unknown benchmark {name!r}"
            choice = f"Choose from: {', '.join(measures)}"
            raise OptionError(what, hint=f"{choice}; alone, with options of their own: {', '.join(ALONE)}.")
    if not bundle.exists() and not WITHOUT_BUNDLE.issuperset(names or measures):
        raise OptionError(f"there is no bundle at {bundle}", hint="Run 'make demo' first, or pass --bundle.")
    for name in names or measures:
        result = measures[name](bundle)
        if not quick:
            file = bundle.parent.name if name == "demo" else name  # demo, demo-small-fast, ...
            path = save(file, result)
            console.print(f"[bold]{name}[/] -> {path}")
            if name in PAGES:
                PAGES[name](path)
        console.print_json(json.dumps(result))


def _megabytes(path: str) -> float:
    done = subprocess.run(["du", "-sk", path], capture_output=True, text=True, check=False)
    return round(int(done.stdout.split()[0]) / 1024, 1) if done.returncode == 0 else float("nan")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    if sys.argv[1:] and sys.argv[1] in ALONE:
        own = sys.argv.pop(1)
        app.command()(importlib.import_module(ALONE[own]).bench)
        guarded(lambda: app(prog_name=f"python -m benchmarks {own}"))
    else:
        app.command()(bench)
        guarded(app)
