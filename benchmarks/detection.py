"""`python -m benchmarks detection`: the detector of every system of the study on equal footing, and the whole system.

Each run is evaluated by `fieldmark evaluate RUN --suite full --quick`; what is finished is not done again. The tables
go into docs/results.md.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from benchmarks.page import interval, put, table_head, table_row
from benchmarks.record import read_kept, save, understood
from benchmarks.study.pictures import MAIN
from benchmarks.study.place import Place
from benchmarks.study.plan import OTHERS
from benchmarks.study.tables import ORDER
from bundle.errors import OptionError
from bundle.false_alarms import ALPHA, wilson
from bundle.files import sha256_of
from demo.stages import fieldmark
from robustness.gates import broken
from robustness.report import JSON
from robustness.suites import SUITES
from training.run import Run

SUITE = SUITES["quick"]


def bench(
    study: Annotated[Path, typer.Option(help="A study's folder; figures are called as it is.")] = Path(
        "build/study/small"
    ),
    data: Annotated[Path, typer.Option(help="Its dataset.")] = Path("build/study/birds"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each system.")] = 3,
) -> None:
    """Evaluate every system's finished runs, clean and adversarially trained, and write the tables."""
    measure(Place.of(study), data, seeds)


def measure(place: Place, data: Path, seeds: int) -> None:
    """The same of a study, whose detector has tables between marks of its own."""
    console, reports, name = Console(), place.folder / "reports", place.name("detection")
    runs = [
        (place.run(f"{system}-{place.backbone}{fast}", seed), seed)
        for fast in ("", "-fast")
        for seed in range(seeds)
        for system in (*MAIN, *OTHERS)
    ]
    runs = [(run, seed) for run, seed in runs if Run(run).finished]
    if not runs:
        raise OptionError(f"there are no finished runs in {place.folder}", hint="Run 'make study' first.")
    reports.mkdir(exist_ok=True)
    for run, seed in runs:
        out = reports / run.name
        if not _is_of(out, run):
            console.rule(f"[bold]{run.name}[/]", align="left")
            words = ("--suite", "full", "--quick", "--seed", str(seed))
            fieldmark("evaluate", run, *words, "--data", data, "--out", out, "--force")
            save(name, summed_up(reports, place.backbone, seeds))
    result = summed_up(reports, place.backbone, seeds)
    console.print(f"tables: {save(name, result)}", highlight=False, soft_wrap=True)
    put(f"detection {place.mark}", "\n".join(tables(result)) + "\n\n")


def _is_of(report: Path, run: Path) -> bool:
    """Whether this report is there and of these weights under this suite; a change of the detector asks for a new one
    by hand, by removing the folder.
    """
    if not (report / JSON).is_file():
        return False
    document = read_kept(report / JSON, "run", "suite", "heads")
    with understood(report / JSON):
        same = document["run"]["weights_sha256"] == sha256_of(run / "model.pt")
    return bool(same and document["suite"] == json.loads(json.dumps(asdict(SUITE))))


def summed_up(reports: Path, backbone: str, seeds: int) -> dict[str, Any]:
    """One entry a system, head and kind of training, over the seeds that are there."""
    rows = []
    for fast in ("", "-fast"):
        for system, head, label in ORDER:
            files = [reports / f"{system}-{backbone}{fast}-{seed}" / JSON for seed in range(seeds)]
            documents = {file: read_kept(file, "run", "heads") for file in files if file.is_file()}
            if documents:
                with understood(*documents):
                    heads = [document["heads"][head] for document in documents.values()]
                    pooled = _pooled(heads, list(documents.values()))
                rows.append({"row": f"{system}-{backbone}{fast}", "head": head, "label": label} | pooled)
    return {"backbone": backbone, "rows": rows}


def _pooled(heads: Sequence[dict[str, Any]], documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name in SUITE.attacks if name in heads[0]["detection"]]
    return {
        "seeds": [document["run"]["config"]["seed"] for document in documents],
        "device": documents[0]["measured_with"]["device"],
        "clean": _counted([head["clean"]["right"] for head in heads]),
        "flagged_clean": _counted([head["clean"]["flagged"] for head in heads]),
        "flagged_right": _counted([head["clean"]["flagged_of_right"] for head in heads]),
        "flagged_wrong": _counted([head["clean"]["flagged_of_wrong"] for head in heads]),
        "mistakes": _areas([head["clean"].get("mistakes", {}).get("auroc") for head in heads]),  # earlier reports
        "auroc": {name: _areas([head["detection"][name]["auroc"] for head in heads]) for name in names},
        "left_out": {name: _areas([head["left_out"][name]["left_out"]["auroc"] for head in heads]) for name in names},
        "family_left_out": {
            name: _areas([head["left_out"][name]["family_left_out"]["auroc"] for head in heads]) for name in names
        },
        "attack_free": {
            name: _areas([head["left_out"][name]["attack_free"]["auroc"] for head in heads]) for name in names
        },
        "missed": {name: _counted([_missed(head["system"][name]) for head in heads]) for name in ("clean", *names)},
        "adaptive": _counted([head["adaptive"]["success"]["any"] for head in heads if head["adaptive"]["success"]]),
        "broken_gates": sorted({name for head in heads for name in broken(head)}),
    }


def _missed(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = next(point["missed"] for point in points if point["alpha"] == ALPHA)
    return found


def _counted(shares: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean over seeds, each on at least so many images `of`."""
    counted = [each for each in shares if each["of"]]
    by_seed = [each["count"] / each["of"] for each in counted]
    of = min((each["of"] for each in counted), default=0)
    return {"mean": float(np.mean(by_seed)) if by_seed else None, "by_seed": by_seed, "of": of}


def _areas(by_seed: Sequence[float | None]) -> dict[str, Any] | None:
    known = [each for each in by_seed if each is not None]
    return {"mean": round(float(np.mean(known)), 4), "by_seed": known} if known else None


def tables(result: dict[str, Any]) -> list[str]:
    """Detection, detection of an attack that was left out, and what gets through, in Markdown."""
    lines = []
    for fast, trained in ((False, "trained on clean images"), (True, "with fast adversarial training")):
        rows = [each for each in result["rows"] if each["row"].endswith("-fast") == fast]
        if not rows:
            continue
        names = list(rows[0]["auroc"])
        seeds = sorted({len(each["seeds"]) for each in rows})
        count = " to ".join(str(each) for each in dict.fromkeys((seeds[0], seeds[-1])))
        count += " seed" if seeds[-1] == 1 else " seeds, least to most"
        for key, title in (
            ("auroc", "AUROC of attacks that fool the network"),
            ("left_out", "The same, each attack left out of the lessons"),
            ("family_left_out", "The same, each attack's family left out of the lessons"),
            ("attack_free", "The same, without any attack in the lessons"),
        ):
            if any(key not in each for each in rows):  # results of an earlier version have fewer
                continue
            lines += [
                f"### {title}, {trained}; {count}",
                "",
                *table_head(["system", *names, "worst mean"]),
            ]
            lines += [
                table_row(each["label"], [*(_area(each[key][name]) for name in names), _worst(each[key])])
                for each in rows
            ]
            lines.append("")
        lines += [
            f"### What a user meets, {trained}: wrong and not flagged at alpha {ALPHA:g}, in percent",
            "",
            f"With 95 % intervals for a seed's images (Wilson; {rows[0]['missed']['clean']['of']} under each attack), "
            "widened to every seed. Mistakes: clean images answered wrongly against those answered rightly.",
            "",
        ]
        lines += table_head(
            [
                "system",
                "clean right",
                "clean flagged",
                "of right",
                "of wrong",
                "AUROC, mistakes",
                *names,
                "knows the detector",
            ]
        )
        for each in rows:
            flagged = [each.get(f"flagged_{which}", {"mean": None}) for which in ("clean", "right", "wrong")]
            missed = [*(each["missed"][name] for name in names), each["adaptive"]]
            cells = [_share(each["clean"]), *map(_share, flagged), _area(each.get("mistakes")), *map(_share, missed)]
            lines.append(table_row(each["label"], cells))
        lines.append("")
    return lines[:-1]


def _area(area: dict[str, Any] | None) -> str:
    if area is None:
        return "–"
    least, most = min(area["by_seed"]), max(area["by_seed"])
    return f"{area['mean']:.3f}" + (f" ({least:.2f} to {most:.2f})" if len(area["by_seed"]) > 1 else "")


def _worst(areas: dict[str, Any]) -> str:
    known = [each["mean"] for each in areas.values() if each is not None]
    return f"{min(known):.3f}" if known else "–"


def _share(share: dict[str, Any]) -> str:
    if share["mean"] is None:
        return "–"
    low, high = wilson(share["mean"] * share["of"], share["of"])
    return interval(share["mean"], (min(low, *share["by_seed"]), max(high, *share["by_seed"])))
