"""`make study`: every system of the paper, trained and attacked, on any dataset; one command that can be stopped.

Rows and columns are those of the paper's Tables 1-3: six systems without and with fast adversarial training, and the
ablation of the regulariser. Then come the pictures, the detectors of all systems, and who knows them. What is finished
is not done again; the tables are written after every run, from whatever is there.
"""

import json
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from benchmarks import detection, sr5
from benchmarks.page import PAGE
from benchmarks.record import RESULTS, environment, read_kept, same_options, understood
from benchmarks.study.classes import first_classes
from benchmarks.study.pictures import draw_pictures
from benchmarks.study.place import Place
from benchmarks.study.plan import Row, jobs, rows, set_words
from benchmarks.study.tables import PAIRED, write_page
from bundle.errors import OptionError
from bundle.false_alarms import wilson
from bundle.files import write_text
from bundle.progress import Work
from demo.stages import fieldmark, side_by_side
from robustness.accuracy import WORST
from robustness.suites import PAPER
from training.backbones import BACKBONES, check_weights
from training.parallel import Devices
from training.presets import preset
from training.run import Run, published_config

SOURCES = {"bb-v": "vgg16", "bb-d": "densenet121"}
# A substitute for the small backbone: from scratch, without what the authors do to ImageNet weights.
SHORT = (
    "warmup_epochs=0",
    "copies=1",
    "schedule=cosine",
    "batch_size=64",
    "learning_rate_backbone=0.0005",
    "augmentation.one_of=false",
    "augmentation.skew=0",
    "augmentation.scale=0.1",
)
WORST_THERE = "worst-there"  # of the columns before it, on AutoAttack's images
WORST_WEAK = "worst-2"  # of the paper's white-box columns at 2/255; APGD at 2/255 stands beside it
RESAMPLES = 2000
OWN = {
    "seed": "Say how many: --seeds.",
    "epochs": "Take --epochs and --fast-epochs.",
    "image_size": "Take --image-size, or a --backbone such as vgg16-96.",
    "weights": "Take --weights.",
    "backbone": "Take --backbone.",
    "system": "Every row has its own.",
    "adversarial": "Every row has its own.",
}


def bench(
    data: Annotated[
        Path | None, typer.Option(help="CUB, Cars, class folders or a manifest; without it, the built-in birds.")
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="As in a preset's name, with the input side if it is another: small, vgg16, vgg16-96.")
    ] = "small",
    classes: Annotated[
        int | None, typer.Option(help="The first so many by name, where all would take too long.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each row.")] = 3,
    other_seeds: Annotated[
        int | None, typer.Option(min=0, help="The same of AP+Triplet, AP+PCL and the ablations, if it is another.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Runs and evaluations; BACKBONE is added, and the name of a dataset of your own.")
    ] = Path("build/study"),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Instead of the preset's; 8 for the built-in birds.")
    ] = None,
    fast_epochs: Annotated[
        int | None, typer.Option(min=1, help="With adversarial training; 10 for the built-in birds.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Input side in pixels; the preset's, 48 for the built-in birds.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="As 'fieldmark train --set', in every row but the substitutes; repeat for more."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="'imagenet', 'none' or a file, instead of the preset's.")] = None,
    precision: Annotated[str, typer.Option(help="Of training; evaluation is in float32.")] = "bf16-mixed",
    count: Annotated[int, typer.Option(min=1, help="Test images under every attack.")] = 100,
    autoattack_count: Annotated[int, typer.Option(min=0, help="Test images under the whole of AutoAttack.")] = 12,
    apgd: Annotated[
        bool, typer.Option("--apgd/--no-apgd", help="AutoAttack's two gradient attacks on every image.")
    ] = True,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Figs. 2, 4, 5, 6 and 8 of the main systems, at the end.")
    ] = True,
    detectors: Annotated[
        bool, typer.Option("--detectors/--no-detectors", help="Every system's detector, and SR@5 of those of seed 0.")
    ] = True,
    adaptive_steps: Annotated[int, typer.Option(min=1, help="Of attackers who know the detector.")] = sr5.Effort.steps,
    adaptive_count: Annotated[int, typer.Option(min=1, help="Test images under them.")] = sr5.Effort.count,
    at_once: Annotated[
        int, typer.Option(min=1, help="Trainings side by side, each with its share of the processors.")
    ] = 1,
) -> None:
    """Train and attack every row with every seed; write the tables."""
    if preset(backbone).preset != backbone or not backbone.startswith(tuple(BACKBONES)):
        raise OptionError(
            f"{backbone!r} is no backbone", hint=f"Choose one of: {', '.join(BACKBONES)}; with a side: vgg16-96."
        )
    console = Console()
    if data is None:
        if classes is not None:
            raise OptionError("the built-in birds are drawn whole", hint="Leave --classes out, or name --data.")
        epochs, fast_epochs, image_size = epochs or 8, fast_epochs or 10, image_size or 48
    elif not data.exists():
        raise OptionError(f"there is no dataset at {data}", hint="Name CUB, Cars, class folders or a manifest.")
    if backbone == "small" and (image_size or 64) > 128:
        raise OptionError("the small backbone is for images of at most 128 pixels", hint="Choose another --backbone.")
    settings = sorted({text.strip() for text in settings or ()})
    _refuse_own(settings)
    _rehearse(backbone, {"image_size": image_size, "weights": weights}, settings, epochs, fast_epochs)
    Devices(precision=precision).fabric()
    if data is not None and classes is not None:
        data = first_classes(data, classes, out)
    place = Place.under(out, backbone, data)
    place.folder.mkdir(parents=True, exist_ok=True)
    if data is None:
        data = out / "birds"
        if not data.exists():
            fieldmark("data", "make", data)
    options: dict[str, Any] = {"data": str(data), "epochs": epochs, "fast_epochs": fast_epochs, "weights": weights}
    options |= {"image_size": image_size, "precision": precision, "count": count, "autoattack": autoattack_count}
    options |= {"apgd": True} if apgd else {}  # a study of an earlier version has none
    options |= {"settings": settings} if settings else {}
    same_options(place.folder / "options.json", options)
    common = ["--precision", precision]
    common += [] if weights is None else ["--weights", weights]
    common += [] if image_size is None else ["--image-size", str(image_size)]
    sources = _sources(data, place, common)
    attacked = [word for source, path in sources.items() for word in ("--source", f"{source}={path}")]
    todo = list(jobs(backbone, seeds, other_seeds))
    work, collecting = Work("study", len(todo), unit="trainings"), Lock()
    ahead = [(seed, row) for seed, row in todo if not _evaluation(place, row, seed).is_file()]
    work.at(len(todo) - len(ahead), 0)
    threads = max(1, len(os.sched_getaffinity(0)) // at_once) if at_once > 1 else None

    def finish(seed: int, row: Row) -> None:
        run, evaluation = place.run(row.name, seed), _evaluation(place, row, seed)
        console.rule(f"[bold]{row.name}[/], seed {seed}: {work}", align="left")
        words = [*common, *set_words(settings), *row.options, "--epochs", str(_length(row, epochs, fast_epochs))]
        words += ["--preset", row.preset, "--seed", str(seed), "--resume"]
        fieldmark("train", data, "--out", run, *words, threads=threads)
        classes = len(Run(run).read_record().labels)
        how = ["--attacks", ",".join(row.columns(classes, sources, apgd=apgd)), "--count", str(count)]
        how += ["--autoattack-count", "0"] if row.attacks else ["--autoattack-count", str(autoattack_count), *attacked]
        told = ("--data", data, "--seed", str(seed), "--out", evaluation)
        fieldmark("evaluate", run, *how, *told, threads=threads)
        with collecting:
            write_page(_save(place, seeds, settings), place.mark)
            work.advance()

    side_by_side(at_once, [partial(finish, *each) for each in ahead])
    result = _save(place, seeds, settings)
    write_page(result, place.mark)
    console.print(f"tables: {result}, in {PAGE}", highlight=False, markup=False, soft_wrap=True)
    if pictures:
        console.print(f"pictures: {draw_pictures(place, data)}", highlight=False, soft_wrap=True)
    if detectors:
        detection.measure(place, data, seeds)
        runs = [run for row in rows(backbone) if Run(run := place.run(row.name, 0)).finished]
        effort = sr5.Effort(steps=adaptive_steps, count=adaptive_count)
        sr5.measure(runs, data, effort, place.folder / "sr5", place.name("sr5"), f"sr5 {place.mark}")


def _evaluation(place: Place, row: Row, seed: int) -> Path:
    return place.folder / f"{row.name}-{seed}.json"


def _refuse_own(settings: Iterable[str]) -> None:
    """What the study sets itself is no setting: its substitutes, columns and folders go by it."""
    for name in (text.partition("=")[0].strip() for text in settings):
        if name in OWN:
            raise OptionError(f"--set {name} is not for a study", hint=OWN[name])


def _length(row: Row, epochs: int | None, fast_epochs: int | None) -> int:
    length = (fast_epochs if row.fast else epochs) or preset(row.preset).epochs
    return 2 * length if row.longer else length


def _rehearse(
    backbone: str, changes: dict[str, Any], settings: list[str], epochs: int | None, fast_epochs: int | None
) -> None:
    """Make every row's config once: a setting that fits none must not be found after hours."""
    if changes["weights"] not in (None, "none"):
        check_weights(backbone.partition("-")[0], changes["weights"])
    for _, row in jobs(backbone, 1):
        texts = [*settings, *(word for word in row.options if word != "--set")]
        try:
            preset(row.preset, texts=texts, epochs=_length(row, epochs, fast_epochs), **changes)
        except OptionError as problem:
            raise OptionError(f"{row.name}: {problem.what}", hint=problem.hint) from None


def _sources(data: Path, place: Place, common: list[str]) -> dict[str, Path]:
    """The substitutes that transfer attacks come from, trained once; for the small backbone from scratch, shortly. A
    weights file is of one backbone: the others are left out.
    """
    architecture, _, size = place.backbone.partition("-")
    runs = {}
    for source, network in _substitutes(architecture, common).items():
        runs[source] = place.folder / f"gap-{network}"
        options, name = list(common), f"gap-{network}{f'-{size}' if size else ''}"
        if architecture == "small":
            epochs, name = "10" if network == "vgg16" else "5", f"gap-{network}-reference"
            options += set_words(SHORT)
            options += ["--epochs", epochs, "--weights", "none"]
            options += [] if "--image-size" in common else ["--image-size", "64"]
        fieldmark("train", data, "--out", runs[source], "--preset", name, *options, "--resume")
    return runs


def _substitutes(architecture: str, common: list[str]) -> dict[str, str]:
    weights = common[common.index("--weights") + 1] if "--weights" in common else "imagenet"
    fitting = architecture == "small" or weights in ("imagenet", "none")
    return {source: network for source, network in SOURCES.items() if fitting or network == architecture}


def _save(place: Place, seeds: int, settings: Sequence[str]) -> Path:
    """Collect every evaluation that is there; returns the file."""
    table, images = [], None
    for row in dict.fromkeys(row for _, row in jobs(place.backbone, 1)):
        files = [_evaluation(place, row, seed) for seed in range(seeds)]
        found = [_evaluated(file) for file in files if file.is_file()]
        if not found:
            continue
        images = _same_images(row.name, images, found)
        for head in found[0]["right"]:
            every = [each["right"][head] for each in found]
            columns = [column for column in every[0] if all(column in answers for answers in every)]
            table.append(
                {
                    "row": row.name,
                    "head": head,
                    "command": " ".join(
                        ("fieldmark train DATA --out RUN --preset", row.preset, *set_words(settings), *row.options)
                    ),
                    "seeds": [each["seed"] for each in found],
                    "right": {column: [answers[column] for answers in every] for column in PAIRED if column in columns},
                    "run": _run_facts(place.run(row.name, found[0]["seed"])),
                    "accuracy": {column: _summary([answers[column] for answers in every]) for column in columns},
                }
            )
    path = RESULTS / f"{place.name('paper_tables')}.json"
    runs = {source: place.folder / f"gap-{network}" for source, network in SOURCES.items()}
    sources = {source: _run_facts(run) for source, run in runs.items() if (run / "run.json").is_file()}
    document = {
        "environment": environment(),
        "dataset": "built-in birds" if not place.dataset else table[0]["run"]["dataset"] if table else None,
        "backbone": place.backbone,
        "sources": sources,
        **({"settings": list(settings)} if settings else {}),
        "rows": table,
    }
    write_text(path, json.dumps(document, indent=1) + "\n")
    return path


def _same_images(row: str, images: list[str] | None, evaluations: list[dict[str, Any]]) -> list[str]:
    """Seeds are resampled as trainings that were judged on the same images, and rows are held against each other on
    them, so they must have been: those of the rows so far, which are returned.
    """
    for each in evaluations:
        images = images or each["images"]
        if each["images"] != images:
            raise OptionError(
                f"{row}, seed {each['seed']}, was judged on other images than what stands before it",
                hint="It was trained with another division of the data; start anew with another --out.",
            )
    return images or []


def _evaluated(file: Path) -> dict[str, Any]:
    """What `fieldmark evaluate` has written there."""
    evaluation = read_kept(file, "seed", "images", "right", "autoattack_images")
    with understood(file):
        return _told_apart(evaluation)


def _told_apart(evaluation: dict[str, Any]) -> dict[str, Any]:
    """With the worst of the attacks at 2/255, and with that of all on AutoAttack's own images, which alone may be
    compared with it.
    """
    places = [evaluation["images"].index(key) for key in evaluation["autoattack_images"]]
    for answers in evaluation["right"].values():
        weak = [bits for name, bits in answers.items() if name in PAPER and name.endswith("-2")]
        if weak:
            answers[WORST_WEAK] = "".join("01"[set(each) == {"1"}] for each in zip(*weak, strict=True))
        if places:
            answers[WORST_THERE] = "".join(answers[WORST][place] for place in places)
    return evaluation


def _run_facts(run: Path) -> dict[str, Any]:
    """What the results tell of a training: no path of this machine is among it."""
    record = Run(run).read_record()
    return {
        "config": published_config(record.config),
        "dataset": record.dataset.name,
        "device": record.versions["device"],
        "validation": record.results.get("validation"),
    }


def _summary(answers: list[str]) -> dict[str, Any]:
    """Mean over seeds of the share of right answers, and a 95 % interval: by resampling seeds and images together, and
    no narrower than Wilson's for the images alone.
    """
    right = np.array([[int(answer) for answer in each] for each in answers], float)  # [seeds, images]
    rng = np.random.default_rng(0)
    chosen_seeds = rng.integers(0, right.shape[0], (RESAMPLES, right.shape[0], 1))
    chosen_images = rng.integers(0, right.shape[1], (RESAMPLES, 1, right.shape[1]))
    means = right[chosen_seeds, chosen_images].mean(axis=(1, 2))
    low, high = np.percentile(means, (2.5, 97.5))
    # Resampling cannot know what it has not seen: all wrong of twelve images is not surely all wrong.
    bounds = wilson(float(right.mean()) * right.shape[1], right.shape[1])
    return {
        "mean": round(float(right.mean()), 4),
        "interval": [round(min(float(low), bounds[0]), 4), round(max(float(high), bounds[1]), 4)],
        "by_seed": [round(float(each), 4) for each in right.mean(axis=1)],
        "images": right.shape[1],
    }
