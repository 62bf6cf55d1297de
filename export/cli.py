"""`fieldmark export`."""

import importlib
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bundle.console import advise, say
from bundle.errors import MissingExtra, OptionError
from bundle.false_alarms import ALPHA, is_alpha
from bundle.manifest import FP32, MARGINAL, PER_CLASS, PRECISIONS
from bundle.verbs import App

LATE = ("onnxruntime", "onnxscript")  # not used before minutes of work: missed now or not at all
NONE, QUICK = "none", "quick"
REPORTS = (QUICK, "full", NONE)
ATTACKS = "fgsm-8,pgd10-2,pgd10-8"
QUICK_MINUTES = 10.0  # five times what the built-in birds take on two cores: there nothing is ever cut
app = App()


@app.callback()
def _root() -> None:
    """Keep `export` a named verb."""


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished training run.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    data: Annotated[Path | None, typer.Option(help="The dataset, if it has moved since training.")] = None,
    alpha: Annotated[float, typer.Option(help="Default false-positive rate of is_adversarial.")] = ALPHA,
    attacks: Annotated[
        str,
        typer.Option(
            help="Attacks that the detector learns from; with 'none', it learns from clean images alone. "
            f"Default: {ATTACKS.replace(',', ', ')}.",
            show_default=False,
        ),
    ] = ATTACKS,
    calibration: Annotated[
        str,
        typer.Option(help="Whether alpha holds on the whole ('marginal') or in every predicted class ('per-class')."),
    ] = MARGINAL,
    precision: Annotated[
        str, typer.Option(help="Arithmetic of the backbone: 'fp32', 'fp16', 'bf16' or 'int8'.")
    ] = FP32,
    max_accuracy_loss: Annotated[
        float, typer.Option(metavar="POINTS", min=0, max=100, help="Of accuracy that a narrower precision may cost.")
    ] = 0.5,
    device: Annotated[
        str, typer.Option(help="Where the graphs are calibrated, as they will be served: 'cpu', 'cuda' or 'tensorrt'.")
    ] = "cpu",
    lessons_minutes: Annotated[
        float, typer.Option(help="Attacks for the detector's lessons that take longer run on fewer images.")
    ] = 5.0,
    report: Annotated[
        str, typer.Option(help="Robustness report inside the bundle: 'quick' (minutes), 'full' (hours) or 'none'.")
    ] = "quick",
    report_minutes: Annotated[
        float | None,
        typer.Option(
            help="A report that takes longer runs on fewer images, then without its dearest attacks, and says so. "
            "Default: 10 for 'quick', no limit for 'full'.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="Seed of noise and random starts.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there already.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Write both networks as ONNX graphs with preprocessing and detector inside, proved equal to PyTorch."""
    try:
        from bundle.folder import describe
        from export.bundling import export_run
        from export.graph import PROVIDERS
        from export.plan import ExportSettings, Limits
        from export.staging import GraphSettings
        from robustness.fitting import DetectorSettings
        from robustness.suites import SUITES

        for library in LATE:
            importlib.import_module(library)
    except ImportError as problem:
        raise MissingExtra.named("export", "fieldmark export", problem) from None
    if not is_alpha(alpha):
        raise OptionError(f"alpha {alpha:g} is not between 0 and 1")
    if out.exists() and not force:
        raise OptionError(f"{out} exists already", hint="Choose another --out, or pass --force to replace it.")
    names = tuple(dict.fromkeys(name.strip() for name in attacks.split(",") if name.strip()))
    if not names:
        raise OptionError("--attacks names nothing", hint="Name some, such as fgsm-8,pgd10-8, or say: --attacks none")
    if NONE in names and len(names) > 1:
        raise OptionError(f"--attacks names {NONE!r} beside {names[names[0] == NONE]!r}", hint="Choose one of both.")
    if calibration not in (MARGINAL, PER_CLASS):
        raise OptionError(f"unknown calibration {calibration!r}", hint=f"Choose from: {MARGINAL}, {PER_CLASS}.")
    if precision not in PRECISIONS:
        raise OptionError(f"unknown precision {precision!r}", hint=f"Choose one of: {', '.join(PRECISIONS)}.")
    if device not in PROVIDERS:
        raise OptionError(f"unknown device {device!r}", hint=f"Choose one of: {', '.join(PROVIDERS)}.")
    if report not in REPORTS:
        raise OptionError(f"unknown report {report!r}", hint=f"Choose one of: {', '.join(REPORTS)}.")
    suite, limits = None if report == NONE else SUITES[report], Limits(lessons=lessons_minutes, report=report_minutes)
    if report == QUICK and report_minutes is None:
        limits = Limits(lessons=lessons_minutes, report=QUICK_MINUTES)
    taught = () if NONE in names else names
    settings = ExportSettings(
        detector=DetectorSettings(attacks=taught, alpha=alpha, calibration=calibration, seed=seed),
        graphs=GraphSettings(precision=precision, max_accuracy_loss=max_accuracy_loss, device=device),
        suite=suite,
        limits=limits,
    )
    console, started = Console(stderr=json), time.perf_counter()
    bundle = export_run(run, out, settings, console, data=data, replace=force)
    if json:
        sys.stdout.write(describe(bundle) + "\n")
        return
    seconds = time.perf_counter() - started
    say(console, f"{out}: bundle {bundle.bundle_id}  {seconds:.0f} s")
    advise(console, f"fieldmark serve {out}")
