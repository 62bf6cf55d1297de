"""Detectors of adversarial images on equal features: ours, its parts, and what others propose, on attacks that their
weights have learnt from and on attacks that they have not (leave one attack out).

`python -m benchmarks rivals` measures the demo's run and the study's, `python -m benchmarks rivals RUN...` any.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.record import result_file, save
from benchmarks.rivals.preprocessing import nudge, squeeze
from benchmarks.rivals.selection import columns_of, select_layers
from bundle import tensors
from bundle.console import say
from bundle.errors import OptionError
from detector.combination import fit_logistic, logarithms
from detector.conformal import p_values, p_values_per_class
from detector.gaussian import ClassGaussians
from detector.model import DISTANCES
from detector.moments import fit_gaussians
from robustness.fitting import VALIDATION_IMAGES, DetectorSettings, attacked, features_of
from robustness.metrics import auroc
from training.attacks.attacker import Attackers
from training.attacks.names import CLEAN, NOISE
from training.data.choice import spread
from training.data.loading import images_array
from training.networks import Network
from training.run import Run, image_spec

Array = npt.NDArray[Any]
Columns = Callable[["Answers"], Array]
OURS = "nearest, predicted and overall (ours)"
PREPROCESSED = "nearest class, input preprocessing (Lee et al. 2018)"
NEIGHBOURS = 50  # k of kNN (Sun et al. 2022)
STUDY, DEMO_RUN = Path("build/study/small"), Path("build/demo/run")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is measured; `attacks` in the order of the result, `resamples` of the bootstrap over images."""

    attacks: tuple[str, ...] = ("fgsm-8", "pgd10-2", "pgd10-8", "mim10-8")
    validation: int = VALIDATION_IMAGES
    test: int = 600
    resamples: int = 500
    alpha: float = DetectorSettings().alpha
    seed: int = 1
    preprocessing: bool = True


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the network makes of n images of one part under one attack."""

    features: dict[str, Array]  # by layer, (n, D_layer)
    predicted: Array  # (n,)
    right: Array  # (n,) bool
    squeezed: Array  # (n, 1) feature squeezing's score
    nudged: Array  # (n, layers) squared distances to the nearest class after Lee's input preprocessing


def summed_up(runs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """By head and method: the mean AUROC over attacks that were left out, of images that fool, run by run."""
    by_head = {head: {name: run[head] for name, run in runs.items() if head in run} for head in tensors.NETWORKS}
    return {
        head: {
            method: {name: _mean(run, method) for name, run in found.items()}
            for method in next(iter(found.values()))["methods"]
        }
        for head, found in by_head.items()
        if found
    }


def _mean(found: Mapping[str, Any], method: str) -> Any:
    """None where no attack fooled the head, so that there was no AUROC to take a mean of."""
    return found["methods"][method]["left_out_attack"]["fooled"].get("mean", [None])[0]


def measure_run(path: Path, root: Path | None, setup: Setup = Setup()) -> dict[str, Any]:
    """By head and method: AUROC by attack and its mean, with 95 % intervals, for images that fool and for all."""
    record, network = Run(path).load_network()
    dataset, spec = record.dataset.unchanged_at(root or Path(record.dataset.root)), image_spec(record.config)
    counts = {"train": None, "validation": setup.validation, "calibration": None, "test": setup.test}
    parts = {
        name: images_array(dataset.parts[name] if count is None else spread(dataset.parts[name], count), spec)
        for name, count in counts.items()
    }
    result: dict[str, Any] = {"preset": record.config.preset, "images": {n: len(p[1]) for n, p in parts.items()}}
    return result | {head: compare(network, head, parts, setup) for head in network.config.heads}


def compare(network: Network, head: str, parts: Mapping[str, tuple[Array, Array]], setup: Setup) -> dict[str, Any]:
    """Every method on one head."""
    features, _ = features_of(network, head, parts["train"][0])
    labels = parts["train"][1]
    gaussians = {layer: fit_gaussians(values, labels, layer=layer) for layer, values in features.items()}
    attacker = Attackers(network=network, seed=setup.seed).on(head)

    nudged = setup.preprocessing

    def answers(part: str, attack: str) -> Answers:
        images = attacked(attack, attacker, parts[part])
        measured, predicted = features_of(network, head, images)
        return Answers(
            features=measured,
            predicted=predicted,
            right=predicted == parts[part][1],
            squeezed=squeeze(network, head, images) if part != "calibration" else np.zeros((0, 1)),
            nudged=nudge(network, head, images, gaussians) if nudged and part != "calibration" else np.zeros((0, 1)),
        )

    names = (CLEAN, NOISE, *setup.attacks)
    taught = {name: answers("validation", name) for name in names}
    tested = {name: answers("test", name) for name in names}
    calibration = answers("calibration", CLEAN)
    methods, chosen = _methods(features, labels, gaussians, taught, setup.attacks)
    result: dict[str, Any] = {
        "layers": list(features),
        "chosen_layers": [list(features)[index] for index in chosen],
        "accuracy": {name: round(float(found.right.mean()), 4) for name, found in tested.items()},
        "fooled": {name: int(_fooled(tested, name).sum()) for name in setup.attacks},
        "methods": {},
    }
    for name, (columns, learns) in methods.items():
        scores = {True: _scores(columns, learns, taught, tested, setup.attacks, leave_out=True)}
        scores[False] = (
            _scores(columns, learns, taught, tested, setup.attacks, leave_out=False) if learns else scores[True]
        )
        result["methods"][name] = {
            kind: {
                positives: _areas(scores[leave_out], tested, setup, fooled=positives == "fooled")
                for positives in ("fooled", "all")
            }
            for kind, leave_out in (("known_attack", False), ("left_out_attack", True))
        }
    result["flagged"] = _flagged(methods[OURS][0], taught, tested, calibration, setup)
    return result


def _methods(
    train: Mapping[str, Array],
    labels: Array,
    gaussians: Mapping[str, ClassGaussians],
    taught: Mapping[str, Answers],
    attacks: Sequence[str],
) -> tuple[dict[str, tuple[Columns, bool]], tuple[int, ...]]:
    """By name: the columns that are combined, higher is more suspicious, and whether attacks teach their weights."""
    unit = {layer: fit_gaussians(_unit(values), labels, layer=layer) for layer, values in train.items()}
    last = next(layer for layer in reversed(list(train)) if layer.startswith("stage"))
    neighbours = _unit(train[last])

    def evidence(found: Answers) -> Array:
        rows = [fitted.evidence(found.features[layer], found.predicted) for layer, fitted in gaussians.items()]
        return logarithms(np.concatenate(rows, axis=1))

    def normalised(found: Answers) -> Array:
        rows = [fitted.evidence(_unit(found.features[layer]), found.predicted) for layer, fitted in unit.items()]
        return logarithms(np.concatenate(rows, axis=1))

    def relative(found: Answers) -> Array:
        distances = np.exp(evidence(found))
        return distances[:, 0::3] - distances[:, 2::3]

    def ratios(found: Answers) -> Array:
        logs = evidence(found)
        return np.concatenate([logs[:, side::3] - logs[:, 2::3] for side in (0, 1)], axis=1)

    def nearest_neighbours(found: Answers) -> Array:
        cosine = _unit(found.features[last]) @ neighbours.T  # for unit vectors ||a - b||^2 = 2 - 2 a.b
        return -np.partition(cosine, -NEIGHBOURS, axis=1)[:, [-NEIGHBOURS]]

    kept = _kept(taught)
    clean, noisy = (evidence(taught[name])[kept] for name in (CLEAN, NOISE))
    rows = {name: kept & ~taught[name].right for name in attacks}
    chosen = select_layers(
        len(gaussians),
        (np.exp(np.concatenate([clean, noisy])), np.tile(np.flatnonzero(kept), 2)),
        {name: (np.exp(evidence(taught[name])[taken]), np.flatnonzero(taken)) for name, taken in rows.items()},
    )
    columns = columns_of(chosen, len(DISTANCES))
    classes = [index for index in range(clean.shape[1]) if index % 3 != 2]
    methods: dict[str, tuple[Columns, bool]] = {
        OURS: (evidence, True),
        "chosen layers": (lambda found: evidence(found)[:, columns], True),
        "no attacks (ours)": (ratios, False),
        "nearest and predicted class": (lambda found: evidence(found)[:, classes], True),
        "nearest class (Lee et al. 2018)": (lambda found: evidence(found)[:, 0::3], True),
        PREPROCESSED: (lambda found: logarithms(found.nudged), True),
        "predicted class": (lambda found: evidence(found)[:, 1::3], True),
        "class-agnostic": (lambda found: evidence(found)[:, 2::3], True),
        "relative (Ren et al. 2021)": (relative, True),
        "L2-normalised features": (normalised, True),
        "feature squeezing (Xu et al. 2018)": (lambda found: found.squeezed, False),
        "nearest neighbours (Sun et al. 2022)": (nearest_neighbours, False),
    }
    if not len(taught[CLEAN].nudged):
        del methods[PREPROCESSED]
    return methods, chosen


def _scores(
    columns: Columns,
    learns: bool,
    taught: Mapping[str, Answers],
    tested: Mapping[str, Answers],
    attacks: Sequence[str],
    *,
    leave_out: bool,
) -> dict[str, tuple[Array, Array]]:
    """By attack: scores of the clean and of the attacked test images, (n,) each."""
    kept, found = _kept(taught), {}
    rows = {name: columns(answers) for name, answers in taught.items()}
    clean = columns(tested[CLEAN])
    for attack in attacks:
        if learns:
            known = [name for name in attacks if not (leave_out and name == attack)]
            positives = np.concatenate([rows[name][kept & ~taught[name].right] for name in known])
            weights, _ = fit_logistic(np.concatenate([rows[CLEAN][kept], rows[NOISE][kept]]), positives)
        else:
            weights = 1 / rows[CLEAN].std(axis=0)
        found[attack] = clean @ weights, columns(tested[attack]) @ weights
    return found


def _areas(
    scores: Mapping[str, tuple[Array, Array]], tested: Mapping[str, Answers], setup: Setup, *, fooled: bool
) -> dict[str, Any]:
    """AUROC by attack and their mean, each with its 95 % interval over images drawn with replacement.

    A draw without any positive, which few positives make possible, takes all of them.
    """
    n = len(tested[CLEAN].right)
    draws = np.random.default_rng(setup.seed).integers(0, n, (setup.resamples, n))
    taken = {name: _fooled(tested, name) if fooled else np.ones(n, bool) for name in scores}
    areas = {}
    for name, (clean, moved) in scores.items():
        if taken[name].any():
            areas[name] = [
                auroc(clean[draw], moved[drawn] if len(drawn := draw[taken[name][draw]]) else moved[taken[name]])
                for draw in (np.arange(n), *draws)
            ]
    if areas:
        areas["mean"] = list(np.mean(list(areas.values()), axis=0))
    return {
        name: [round(float(value), 4) for value in (found[0], *np.percentile(found[1:], (2.5, 97.5)))]
        for name, found in areas.items()
    }


def _flagged(
    columns: Columns,
    taught: Mapping[str, Answers],
    tested: Mapping[str, Answers],
    calibration: Answers,
    setup: Setup,
) -> dict[str, Any]:
    """Shares of test images with a p-value of at most alpha, marginal and per predicted class."""
    kept = _kept(taught)
    positives = np.concatenate([columns(taught[name])[kept & ~taught[name].right] for name in setup.attacks])
    weights, _ = fit_logistic(np.concatenate([columns(taught[name])[kept] for name in (CLEAN, NOISE)]), positives)
    known = columns(calibration) @ weights
    order = np.argsort(known)
    result: dict[str, Any] = {"alpha": setup.alpha}
    for kind in ("marginal", "per-class"):
        flags = {}
        for name, found in tested.items():
            scores = columns(found) @ weights
            values = (
                p_values(scores, known[order])
                if kind == "marginal"
                else p_values_per_class(scores, found.predicted, known[order], calibration.predicted[order])
            )
            flags[name] = values <= setup.alpha
        clean = flags[CLEAN]
        by_class = [float(clean[tested[CLEAN].predicted == k].mean()) for k in np.unique(tested[CLEAN].predicted)]
        result[kind] = {
            "all": {name: round(float(found.mean()), 4) for name, found in flags.items()},
            "fooled": {
                name: round(float(flags[name][_fooled(tested, name)].mean()), 4)
                for name in setup.attacks
                if _fooled(tested, name).any()
            },
            "clean_by_class": {"least": round(min(by_class), 4), "most": round(max(by_class), 4)},
        }
    return result


def _unit(features: Array) -> Array:
    length: Array = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return features / length


def _kept(taught: Mapping[str, Answers]) -> Array:
    """Images that the network gets right clean and noisy, as Lee et al. (2018)."""
    return taught[CLEAN].right & taught[NOISE].right


def _fooled(tested: Mapping[str, Answers], attack: str) -> Array:
    return tested[CLEAN].right & ~tested[attack].right


def _usual_runs(data: Path | None) -> dict[str, tuple[Path, Path | None]]:
    """The demo's run, and other seeds of the study where these are there: the form of our evidence was picked on the
    demo's run, so the others are the ones to believe.
    """
    runs: dict[str, tuple[Path, Path | None]] = {"demo": (DEMO_RUN, data)}
    others = (1, 2) if STUDY.is_dir() else ()
    return runs | {f"study, seed {each}": (STUDY / f"maxsep-small-{each}", STUDY.parent / "birds") for each in others}


def bench(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Finished runs; that of the demo and two of the study by default.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Their dataset, if it has moved since training.")] = None,
    test: Annotated[int, typer.Option(min=1, help="Test images at most, spread over the classes.")] = Setup().test,
    name: Annotated[str, typer.Option(help="benchmarks/results/NAME.json")] = "rivals",
    preprocessing: Annotated[
        bool,
        typer.Option(help="Lee et al.'s, a pass backward for every layer: most of the time of a large network."),
    ] = True,
) -> None:
    """Compare every detector on every head of these runs, by AUROC of attacks that were left out."""
    result_file(name)
    setup, console = replace(Setup(), test=test, preprocessing=preprocessing), Console()
    chosen = {run.resolve().name: (run, data) for run in runs} if runs else _usual_runs(data)
    if runs and len(chosen) < len(runs):
        raise OptionError("two of the runs have the same name", hint="The result tells them apart by it.")
    for path, _ in chosen.values():
        if not Run(path).finished:
            raise OptionError(f"{path} is no finished run", hint="Name runs that 'fieldmark train' has ended.")
    found = {run: measure_run(path, root, setup) for run, (path, root) in chosen.items()}
    summary = summed_up(found)
    table = Table("run, head", "detector", "AUROC of attacks left out, mean", box=SIMPLE_HEAD)
    for run in found:
        for head, methods in summary.items():
            for method, areas in methods.items():
                if run in areas:
                    table.add_row(f"{run}, {head}", method, "–" if areas[run] is None else f"{areas[run]:.3f}")
    console.print(table)
    say(console, f"-> {save(name, {'summary': summary, 'runs': found})}")
