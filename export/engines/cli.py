"""`fieldmark engine`."""

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bundle.console import say
from bundle.engines import EngineRecord, EngineSet, Profile
from bundle.errors import OptionError
from bundle.folder import Bundle
from bundle.progress import Work
from bundle.records import to_plain
from bundle.tensors import NETWORKS
from bundle.verbs import App
from export.engines.building import Dropped, EngineOrder, Outcome, build_engines
from export.engines.check import Check, cannot_check, check_engine
from export.engines.compiler import LOCAL, Compiler
from export.engines.folder import check_out
from export.engines.layers import CONVOLUTION

app = App()


@app.callback()
def _root() -> None:
    """Keep `engine` a named verb."""


@app.command()
def engine(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    out: Annotated[Path, typer.Option(help="Folder of the engines; those that fit are kept.")],
    runtime: Annotated[str, typer.Option(help="What runs them: 'tensorrt' or 'tensorrt-rtx'.")],
    target: Annotated[
        str, typer.Option(help="GPUs by compute capability, such as sm_86,sm_89; 'local' is this machine's.")
    ] = LOCAL,
    profile: Annotated[str, typer.Option(help="Batch sizes MIN:OPT:MAX; the engine is tuned for OPT.")] = "1:8:64",
    network: Annotated[
        str | None, typer.Option(help="'full' or 'attention'; without it, every network of the bundle.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build anew what could be kept.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compile a bundle's graphs for GPUs, prove their precision, and check them where such a GPU is."""
    batches = _profile(profile)
    if network is not None and network not in NETWORKS:
        raise OptionError(f"unknown network {network!r}", hint=f"Choose from: {', '.join(NETWORKS)}.")
    compiler = Compiler.open(runtime)
    opened = Bundle.open(bundle)
    targets = _targets(compiler, target)
    networks = tuple(name for name in NETWORKS if network in (None, name) and name in opened.manifest.networks)
    if network is not None:
        opened.model(network)
    check_out(out, opened)
    console = Console(stderr=json)
    work = Work("building", len(networks) * len(targets), unit="engines", console=console)
    outcomes: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        say(console, _line(outcome))
        work.advance()

    with work:
        engines, dropped = build_engines(
            opened,
            out,
            compiler,
            EngineOrder(networks=networks, targets=targets, profile=batches, force=force),
            tell=tell,
        )
    for one in dropped:
        place = f"{one.record.network} {one.record.target}"
        say(console, f"{place}: dropped, since {one.reason}")
    checks = _check(compiler, engines, [outcome.record for outcome in outcomes], opened, console)
    if json:
        sys.stdout.write(jsonlib.dumps(_document(engines, outcomes, dropped, checks), indent=2) + "\n")
        return
    count = len(engines.records)
    say(console, f"{out}: {count} engine{'s' * (count != 1)} of bundle {opened.bundle_id}")


def _profile(text: str) -> Profile:
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise OptionError(f"--profile {text!r} is not three batch sizes", hint="Write MIN:OPT:MAX, such as 1:8:64.")
    least, best, most = map(int, parts)
    try:
        return Profile(min=least, opt=best, max=most)
    except ValueError as problem:
        raise OptionError(f"--{problem}", hint="Write MIN:OPT:MAX, such as 1:8:64.") from None


def _targets(compiler: Compiler, text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",")]
    found: list[str] = []
    for name in names:
        target = compiler.resolve(name)
        if target in found:
            raise OptionError(f"--target names {target} twice", hint="Name each once.")
        found.append(target)
    return tuple(found)


def _line(outcome: Outcome) -> str:
    record = outcome.record
    convolutions = record.evidence.layers.get(CONVOLUTION, {})
    counts = ", ".join(f"{count} {dtype}" for dtype, count in convolutions.items()) or "none"
    did = f"built in {outcome.seconds:.1f} s" if outcome.built else "kept"
    return (
        f"{record.network} {record.target} {record.precision}: {did}, {record.bytes / 1e6:.1f} MB, "
        f"convolutions: {counts} (by the {record.evidence.source})"
    )


def _check(
    compiler: Compiler, engines: EngineSet, records: list[EngineRecord], bundle: Bundle, console: Console
) -> dict[str, Check | str]:
    """By file: what a check found, or why there was none."""
    checks: dict[str, Check | str] = {}
    for record in records:
        reason = cannot_check(record)
        checks[record.file] = check_engine(compiler, engines, record, bundle) if reason is None else reason
    for reason in sorted({found for found in checks.values() if isinstance(found, str)}):
        count = list(checks.values()).count(reason)
        some = "" if count == len(checks) else f" for {count} of {len(checks)} engines"
        say(console, f"outputs and speed{some}: not run here: {reason}")
    for record in records:
        found = checks[record.file]
        if isinstance(found, Check):
            say(
                console,
                f"{record.network} {record.target}: answers as ONNX Runtime does; batch {found.batch}: "
                f"median {found.median_ms:.2f} ms, p95 {found.p95_ms:.2f} ms of {found.runs} runs",
            )
    return checks


def _document(
    engines: EngineSet, outcomes: list[Outcome], dropped: tuple[Dropped, ...], checks: dict[str, Check | str]
) -> dict[str, Any]:
    return {
        **to_plain(engines.document),
        "asked": [
            {
                "file": outcome.record.file,
                "built": outcome.built,
                "seconds": round(outcome.seconds, 3),
                "check": to_plain(checks[outcome.record.file]),
            }
            for outcome in outcomes
        ],
        "dropped": [{"file": one.record.file, "reason": one.reason} for one in dropped],
    }
