"""`fieldmark evaluate`."""

import json as jsonlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from bundle import tensors
from bundle.console import lay_out, say
from bundle.errors import DetectorError, MissingExtra, OptionError
from bundle.false_alarms import ALPHA
from bundle.files import atomic_folder, check_free, check_place, open_regular, sha256_of, write_text
from bundle.manifest import MANIFEST
from bundle.verbs import App
from detector.conformal import check_calibration_size

if TYPE_CHECKING:
    from rich.table import Table

    from robustness.journal import Journal
    from robustness.report import Report
    from robustness.suites import Suite
    from training.attacks.attacker import Attackers
    from training.run import Run

MAX_SEED = 2**32 - 1
SUITES = ("paper", "full", "adaptive")
app = App()


@app.callback()
def room() -> None:
    """Keep the verb's name, as long as there is one."""


@app.command()
def evaluate(
    target: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="A finished run, or a bundle made of it.")],
    data: Annotated[Path | None, typer.Option(help="The dataset, if it has moved since training.")] = None,
    suite: Annotated[
        str,
        typer.Option(
            help="'paper': accuracy under the paper's attacks. 'full': a report of network and detector. 'adaptive': "
            "the report, mostly of attacks on both together."
        ),
    ] = "paper",
    quick: Annotated[
        bool, typer.Option("--quick", help="Of a report: fewer images and shorter attacks, minutes instead of hours.")
    ] = False,
    run: Annotated[Path | None, typer.Option(help="The run that a bundle was made of; attacks need it.")] = None,
    attacks: Annotated[
        str | None, typer.Option(help="Comma-separated attacks instead of the suite's; clean is always there.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(metavar="NAME=RUN", help="A run to transfer attacks from, as ATTACK@NAME.")
    ] = None,
    attacked_images: Annotated[
        Path | None,
        typer.Option(
            "--attacked-images",
            metavar="FOLDER",
            help="Instead of a suite: attacked images as files, of 'fieldmark review --export attacks' or 'fieldmark "
            "attack'; how well the detector tells them from clean ones, when they taught it and when nothing of their "
            "name did.",
        ),
    ] = None,
    part: Annotated[str, typer.Option(help="Part of the dataset to attack; 'paper' only.")] = "test",
    count: Annotated[int | None, typer.Option(min=1, help="Images at most, spread over the classes.")] = None,
    autoattack_count: Annotated[
        int | None, typer.Option(min=0, help="Images at most for AutoAttack; 0 leaves it out.")
    ] = None,
    adaptive_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of every attack that knows the detector, instead of the suite's.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="What takes longer runs on fewer images, then without its dearest attacks, and says so."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of noise and random starts.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="'paper': a JSON file. Otherwise, and needed then, the folder for report.json and report.html."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a report that is there already.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Accuracy and alarms under attack, the worst case of each image and AutoAttack included; or how well the detector
    tells attacked images that came as files.
    """
    try:
        from robustness.suites import KEPT, suite_named
        from training.attacks.attacker import Attackers
        from training.attacks.transfer import open_sources
        from training.run import Run
    except ImportError as problem:
        raise MissingExtra.named("training", "fieldmark evaluate", problem) from None
    if suite not in SUITES:
        raise OptionError(f"unknown suite {suite!r}", hint=f"Choose one of: {', '.join(SUITES)}.")
    if not target.exists():
        raise OptionError(f"there is no run and no bundle at {target}", hint="Name what 'train' or 'export' has made.")
    bundled = (target / MANIFEST).is_file()
    if bundled and run is None:
        raise OptionError(
            f"{target} is a bundle, and attacks take gradients of the run that it was made of",
            hint="Name it with --run RUN. What was measured at export stands in the bundle's report/report.html.",
        )
    if run is not None and not bundled:
        raise OptionError(f"--run goes with a bundle, and {target} is none", hint="Name the run alone.")
    if attacked_images is not None:
        others = (attacks, source, count, autoattack_count, adaptive_steps, minutes, quick or None, force or None)
        if suite != "paper" or part != "test" or any(each is not None for each in others):
            raise OptionError(
                "--attacked-images takes the place of suites and attacks", hint="Leave out what is said of these."
            )
    given = {"--quick": quick, "--force": force, "--adaptive-steps": adaptive_steps is not None}
    if suite == "paper" and (words := [word for word, is_given in given.items() if is_given]):
        raise OptionError(f"{words[0]} goes with a report", hint="Add --suite full or --suite adaptive.")
    if minutes is not None:
        check_minutes("--minutes", minutes)
    names = None if attacks is None else tuple(name.strip() for name in attacks.split(",") if name.strip())
    if names == ():
        raise OptionError("--attacks names nothing", hint="Name some, such as fgsm-8,pgd10-8, or clean alone.")
    opened = Run(target if run is None else run)
    record, network = opened.load_network()
    if bundled:
        _check_weights(target, opened)
    attackers = Attackers(network=network, sources=open_sources(tuple(source or ()), record), seed=seed)
    root = data if data is not None else Path(record.dataset.root)
    if attacked_images is not None:
        from robustness.attack_files import AttackFolder
        from robustness.found_document import found_document, table

        check_json(out)
        dataset, attacked = record.dataset.unchanged_at(root), AttackFolder.read(attacked_images)
        if not bundled:
            _check_calibration(len(dataset.parts["calibration"]))
        found = found_document(opened, attackers, dataset, attacked, target if bundled else None)
        _tell(found, table(found["heads"]), found["sentences"], out, json)
        return
    changes: dict[str, Any] = {
        "attacks": names,
        "count": count,
        "autoattack_count": autoattack_count,
        "adaptive_steps": adaptive_steps,
    }
    changes["adaptive_count"] = None if suite == "paper" else count
    chosen = replace(suite_named(suite, quick=quick), **{k: v for k, v in changes.items() if v is not None})
    if suite == "paper":
        from robustness.accuracy import evaluate_run, show
        from robustness.journal import Journal

        check_json(out)
        if names is None:
            chosen = replace(chosen, attacks=(*chosen.attacks, *(f"pgd10-8@{name}" for name in attackers.sources)))
        journal = Journal(None if out is None else _progress(out))
        result = evaluate_run(record, attackers, root, chosen, part=part, minutes=minutes, journal=journal)
        _tell(result, show(result), result["not_measured"], out, json)
        journal.close()
        return
    if part != "test":
        raise OptionError(f"a report is about the test part, not {part!r}")
    if out is None:
        raise OptionError("a report needs a folder", hint="Name it with --out FOLDER.")
    check_free(out, replace=force, marker="report.json")
    _check_outside_bundles(out)
    from robustness.journal import Journal

    journal = Journal(_progress(out))
    wanted = _Wanted(suite=chosen, kept=(*KEPT, *(names or ())), minutes=minutes, bundle=target if bundled else None)
    report = _report(opened, attackers, root, out, wanted, journal)
    with atomic_folder(out, replace=force, marker="report.json") as folder:
        report.write(folder)
    journal.close()
    if json:
        sys.stdout.write(jsonlib.dumps(report.document) + "\n")
        return
    console = Console()
    show_report(report.document, console)
    say(console, f"{out}: report.html and report.json")


def _progress(out: Path) -> Path:
    """Where it stands how far an evaluation has come that was stopped."""
    return out.with_name(f"{out.name}.progress.json")


def _tell(result: dict[str, Any], shown: "Table", lines: Sequence[str], out: Path | None, json: bool) -> None:
    """What was measured: into a file, and on the terminal as JSON, or as a table and what must be said beside it."""
    text = jsonlib.dumps(result) + "\n"
    if out is not None:
        write_text(out, text)
    if json:
        sys.stdout.write(text)
        return
    console = Console()
    lay_out(console, shown)
    say(console, *lines)


def check_json(out: Path | None) -> None:
    """Raise OptionError where no file can be written, or one would be lost that no evaluation has made."""
    if out is None:
        return
    if out.is_dir() or not out.parent.is_dir():
        raise OptionError(f"cannot write {out}", hint="Name a file in a folder that exists.")
    check_place(out)
    if out.exists() and not _is_evaluation(out):
        raise OptionError(f"{out} exists, and no evaluation made it", hint="Choose another name, or remove it.")
    _check_outside_bundles(out)


def _check_outside_bundles(out: Path) -> None:
    if inside := [folder for folder in out.resolve().parents if (folder / MANIFEST).is_file()]:
        raise OptionError(
            f"{out} lies in the bundle {inside[0]}, whose checksums it would break", hint="Choose a folder outside it."
        )


def _is_evaluation(path: Path) -> bool:
    """Whether a file is what `_tell` writes, or empty."""
    try:
        with open_regular(path) as stream:
            found = jsonlib.loads(stream.read() or b'{"right": {}}')
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and ("right" in found or "sentences" in found)


def _check_weights(target: Path, run: "Run") -> None:
    """A bundle's detectors go with the weights that they were fitted on, and with no others."""
    from bundle.folder import Bundle

    made_of = Bundle.open(target).manifest.training.get("weights_sha256")
    if made_of != sha256_of(run.path / "model.pt"):
        raise OptionError(f"{target} was not made of the weights in {run.path}", hint="Name its own run with --run.")


def check_minutes(option: str, minutes: float) -> None:
    """A time that something can be bounded by."""
    if not 0 < minutes < float("inf"):
        raise OptionError(
            f"{option} {minutes:g} is no time", hint="Name minutes, such as 5; a large number is no limit."
        )


def _check_calibration(n: int) -> None:
    """Before the detector is fitted; `evaluate` has no alpha of its own."""
    try:
        check_calibration_size(n, ALPHA)
    except DetectorError as problem:
        raise DetectorError(
            problem.what,
            hint="Add images, or export the run with a larger --alpha and evaluate that: BUNDLE --run RUN.",
        ) from None


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """Of what a report is wanted: the `suite`, what of it stays however little time there is, the `minutes` that are
    allowed, and the `bundle` whose own detectors are meant.
    """

    suite: "Suite"
    kept: tuple[str, ...]
    minutes: float | None
    bundle: Path | None


def _report(run: "Run", attackers: "Attackers", root: Path, out: Path, wanted: _Wanted, journal: "Journal") -> "Report":
    """With a bundle's own detectors, or with detectors fitted as export would."""
    from robustness.fitting import Parts, calibration_of, detector_taught
    from robustness.report import make_report, require
    from training.data import check_outside
    from training.run import image_spec

    record, network, suite = run.read_record(), attackers.network, wanted.suite
    heads = [head for head in network.config.heads if head in tensors.NETWORKS]
    if not heads:
        raise OptionError(f"{run.path} is a substitute to attack from; it has no detector", hint="Use --suite paper.")
    require(suite)
    attackers.check(suite.attacks)
    attackers.to_device()
    dataset = record.dataset.unchanged_at(root)
    check_outside(dataset, out)
    if wanted.bundle is None:
        _check_calibration(len(dataset.parts["calibration"]))
    parts = Parts.of(dataset, image_spec(record.config))
    if wanted.minutes is not None:
        from robustness.budget import Costs, within

        def choose() -> "Suite":
            costs = Costs.measured(network, heads, parts.validation[0])
            return within(wanted.suite, costs, minutes, len(dataset.parts["test"]), kept=wanted.kept)

        minutes = wanted.minutes
        told = {"digest": record.dataset.digest, "kept": wanted.kept, "minutes": minutes, "suite": asdict(suite)}
        suite = journal.chosen(told, network, choose)
    taught = {head: detector_taught(wanted.bundle, attackers, head, parts, record.labels) for head in heads}
    calibration = None if wanted.bundle is None else calibration_of(wanted.bundle)
    return make_report(run, attackers, taught, dataset, suite, calibration=calibration, journal=journal)


def show_report(document: dict[str, Any], console: Console) -> None:
    """Gates first, red where broken; then what matters most."""
    from robustness.limits import not_measured
    from robustness.report import gate_table, summary_table

    lay_out(console, gate_table(document), summary_table(document))
    for line in not_measured(document):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
