"""`python -m benchmarks gpu DATA...`: everything that a GPU is needed for, within `--minutes`.

Four parts, each with its share of the time: every system on every dataset, trained and attacked, one seed; attacks that
know the detector, 1,000 steps; graphs and engines, built, compared and timed; the same graph in PyTorch, ONNX Runtime
and TensorRT for RTX. What does not fit is stopped and named; the result is written after every step, so that whatever
ends the machine leaves what is finished. `--rehearse` does all of it at a tiny size on a processor; `--part` does some
of it, in a folder whose earlier parts are there, beside what was found of them.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.gpu.runtimes import compare_runtimes
from benchmarks.page import put, table_head, table_row
from benchmarks.record import RESULTS, read_kept, result_file, save
from benchmarks.sr5 import attacks_in, kept_rows
from benchmarks.study.pictures import MAIN
from benchmarks.study.tables import TITLES
from bundle.console import say
from bundle.errors import FieldmarkError, OptionError, first_line
from bundle.manifest import MANIFEST
from bundle.progress import duration
from robustness.metrics import share
from robustness.suites import PAPER
from training.attacks.names import AUTO_CLASSES
from training.presets import preset
from training.run import Run

SHARES = {"tables": 0.55, "adaptive": 0.2, "engines": 0.17, "runtimes": 0.08}  # of the time
GRACE = 20.0  # seconds in which a verb that is stopped may put its files away
APGD = "apgd-8"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is done: the preset's backbone, epochs, images and steps; what an engine is built for."""

    backbone: str = "vgg16"
    options: tuple[str, ...] = ()
    epochs: int = 12
    count: int = 200
    autoattack: int = 20
    steps: int = 1000
    adaptive_count: int = 50
    target: str = "local"
    precisions: tuple[str, ...] = ("fp32", "fp16")
    batches: tuple[int, ...] = (1, 8, 64)
    at_once: int = max(1, len(os.sched_getaffinity(0)) // 2)  # trainings: each leaves the GPU idle for half of its time


TINY = Size(
    backbone="small",
    options=("--image-size", "32", "--set", "prototypes_per_class=2", "--set", "prototype_channels=16"),
    epochs=2,
    count=6,
    autoattack=0,
    steps=3,
    adaptive_count=4,
    target="sm_86",
    precisions=("fp32",),
    batches=(1, 4),
    at_once=2,
)


@dataclass(kw_only=True)
class Part:
    """One part's time: until `end` on `clock`; what was `stopped` or failed is said, and the others go on."""

    end: float
    clock: Callable[[], float] = time.monotonic
    stopped: list[str] = field(default_factory=list)
    at_once: int = 1  # of what runs in it, which then shares the processors
    running: set[subprocess.Popen[str]] = field(default_factory=set)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - self.clock()

    def run(self, what: str, *words: str | Path) -> str | None:
        """Standard output of `python -m WORDS`, or None where there was no time for it or it failed."""
        if self.left <= 0:
            self.stopped.append(f"{what}: no time left")
            return None
        threads = str(max(1, len(os.sched_getaffinity(0)) // self.at_once))
        environment = os.environ | (
            {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} if self.at_once > 1 else {}
        )
        command = [sys.executable, "-m", *map(str, words)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.running.add(process)
        try:
            told, _ = process.communicate(timeout=max(self.left, 0.0))
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.communicate(timeout=GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            self.stopped.append(f"{what}: stopped, its part's time was over")
            return None
        except BaseException:
            process.terminate()
            raise
        finally:
            self.running.discard(process)
        if process.returncode:
            self.stopped.append(f"{what}: ended with exit code {process.returncode}")
            return None
        return told

    def side_by_side(self, works: Sequence[Callable[[], None]]) -> None:
        """Do these in their order, `at_once` at a time; who stops this stops what runs."""
        with ThreadPoolExecutor(self.at_once) as pool:
            try:
                for each in as_completed([pool.submit(work) for work in works]):
                    each.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(self.running):
                    process.terminate()
                raise


def bench(
    data: Annotated[list[Path], typer.Argument(help="Datasets, such as CUB-200-2011 and Cars; the first is exported.")],
    weights: Annotated[str, typer.Option(help="'imagenet', 'none' or a file.")] = "imagenet",
    minutes: Annotated[float, typer.Option(min=0.1, help="Of everything together.")] = 12.0,
    out: Annotated[Path, typer.Option(help="Runs, bundles and engines.")] = Path("build/gpu"),
    name: Annotated[str, typer.Option(help="benchmarks/results/NAME.json, and the mark in docs/results.md.")] = "gpu",
    write: Annotated[bool, typer.Option("--page/--no-page", help="Put the tables into docs/results.md.")] = True,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="At a tiny size, on a processor; the result stays in OUT.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option("--part", help=f"Only this of {', '.join(SHARES)}; repeat for more.")
    ] = None,
    at_once: Annotated[
        int | None, typer.Option(min=1, help="Trainings side by side; one for every two processors.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="As in a preset's name, with the input side if it is another: vgg16-96.")
    ] = None,
) -> None:
    """Measure everything that needs a GPU within the time, and write it down as it goes."""
    if not rehearse and not torch.cuda.is_available():
        raise OptionError("PyTorch sees no GPU here", hint="Rehearse on this machine: --rehearse.")
    result_file(name)
    if unknown := sorted(set(only or ()) - set(SHARES)):
        raise OptionError(f"there is no part {unknown[0]!r}", hint=f"Choose of: {', '.join(SHARES)}.")
    asked = {part: share for part, share in SHARES.items() if part in (only or SHARES)}
    size, console = TINY if rehearse else Size(), Console()
    size = replace(size, at_once=at_once or size.at_once, backbone=backbone or size.backbone)
    for system in MAIN:
        preset(f"{system}-{size.backbone}")
    out.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    told = {"device": device, "rehearsal": rehearse, "backbone": size.backbone}
    parts = _earlier((out if rehearse else RESULTS) / f"{name}.json", told) if only else {}
    document = {**told, "parts": parts}

    def keep(part: str, **found: Any) -> None:
        parts[part] = parts.get(part, {}) | found
        save(name, document, out if rehearse else None)

    begun, share_so_far = time.monotonic(), 0.0
    for part in asked:
        parts[part] = {"minutes": minutes}
        share_so_far += asked[part] / sum(asked.values())
        allowed = Part(end=begun + 60 * minutes * share_so_far)  # what an earlier part leaves, a later one has
        console.rule(f"[bold]{part}[/], at most {duration(allowed.left)}", align="left")
        started = time.monotonic()
        PARTS[part](allowed, size, (data, weights, out), lambda part=part, **found: keep(part, **found))
        keep(part, seconds=round(time.monotonic() - started, 1), stopped=allowed.stopped)
        for each in allowed.stopped:
            say(console, each)
    say(console, f"-> {save(name, document, out if rehearse else None)}")
    if write and not rehearse:
        put(name, page(document))


def _earlier(kept: Path, told: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that an earlier call has measured of the same."""
    if not kept.is_file():
        return {}
    document = read_kept(kept, *told, "parts")
    for key, value in told.items():
        if document[key] != value:
            raise OptionError(
                f"{kept} is of {key} {document[key]!r}, not {value!r}", hint="Choose another --name, or all parts."
            )
    found: dict[str, Any] = document["parts"]
    return found


Given = tuple[list[Path], str, Path]
Keep = Callable[..., None]


def tables(part: Part, size: Size, given: Given, keep: Keep) -> None:
    """Tables 1 and 2 on every dataset: all clean trainings before the first adversarial one."""
    rows: list[dict[str, Any]] = []
    part.at_once, keeping = size.at_once, Lock()
    data, weights, out = given

    def finish(fast: str, place: Path, system: str) -> None:
        run = out / f"{_slug(place)}-{system}{fast}"
        words = ["--preset", f"{system}-{size.backbone}{fast}", "--epochs", str(size.epochs), *size.options]
        words += [] if size.backbone == "small" else ["--weights", weights]
        if part.run(run.name, "fieldmark", "train", place, "--out", run, *words, "--resume", "--json") is None:
            return
        able = len(Run(run).read_record().labels) >= AUTO_CLASSES
        judged = ["--attacks", ",".join([*PAPER, *([APGD] * able)]), "--count", str(size.count)]
        judged += ["--autoattack-count", str(size.autoattack), "--minutes", str(max(part.left, 1) / 60)]
        told = part.run(f"{run.name} under attack", "fieldmark", "evaluate", run, *judged, "--json")
        with keeping:
            if told is not None:
                rows.extend(_rows(run.name, place, json.loads(told)))
            keep(rows=sorted(rows, key=lambda row: str(row["run"])))

    part.side_by_side([partial(finish, *each) for each in product(("", "-fast"), data, MAIN)])
    part.at_once = 1


def _rows(run: str, place: Path, told: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "run": run,
            "dataset": place.resolve().name,
            "head": head,
            "accuracy": {attack: share(bits.count("1"), len(bits)) for attack, bits in answers.items()},
            "not_measured": told["not_measured"],
        }
        for head, answers in told["right"].items()
    ]


def adaptive(part: Part, size: Size, given: Given, keep: Keep) -> None:
    """SR@5 of the first dataset's runs, AP and both heads of ours, adversarially trained ones first."""
    data, _, out = given
    names = [f"{_slug(data[0])}-{system}{fast}" for fast in ("-fast", "") for system in ("maxsep", "ap")]
    for name in names:
        if not (out / name / "model.pt").is_file():
            part.stopped.append(f"SR@5 of {name}: it was not trained")
            continue
        words = ["--steps", str(size.steps), "--count", str(size.adaptive_count)]
        words += ["--no-page", "--out", str(out / "sr5")]
        if part.run(f"SR@5 of {name}", "benchmarks", "sr5", out / name, *words) is not None:
            keep(steps=size.steps, rows=kept_rows(out / "sr5"))


def engines(part: Part, size: Size, given: Given, keep: Keep) -> None:
    """The first run of ours as bundles in every precision, and their engines: built, run, compared, timed."""
    data, _, out = given
    run, found = out / f"{_slug(data[0])}-maxsep", {}
    for precision in size.precisions:
        bundle, engine = out / f"bundle-{precision}", out / f"engines-{precision}"
        words = ["--precision", precision, "--report", "none", "--lessons-minutes", "0.5", "--force", "--json"]
        words += ["--max-accuracy-loss", "100"]
        if part.run(f"export in {precision}", "fieldmark", "export", run, "--out", bundle, *words) is None:
            continue
        target = ("--runtime", "tensorrt-rtx", "--target", size.target, "--json", "--force")
        told = part.run(f"engines in {precision}", "fieldmark", "engine", bundle, "--out", engine, *target)
        if told is not None:
            found[precision] = json.loads(told)
        keep(precisions=found)


def runtimes(part: Part, size: Size, given: Given, keep: Keep) -> None:
    """The same graph in PyTorch and, of every precision, in ONNX Runtime; engines' own times stand in their part."""
    data, _, out = given
    run, bundles = out / f"{_slug(data[0])}-maxsep", []
    for precision in size.precisions:
        bundle = out / f"bundle-{precision}"
        if (bundle / MANIFEST).is_file():
            bundles.append(bundle)
        else:
            part.stopped.append(f"{precision}: no bundle was exported to time")
    if not bundles:
        return
    for batch in size.batches:
        if part.left <= 0:
            part.stopped.append(f"batch {batch}: no time left")
            continue
        try:
            keep(**{f"batch{batch}": compare_runtimes(run, bundles, batch, seconds=min(part.left, 15.0))})
        except (FieldmarkError, RuntimeError) as problem:  # PyTorch's of memory that ran out is a RuntimeError
            part.stopped.append(f"batch {batch}: {first_line(problem)}")


PARTS: dict[str, Callable[[Part, Size, Given, Keep], None]] = {
    "tables": tables,
    "adaptive": adaptive,
    "engines": engines,
    "runtimes": runtimes,
}


def page(document: dict[str, Any]) -> str:
    """The tables in Markdown."""
    parts = document["parts"]
    rows: Sequence[dict[str, Any]] = parts.get("tables", {}).get("rows", ())
    columns = [column for column in TITLES if any(column in row["accuracy"] for row in rows)]
    asked = ", ".join(f"{part} {found['minutes']:g}" for part, found in parts.items())
    lines = [f"{document['device']}, `{document['backbone']}`; minutes of the call that measured each: {asked}."]
    if rows:
        lines += ["", "### One seed: percent answered rightly", ""]
        lines += table_head(["run", "head", "images", *(TITLES[column] for column in columns)])
    for row in rows:
        cells = [_cell(row["accuracy"].get(column)) for column in columns]
        lines.append(table_row(row["run"], [row["head"], str(row["accuracy"]["clean"]["of"]), *cells]))
    success: Sequence[dict[str, Any]] = parts.get("adaptive", {}).get("rows", ())
    if success:
        names = attacks_in(success)
        lines += ["", f"### SR@5 at {parts['adaptive']['steps']:,} steps, in percent", ""]
        lines += table_head(["run", "head", "images", *names])
        for row in success:
            cells = [_cell(row["success"].get(name)) for name in names]
            lines.append(table_row(row["row"], [row["head"], str(row["images"]), *cells]))
    timed = {part: found for part, found in parts.get("runtimes", {}).items() if part.startswith("batch")}
    if timed:
        names = [name for name in next(iter(timed.values())) if name != "rounds"]
        lines += ["", "### Milliseconds a batch (median), and how much faster than PyTorch", ""]
        lines += table_head(["batch", *names])
        for batch, found in timed.items():
            cells = [f"{found[name]['ms']['p50']:.2f} ({found[name]['ratio']:.2f}x)" for name in names]
            lines.append(table_row(batch.removeprefix("batch"), cells))
    stopped = [each for part in parts.values() for each in part.get("stopped", ())]
    lines += ["", *(f"- {each}" for each in stopped)] if stopped else []
    return "\n".join(lines) + "\n\n"


def _cell(found: dict[str, Any] | None) -> str:
    return "–" if found is None or found["share"] is None else f"{100 * found['share']:.1f}"


def _slug(place: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", place.resolve().stem.lower()).strip("-")
