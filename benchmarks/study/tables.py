"""docs/results.md: the study's tables in the paper's shape, written from the JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.page import interval, put, table_head, table_row
from bundle import tensors

TITLES = {
    "clean": "clean",
    "fgsm-2": "FGSM 2",
    "fgsm-8": "FGSM 8",
    "bim10-2": "BIM 2",
    "bim10-8": "BIM 8",
    "pgd10-2": "PGD 2",
    "pgd10-8": "PGD 8",
    "mim10-2": "MIM 2",
    "mim10-8": "MIM 8",
    "pgd10-8@bb-v": "BB-V 8",
    "pgd10-8@bb-d": "BB-D 8",
    "apgd-2": "APGD 2",
    "apgd-8": "APGD 8",
    "worst-2": "worst at 2",
    "worst": "worst",
    "worst-there": "worst there",
    "autoattack-8": "AutoAttack 8",
}
TOLD = ("clean", "worst-2", "apgd-2", "pgd10-8", "worst", "worst-there", "autoattack-8")  # columns that get intervals
PAIRED = ("clean", "worst-2", "apgd-2", "worst")  # and those in which ours is held against the others image by image
FULL, ATTENTION = tensors.FULL, tensors.ATTENTION_ONLY
ORDER = (
    ("ap", ATTENTION, "AP"),
    ("ap-triplet", ATTENTION, "AP + Triplet"),
    ("ap-pcl", ATTENTION, "AP + PCL"),
    ("maxsep", ATTENTION, "**Ours-A**"),
    ("protopnet", FULL, "ProtoPNet"),
    ("maxsep", FULL, "**Ours-FR**"),
)
BLOCKS = {
    "": "Table 1: trained on clean images",
    "-fast": "Table 2: with fast adversarial training",
    "-fast-longer": "Table 2 again, with twice the epochs",
}
ABLATED = {
    "": ("Table 3: what clustering and separation add", ("none", "separation", "cluster", None, "strong")),
    "-fast": ("Table 3 again, with fast adversarial training", ("none", None, "strong")),
}
HEADS = ((ATTENTION, "Ours-A"), (FULL, "Ours-FR"))
JUDGED = ("clean", "pgd10-2", "apgd-2", "pgd10-8")  # as far as every row has them


def write_page(result: Path, mark: str) -> None:
    """Put the tables of a study's JSON into docs/results.md, between the marks of this name."""
    put(mark, tables(json.loads(result.read_text(encoding="utf-8"))))


def tables(study: dict[str, Any]) -> str:
    """Tables 1 to 3 and the recipes, in Markdown; rows that are not measured yet are left out."""
    backbone = study["backbone"]
    found = {(row["row"], row["head"]): row["accuracy"] for row in study["rows"]}
    trained = {(row["row"], row["head"]): len(row["seeds"]) for row in study["rows"]}
    answers = {
        (row["row"], row["head"]): {
            column: dict(zip(row["seeds"], each, strict=True)) for column, each in row["right"].items()
        }
        for row in study["rows"]
        if "right" in row
    }
    of_row = {row["row"]: row for row in study["rows"]}
    lines = [_origin(study), ""]
    for suffix, title in BLOCKS.items():
        keys = {label: (f"{system}-{backbone}{suffix}", head) for system, head, label in ORDER}
        rows = [(label, found[key]) for label, key in keys.items() if key in found]
        if not rows:
            continue
        columns = [column for column in TITLES if any(column in accuracy for _, accuracy in rows)]
        lines += [f"### {title}", "", *table_head(["system", *(TITLES[column] for column in columns)])]
        lines += [table_row(label, [_mean(accuracy, column) for column in columns]) for label, accuracy in rows]
        lines += ["", "The same with 95 % intervals over seeds and images:", ""]
        told = [column for column in TOLD if column in columns]
        lines += table_head(["system", "seeds", *(TITLES[column] for column in told)])
        for label, accuracy in rows:
            cells = [str(trained[keys[label]]), *(_interval(accuracy, column) for column in told)]
            lines.append(table_row(label, cells))
        lines += ["", *_pairs({label: answers[key] for label, key in keys.items() if key in answers})]
    for suffix, (title, variants) in ABLATED.items():
        names = (f"maxsep-{'' if variant is None else variant + '-'}{backbone}{suffix}" for variant in variants)
        there = [name for name in names if name in of_row]
        if len(there) > 1:  # one alone compares nothing
            columns = _judged(there, found)
            lines += [f"### {title}", "", *table_head(["clustering", "separation", "seeds", *_titles(columns)])]
            for name in there:
                loss = of_row[name]["run"]["config"]["loss"]
                cells = [f"{loss['separation']:g}", *_cells(of_row[name], found, columns)]
                lines.append(table_row(f"{loss['cluster']:g}", cells))
        lines.append("")
    base = f"maxsep-{backbone}-fast"
    changed = [name for name in of_row if name == base or name.startswith(f"{base}-")]
    if len(changed) > 1:
        title, columns = "### Recipes of fast adversarial training, one change at a time", _judged(changed, found)
        lines += [title, "", *table_head(["change", "seeds", *_titles(columns)])]
        for name in changed:
            label = name.removeprefix(base).lstrip("-") or "none"
            lines.append(table_row(label, _cells(of_row[name], found, columns)))
    return "\n".join(lines).rstrip() + "\n\n"


def _origin(study: dict[str, Any]) -> str:
    where, rows = study["environment"], study["rows"]
    config = rows[0]["run"]["config"]
    accuracy = rows[0]["accuracy"]
    auto = accuracy["autoattack-8"]["images"] if "autoattack-8" in accuracy else 0
    seeds = sorted({len(row["seeds"]) for row in rows})
    fast = next((row["run"]["config"]["epochs"] for row in rows if row["row"].endswith("-fast")), None)
    longer = "" if fast is None else f", {fast} with adversarial training"
    changed = "".join(f"; every row, not the substitutes, with `--set {text}`" for text in study.get("settings", ()))
    return (
        f"Dataset: {study['dataset']}; backbone `{study['backbone']}` at {config['image_size']} px; {config['epochs']} "
        f"epochs{longer}{changed}; {' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} "
        f"seed{'s' * (seeds[-1] > 1)}; "
        f"{accuracy['clean']['images']} test images a seed, {auto} under AutoAttack. {where.get('gpu', where['cpu'])}, "
        f"{where['cores']} cores, torch {where['packages']['torch']}, commit {where['commit'][:12]}. Percent of images "
        "answered rightly."
    )


Answers = dict[str, dict[int, str]]  # by column and seed: which images were answered rightly


def _pairs(right: dict[str, Answers]) -> list[str]:
    """Ours against AP and ProtoPNet on the same images: how many of them one gets right more often than the other, over
    the seeds that both have, and how likely so uneven a division is by chance (the exact sign test over images, which
    for one seed is McNemar's: the seeds of one image are no two images).
    """
    pairs = [(ours, other) for _, ours in HEADS for other in ("AP", "ProtoPNet")]
    there = [(ours, other) for ours, other in pairs if f"**{ours}**" in right and other in right]
    columns = [column for column in PAIRED if any(_both(right, pair, column) for pair in there)]
    if not columns:
        return []
    lines = ["Image by image, right more often in ours : in the other (exact sign test; the seeds that both have):", ""]
    lines += table_head(["", *(TITLES[column] for column in columns)])
    for pair in there:
        lines.append(table_row(", ".join(pair), [_split(_both(right, pair, column)) for column in columns]))
    return [*lines, ""]


def _both(right: dict[str, Answers], pair: tuple[str, str], column: str) -> list[tuple[str, str]]:
    """What ours and the other answered rightly, by the seeds that both have."""
    ours, other = right[f"**{pair[0]}**"].get(column, {}), right[pair[1]].get(column, {})
    return [(ours[seed], other[seed]) for seed in sorted(ours.keys() & other.keys())]


def _split(both: list[tuple[str, str]]) -> str:
    from scipy.stats import binomtest

    if not both:
        return "–"
    lead = np.sum([_bits(ours) - _bits(other) for ours, other in both], axis=0)  # (images,)
    mine, theirs = int((lead > 0).sum()), int((lead < 0).sum())
    chance = f", p = {binomtest(mine, mine + theirs).pvalue:.2g}" if mine + theirs else ""
    return f"{mine} : {theirs}{chance}"


def _bits(answers: str) -> npt.NDArray[np.int64]:
    return np.array([int(each) for each in answers])


Found = dict[tuple[str, str], dict[str, Any]]  # by row and head: accuracy by column


def _judged(names: list[str], found: Found) -> list[str]:
    """The columns that all of these rows have."""
    return [column for column in JUDGED if all(column in found[name, head] for name in names for head, _ in HEADS)]


def _titles(columns: list[str]) -> list[str]:
    return [f"{label} {TITLES[column]}" for _, label in HEADS for column in columns]


def _cells(row: dict[str, Any], found: Found, columns: list[str]) -> list[str]:
    cells = [_interval(found[row["row"], head], column) for head, _ in HEADS for column in columns]
    return [str(len(row["seeds"])), *cells]


def _mean(accuracy: dict[str, Any], column: str) -> str:
    return f"{100 * accuracy[column]['mean']:.1f}" if column in accuracy else ""


def _interval(accuracy: dict[str, Any], column: str) -> str:
    return interval(accuracy[column]["mean"], accuracy[column]["interval"]) if column in accuracy else ""
