"""`python -m benchmarks sr5 RUN...`: how often an attacker who knows the detector gets past it at 5 % false alarms.

SR@5 is what the field judges detectors by (Bryniarski et al. 2021): orthogonal and selective PGD and the joint loss,
1,000 steps each, on network and detector together. The detector is fitted on the run as `fieldmark export` would. It
says how long it will take before it begins; stopped, it goes on with the batch that it was at, and every run is saved
as soon as it is measured.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.page import interval, put, table_head, table_row
from benchmarks.record import read_kept, result_file, save, understood
from benchmarks.study.place import Place
from benchmarks.study.tables import ORDER
from bundle import tensors
from bundle.canonical import canonical_json
from bundle.console import say
from bundle.errors import OptionError
from bundle.false_alarms import ALPHA
from bundle.files import check_place, sha256_of, write_text
from bundle.progress import Work, duration
from bundle.records import to_plain
from robustness.adaptive import AdaptiveAttack
from robustness.budget import ALONE, Costs, on_both
from robustness.defended import Defended
from robustness.fitting import DetectorSettings, Parts, fit_and_calibrate
from robustness.journal import Journal, Success, success
from robustness.measure import EPS
from robustness.metrics import share
from robustness.suites import ADAPTIVE, SELECTIVE, attacks_on_both
from training.attacks.attacker import Attackers
from training.data.choice import spread
from training.data.loading import images_array
from training.run import Run, image_spec

ANY = "any"
STANDING = "Attacks without a column were made on what those before them had left standing, selective PGD first."
Images = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]  # and their labels


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard an attacker tries: steps of every attack, test images, beginnings of the attacks' names."""

    steps: int = 1000
    count: int = 100
    attacks: tuple[str, ...] = ("orthogonal", "selective", "joint")
    standing: bool = False  # each attack on the images alone that those before it left standing, as AutoAttack does

    @property
    def told(self) -> dict[str, Any]:
        """As results tell it; those of an earlier version knew no `standing`."""
        plain: dict[str, Any] = to_plain(self)
        return plain if self.standing else {name: value for name, value in plain.items() if name != "standing"}


def bench(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs, named ROW-SEED as `make study` names them.")],
    data: Annotated[Path | None, typer.Option(help="The dataset, if it has moved since training.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of every attack.")] = Effort.steps,
    count: Annotated[int, typer.Option(min=1, help="Test images, spread over the classes.")] = Effort.count,
    attacks: Annotated[str, typer.Option(help="Comma-separated beginnings of their names.")] = ",".join(Effort.attacks),
    standing: Annotated[
        bool,
        typer.Option(
            "--standing",
            help="Each attack on the images alone that those before it left standing, as AutoAttack does: no column of "
            "its own for each, and the last one far sooner.",
        ),
    ] = False,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say how long it would take.")] = False,
    name: Annotated[
        str | None,
        typer.Option(
            help="benchmarks/results/NAME.json, and the mark in docs/results.md; else as their study is called. With "
            "--no-page and --out and no name it stays in OUT."
        ),
    ] = None,
    write: Annotated[bool, typer.Option("--page/--no-page", help="Put the table into docs/results.md.")] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where what is measured of a run is kept, and how far another has come; else STUDY/sr5, or "
            "build/sr5/NAME."
        ),
    ] = None,
) -> None:
    """Measure SR@5 of every run and head, and write the table."""
    wanted = tuple(each.strip() for each in attacks.split(",") if each.strip())
    effort = Effort(steps=steps, count=count, attacks=wanted, standing=standing)
    if estimate:
        forecast(runs, data, effort)
        return
    if name is not None:
        result_file(name)
    if name is None and (write or out is None):
        folders = {run.resolve().parent for run in runs}
        if len(folders) > 1:
            raise OptionError("the runs are of several studies", hint="Name their table: --name.")
        place = Place.of(folders.pop())
        name, out = place.name("sr5"), out or place.folder / "sr5"
    mark = name.replace("_", " ") if name is not None and write else None
    measure(runs, data, effort, out or Path("build/sr5") / str(name), name, mark)


def forecast(runs: Sequence[Path], data: Path | None, effort: Effort) -> None:
    """Say how long it takes at most."""
    console, costs = Console(), {run: _costs(run, data, effort) for run in runs}
    for run, seconds in costs.items():
        say(console, f"{run.name}: at most {duration(seconds)}")
    say(console, f"together at most {duration(sum(costs.values()))} {ALONE}; images that have got past drop out of it")


def measure(
    runs: Sequence[Path], data: Path | None, effort: Effort, out: Path, name: str | None, mark: str | None = None
) -> None:
    """The same without asking: results/NAME.json, if there is a name, and a table between the marks of this name, of
    all runs that `out` has something of; what it has of these is not measured again.
    """
    for run in runs:
        if not Run(run).finished:
            raise OptionError(f"{run} is no finished run", hint="Name runs that 'fieldmark train' has ended.")
    tried = hashlib.sha256(canonical_json(effort.told).encode()).hexdigest()[:8]
    kept = {run: out / f"{run.resolve().name}-{tried}.json" for run in runs}
    if len(set(kept.values())) < len(runs):
        raise OptionError("two of the runs have the same name", hint="Give each the name ROW-SEED of its own.")
    check_place(next(iter(kept.values())))
    given = {Run(run).read_record().dataset.name for run in runs}
    datasets = given | {row["dataset"] for row in kept_rows(out)}
    if len(datasets) > 1:
        raise OptionError(
            f"one table cannot be of {' and '.join(sorted(datasets))}",
            hint="Name the runs of one." if len(given) > 1 else f"{out} has runs of another; choose another --out.",
        )
    out.mkdir(parents=True, exist_ok=True)
    asked = {run: {"weights_sha256": sha256_of(run / "model.pt")} | effort.told for run in runs}
    todo = [run for run in runs if not _is_of(kept[run], asked[run])]
    if todo:
        forecast(todo, data, effort)
    for run in todo:
        journal = Journal(kept[run].with_suffix(".progress.json"))
        measured = {"of": asked[run], "rows": measure_run(run, data, effort, journal)}
        write_text(kept[run], json.dumps(measured, indent=1) + "\n")
        journal.close()
        if name is not None:
            _save(out, name, mark)
    told = out if name is None else _save(out, name, mark)
    Console().print(_table(kept_rows(out)))
    say(Console(), f"-> {told}")


def _save(out: Path, name: str, mark: str | None) -> Path:
    """Collect what is there of every run; returns the file."""
    result = {"alpha": ALPHA, "eps": EPS, "rows": kept_rows(out)}
    path = save(name, result)
    if mark is not None:
        put(mark, page(result))
    return path


def kept_rows(out: Path) -> list[dict[str, Any]]:
    """What is there of every run, in the order of the paper's tables."""
    rows: list[tuple[Any, ...]] = []
    for file in sorted(out.glob(f"*-{'[0-9a-f]' * 8}.json")):  # and not how far another has come
        told = read_kept(file, "of", "rows")
        with understood(file):
            found = [{**row, "steps": told["of"]["steps"]} for row in told["rows"]]
            rows += [(*_rank(row["row"], row["head"]), row["row"], row["seed"], row["steps"], row) for row in found]
    return [row for *_, row in sorted(rows, key=lambda each: each[:-1])]


def _is_of(kept: Path, asked: Mapping[str, Any]) -> bool:
    """Whether a run was measured, with these weights and as hard; raises OptionError where `kept` is of other weights.
    A change of the detector asks for it anew by hand, by removing the file.
    """
    if not kept.is_file():
        return False
    if read_kept(kept, "of", "rows")["of"] != asked:
        raise OptionError(f"{kept} is of another run of the same name", hint="Choose another --out, or remove it.")
    return True


def measure_run(path: Path, data: Path | None, effort: Effort, journal: Journal) -> list[dict[str, Any]]:
    """One entry a head: success of each attack and of any of them, of all images."""
    record, network = Run(path).load_network()
    device = Attackers(network=network).to_device()
    dataset, spec = record.dataset.unchanged_at(data or Path(record.dataset.root)), image_spec(record.config)
    parts, seed = Parts.of(dataset, spec), record.config.seed
    test, rows = images_array(spread(dataset.parts["test"], effort.count), spec), []
    for head in _served(network.config.heads, path):
        settings = DetectorSettings(seed=seed)
        detector, _ = fit_and_calibrate(network, head, parts, settings, record.labels)
        defended = Defended(network, head, detector).to(device).eval()
        chosen = _chosen(network, head, effort)
        with Work(f"{path.name}, {head}", len(chosen) * len(test[1])) as work:
            if effort.standing:
                found = {ANY: _one_after_another(chosen, defended, test, seed, journal, work)}
            else:
                found = {each.name: success(each, defended, test, seed, journal, work) for each in chosen}
                found[ANY] = np.any(list(found.values()), axis=0)
        rows.append(
            {
                "row": re.sub(r"-\d+$", "", path.resolve().name),
                "seed": seed,
                "head": head,
                "weights_sha256": sha256_of(path / "model.pt"),
                "dataset": record.dataset.name,
                "images": len(test[1]),
                "calibration_n": detector.calibration_n,
                "success": {attack: share(each.sum(), len(each)) for attack, each in found.items()},
            }
        )
    return rows


def _one_after_another(
    chosen: Sequence[AdaptiveAttack], defended: Defended, test: Images, seed: int, journal: Journal, work: Work
) -> Success:
    """Which images any attack gets past: the one that does most begins, and no image is attacked again that has."""
    images, labels = test
    fooled = np.zeros(len(labels), bool)
    for attack in sorted(chosen, key=lambda each: each.name != SELECTIVE):
        left = np.flatnonzero(~fooled)
        work.advance(len(labels) - len(left))
        if len(left):
            fooled[left] = success(attack, defended, (images[left], labels[left]), seed, journal, work)
    return fooled


def _chosen(network: Any, head: str, effort: Effort) -> list[AdaptiveAttack]:
    known = attacks_on_both(network, head, eps=EPS, steps=effort.steps, alpha=ALPHA)
    unknown = [begins for begins in effort.attacks if not any(name.startswith(begins) for name in ADAPTIVE)]
    chosen = [attack for attack in known if attack.name.startswith(effort.attacks)]
    if unknown or not chosen:
        raise OptionError(
            f"no attack is named {', '.join(unknown or effort.attacks) or 'by nothing'}",
            hint=f"There are: {'; '.join(attack.name for attack in known)}.",
        )
    return chosen


def _costs(path: Path, data: Path | None, effort: Effort) -> float:
    """Seconds of one run, at most."""
    record, network = Run(path).load_network()
    Attackers(network=network).to_device()
    dataset, spec = record.dataset.unchanged_at(data or Path(record.dataset.root)), image_spec(record.config)
    heads = _served(network.config.heads, path)
    probe = images_array(spread(dataset.parts["validation"], 16), spec)[0]
    costs = Costs.measured(network, heads, probe)
    names = {head: [attack.name for attack in _chosen(network, head, effort)] for head in heads}
    image_steps = effort.count * effort.steps
    return sum(image_steps * on_both(names[head]) * costs.seconds[head] for head in heads)


def _served(heads: Sequence[str], path: Path) -> list[str]:
    found = [head for head in heads if head in tensors.NETWORKS]
    if not found:
        raise OptionError(f"{path} is a substitute to attack from; it has no detector", hint="Name other runs.")
    return found


def page(result: Mapping[str, Any]) -> str:
    """The table in Markdown; seeds of a row one after the other."""
    names, first = attacks_in(result["rows"]), result["rows"][0]
    lines = [
        f"### SR@5: wrong and not flagged at {100 * result['alpha']:g} % false alarms, by who knows the detector",
        "",
        f"{first['dataset']}, eps {255 * result['eps']:g}/255; percent of test images, with 95 % intervals (Wilson); "
        "lower is better.",
        "",
        *([STANDING, ""] if any(row["success"].keys() == {ANY} for row in result["rows"]) else []),
        *table_head(["run", "head", "images", "steps", *names]),
    ]
    for row in result["rows"]:
        cells = [_label(row["row"], row["head"]), str(row["images"]), f"{row['steps']:,}"]
        lines.append(table_row(f"{row['row']}, seed {row['seed']}", [*cells, *(_cell(row, name) for name in names)]))
    return "\n".join(lines) + "\n\n"


def attacks_in(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of their table: every attack that one of them met, and at last any of them."""
    return [*dict.fromkeys(attack for row in rows for attack in row["success"] if attack != ANY), ANY]


def _label(row: str, head: str) -> str:
    """What the paper calls it."""
    rank = _rank(row, head)[1]
    return ORDER[rank][2] if rank < len(ORDER) else head


def _rank(row: str, head: str) -> tuple[bool, int]:
    """Whether adversarially trained, and its place in the paper's tables: of the systems that a run's name begins with,
    the longest, `ap-pcl` before `ap`.
    """
    fitting = [
        (len(name), place) for place, (name, of, _) in enumerate(ORDER) if of == head and row.startswith(f"{name}-")
    ]
    return "-fast" in row, max(fitting)[1] if fitting else len(ORDER)


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What gets past by any attack, and which alone does most; all of it stands on the page."""
    shown = Table("run", "head", "gets past, %", "best attack alone", box=SIMPLE_HEAD)
    for row in rows:
        each = {name: found["share"] for name, found in row["success"].items() if name != ANY}
        best = max(each, key=each.__getitem__, default=None)
        alone = f"{best}, {100 * each[best]:.1f}" if best else "not asked"
        shown.add_row(f"{row['row']}-{row['seed']}", row["head"], _cell(row, ANY), alone)
    return shown


def _cell(row: Mapping[str, Any], name: str) -> str:
    if name not in row["success"]:
        return "–"
    return interval(row["success"][name]["share"], row["success"][name]["interval"])
