"""`python -m benchmarks recipe DATA --weights FILE`: what each part of our recipe for photographs is worth.

One change at a time, one seed; every row is chosen and kept by validation, and the test part is looked at once, at its
end. What the regulariser adds is also asked under attack, and adversarial training under a stronger one. Beside them a
linear probe: logistic regression on what the same weights make of the same images before anything is trained. What is
finished is not done again.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.page import interval, put, table_head, table_row
from benchmarks.record import read_kept, same_options, save
from benchmarks.study.place import Place
from benchmarks.study.tables import TITLES
from bundle.errors import OptionError
from bundle.false_alarms import wilson
from bundle.files import check_place, write_text
from demo.stages import fieldmark
from training.backbones import check_weights
from training.data import open_dataset
from training.networks import Network, NetworkConfig
from training.presets import preset

PENALTIES = (0.001, 0.01, 0.1, 1, 10, 100)  # inverse strengths of the probe's penalty; validation chooses
EVERYTHING, SOME = "1000000", "100"  # test images, clean and under attack
ATTACKS = ("pgd10-2", "apgd-2", "pgd10-8", "apgd-8")
WEAK, STRONG = ("pgd10-2", "pgd10-8"), ("pgd10-8", "apgd-8")
AT_ONCE = ("adversarial_from=0", "adversarial_full=0")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training: a system, and what differs from the preset."""

    name: str
    system: str = "ap"
    settings: tuple[str, ...] = ()
    whole: bool = False  # as long as the preset says; the others are shorter
    fast: bool = False  # adversarial training
    attacks: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """Its folder's name."""
        return re.sub("[^a-z0-9]+", "-", self.name.lower())


ROWS = (
    Row(name="AP", whole=True, attacks=ATTACKS[:2]),
    Row(name="maxsep", system="maxsep", whole=True, attacks=ATTACKS[:2]),
    Row(name="ProtoPNet", system="protopnet", whole=True, attacks=ATTACKS[:2]),
    Row(name="AP, shorter", attacks=WEAK),
    Row(name="backbone at a third of the rate", settings=("learning_rate_backbone=3e-5",)),
    Row(name="no crops", settings=("augmentation.crop=1",)),
    Row(
        name="no changes of light",
        settings=(
            "augmentation.brightness=0",
            "augmentation.contrast=0",
            "augmentation.saturation=0",
            "augmentation.color=0",
        ),
    ),
    Row(name="no warm-up", settings=("warmup_steps=0",)),
    Row(name="with the last max-pool", settings=("output_stride=32",)),
    Row(name="no bound on steps", settings=("clip=0",)),
    Row(name="no label smoothing", settings=("loss.label_smoothing=0",)),
    Row(name="all stages learn", settings=("frozen_stages=0",)),
    Row(name="backbone at twice the rate", settings=("learning_rate_backbone=2e-4",)),
    Row(name="maxsep, shorter", system="maxsep", attacks=WEAK),
    Row(name="the authors' weight of clustering", system="maxsep", settings=("loss.cluster=100",)),
    Row(
        name="Eqs. 1-2, each image by its own attention",
        system="maxsep",
        settings=("loss.over=own",),
        attacks=WEAK,
    ),
    Row(
        name="no regulariser",
        system="maxsep",
        settings=("loss.cluster=0", "loss.separation=0"),
        attacks=WEAK,
    ),
    Row(name="adversarial: eps rises", system="maxsep", fast=True, attacks=STRONG),
    Row(name="adversarial: AP, eps rises", fast=True, attacks=STRONG),
    Row(
        name="adversarial: eps whole from the first step", system="maxsep", settings=AT_ONCE, fast=True, attacks=STRONG
    ),
    Row(
        name="adversarial: regulariser after the rise",
        system="maxsep",
        settings=("regularise_from=0.75",),
        fast=True,
        attacks=STRONG,
    ),
    Row(
        name="adversarial: each image by its own attention",
        system="maxsep",
        settings=("loss.over=own",),
        fast=True,
        attacks=STRONG,
    ),
    Row(
        name="adversarial: consistency with the clean answer",
        system="maxsep",
        settings=("loss.consistency=3",),
        fast=True,
        attacks=STRONG,
    ),
    Row(
        name="adversarial: an average over the weights",
        system="maxsep",
        settings=("ema=0.99",),
        fast=True,
        attacks=STRONG,
    ),
)


def bench(
    data: Annotated[Path, typer.Argument(help="Photographs, in any form that fieldmark train reads.")],
    weights: Annotated[str, typer.Option(help="'imagenet' or a file.")] = "imagenet",
    backbone: Annotated[str, typer.Option(help="A backbone and a side in pixels, as in a preset's name.")] = "vgg16-96",
    epochs: Annotated[int, typer.Option(min=1, help="Of the rows that are shorter than the preset.")] = 4,
    out: Annotated[Path, typer.Option(help="Runs and evaluations; the dataset's name and BACKBONE are added.")] = Path(
        "build/recipe"
    ),
    first: Annotated[int, typer.Option(min=0, help="Row to begin with.")] = 0,
    last: Annotated[int, typer.Option(min=0, help="Row to end before.")] = len(ROWS),
) -> None:
    """Train every row, measure it on the test part; write benchmarks/results/recipe_DATASET_BACKBONE.json and its table
    in docs/results.md.
    """
    console = Console()
    place = Place.under(out, backbone, data)
    out, name, mark = place.folder, place.name("recipe"), f"recipe {place.mark}"
    check_place(out / "options.json")
    check_weights(backbone.partition("-")[0], weights)
    out.mkdir(parents=True, exist_ok=True)
    same_options(out / "options.json", {"data": str(data), "weights": weights, "backbone": backbone, "epochs": epochs})
    probe = out / "probe.json"
    if not probe.is_file():
        write_text(probe, json.dumps(linear_probe(data, f"ap-{backbone}", weights)) + "\n")
    for row in ROWS[first:last]:
        run, evaluation = out / row.slug, out / f"{row.slug}.json"
        if not evaluation.is_file():
            console.rule(f"[bold]{row.name}[/]", align="left")
            words = [word for text in row.settings for word in ("--set", text)]
            words += [] if row.whole else ["--epochs", str(epochs)]
            words += ["--weights", weights, "--resume"]
            system = f"{row.system}-{backbone}{'-fast' if row.fast else ''}"
            fieldmark("train", data, "--out", run, "--preset", system, *words)
            _evaluate(run, data, "clean", EVERYTHING, evaluation)
        for attack in row.attacks:
            if attack not in _answers(out, row):
                _evaluate(run, data, attack, SOME, out / f"{row.slug}.{attack}.json")
        save(name, collected(out, backbone))
    result = collected(out, backbone)
    if not result["rows"]:
        raise OptionError(f"no row is finished in {out}", hint=f"Take some of 0 to {len(ROWS)}: --first 0 --last 3.")
    path = save(name, result)
    put(mark, table(result))
    console.print(f"figures: {path}", markup=False, highlight=False, soft_wrap=True)


def _evaluate(run: Path, data: Path, attack: str, count: str, out: Path) -> None:
    counts = ("--attacks", attack, "--count", count, "--autoattack-count", "0")
    fieldmark("evaluate", run, "--data", data, *counts, "--out", out)


def _answers(out: Path, row: Row) -> dict[str, dict[str, str]]:
    """By attack and head, of a row's evaluations: one of clean images, and one of each attack."""
    found: dict[str, dict[str, str]] = {}
    files = (out / f"{row.slug}.json", *(out / f"{row.slug}.{attack}.json" for attack in ATTACKS))
    for file in filter(Path.is_file, files):
        for head, answers in read_kept(file, "right")["right"].items():
            for attack, bits in answers.items():
                found.setdefault(attack, {}).setdefault(head, bits)
    return found


def collected(out: Path, backbone: str) -> dict[str, Any]:
    """Of every row that is finished: shares of validation and test by head, intervals, and how long it trained."""
    found = []
    for row in ROWS:
        run, evaluation = out / row.slug / "run.json", out / f"{row.slug}.json"
        if evaluation.is_file():
            record = read_kept(run, "config", "results")
            answers = _answers(out, row)
            found.append(
                {
                    "row": row.name,
                    "system": row.system,
                    "settings": list(row.settings),
                    "epochs": record["config"]["epochs"],
                    "validation": record["results"]["validation"],
                    "outcome": record["results"]["outcome"],
                    "minutes": round(sum(each["seconds"] for each in record["results"]["history"]) / 60, 1),
                    "test": {head: _share(bits) for head, bits in answers["clean"].items()},
                    "attacked": {
                        attack: {head: _share(bits) for head, bits in answers[attack].items()}
                        for attack in ATTACKS
                        if attack in answers
                    },
                }
            )
    probe = read_kept(out / "probe.json", "validation", "test")
    return {"preset": backbone, "probe": probe, "rows": found}


def _share(answers: str) -> dict[str, Any]:
    """Of a text of 1 and 0, one for each image."""
    right, count = answers.count("1"), len(answers)
    low, high = wilson(right, count)
    return {"right": right, "of": count, "share": round(right / count, 4), "interval": [round(low, 4), round(high, 4)]}


def linear_probe(data: Path, name: str, weights: str) -> dict[str, Any]:
    """Logistic regression on the spatial means of the last maps, standardised; validation chooses the penalty."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from training.backbones import load_weights

    config = preset(name)
    dataset = open_dataset(data)
    network = Network(
        NetworkConfig(backbone=config.backbone, output_stride=config.output_stride, classes=len(dataset.labels))
    ).eval()
    load_weights(network.backbone, config.backbone, weights)
    features = {
        part: _features(network, dataset.parts[part], config.image_size) for part in ("train", "validation", "test")
    }
    judged = []
    for penalty in PENALTIES:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=500)).fit(*features["train"])
        judged.append((float(model.score(*features["validation"])), penalty, model))
    share, penalty, model = max(judged, key=lambda each: each[0])
    images, labels = features["test"]
    right = "".join("01"[each] for each in (model.predict(images) == labels).astype(int))
    return {"penalty": penalty, "validation": round(share, 4), "test": _share(right)}


def _features(network: Network, samples: Any, size: int) -> tuple[Any, Any]:
    """(n, C) and labels (n,)."""
    import torch

    from bundle.image import ImageSpec
    from training.data.loading import images_array
    from training.pixels import from_bytes

    images, labels = images_array(samples, ImageSpec(height=size, width=size))
    found = []
    with torch.no_grad():
        for batch in torch.from_numpy(images).split(64):
            inputs = network.normalised(from_bytes(batch)).contiguous(memory_format=torch.channels_last)
            found.append(network.backbone(inputs)[-1].mean(dim=(2, 3)))
    return torch.cat(found).numpy(), labels


def table(result: Mapping[str, Any]) -> str:
    """The rows as Markdown, in percent: on clean images, then under attack."""
    probe, rows = result["probe"], result["rows"]
    lines = table_head(["recipe", "head", "epochs", "validation", "test, 95 % interval", "minutes of epochs"])
    lines.append(table_row("linear probe", ["", "", f"{100 * probe['validation']:.1f}", _percent(probe["test"]), ""]))
    lines += [
        table_row(row["row"], [*_begin(row, head), _percent(share), f"{row['minutes']:.0f}"])
        for row in rows
        for head, share in row["test"].items()
    ]
    attacked = [row for row in rows if row["attacked"]]
    if attacked:
        lines += ["", *table_head(["recipe, under attack", "head", *(TITLES[attack] for attack in ATTACKS)])]
    lines += [
        table_row(row["row"], [head, *(_percent(row["attacked"].get(attack, {}).get(head)) for attack in ATTACKS)])
        for row in attacked
        for head in row["test"]
    ]
    return "\n".join(lines) + "\n"


def _begin(row: Mapping[str, Any], head: str) -> list[str]:
    return [head, str(row["epochs"]), f"{100 * row['validation'][head]:.1f}"]


def _percent(share: Mapping[str, Any] | None) -> str:
    return "–" if share is None else interval(share["share"], share["interval"], digits=1)
