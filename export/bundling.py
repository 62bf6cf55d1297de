"""The export verb: a finished run becomes a bundle, both networks proved equal to PyTorch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from bundle import tensors
from bundle.console import say
from bundle.errors import OptionError
from bundle.false_alarms import resolution
from bundle.files import check_free, scratch, sha256_of
from bundle.folder import Bundle, write_bundle
from bundle.image import ImageSpec
from bundle.manifest import (
    DEFAULT_NETWORK,
    FP32,
    MANIFEST,
    MANIFEST_SCHEMA,
    Difference,
    NetworkInfo,
    PrototypeInfo,
)
from bundle.progress import Work
from bundle.records import to_plain
from bundle.tensors import DTYPES
from detector.conformal import check_calibration_size
from detector.model import Detector
from export.graph import check_device, labels_digest
from export.parity import BATCHES
from export.plan import ExportSettings, Plan, make_plan, trial_attacks
from export.quality import Trial
from export.staging import GraphSettings, Narrowing, Staging, stage_network
from robustness.fitting import Images, Labels, Lessons, Parts, Taught, attacked, fit_detector
from robustness.report import headlines, make_report, require
from training.attacks.attacker import Attackers
from training.attacks.names import CLEAN, NOISE, check_attacks
from training.data import Sample, check_outside
from training.data.choice import evenly
from training.data.loading import images_array
from training.networks import Network
from training.run import PrototypeSource, Run, RunRecord, image_spec, published_config

RANGE_IMAGES = 256  # training images that int8 takes its ranges from
REPORT = "report"  # the bundle's folder for it


def export_run(
    run_path: Path,
    out: Path,
    settings: ExportSettings,
    console: Console,
    *,
    data: Path | None = None,
    replace: bool = False,
) -> Bundle:
    """Fit the detectors, export both graphs, calibrate them on their own outputs, prove parity, measure the report of
    the suite if there is one, write the bundle. What takes longer than the limits is done on less, and that is said.
    """
    graphs, suite = settings.graphs, settings.suite
    run = Run(run_path)
    check_free(out, replace=replace, marker=MANIFEST)  # before work that takes minutes
    check_device(graphs.device)
    record, network = run.load_network()
    check_attacks(settings.detector.attacks, {}, network)
    if idle := {CLEAN, NOISE} & set(settings.detector.attacks):
        raise OptionError(
            f"{idle.pop()!r} is no attack that a detector could learn from",
            hint="Leave it out, or learn from clean images alone: --attacks none.",
        )
    if unserved := set(network.config.heads) - set(tensors.NETWORKS):
        raise OptionError(
            f"{run_path} is a substitute to attack from, with the head {unserved.pop()!r}; it is not served",
            hint="Export a run of another system.",
        )
    root = data if data is not None else Path(record.dataset.root)
    dataset = record.dataset.unchanged_at(root)
    check_outside(dataset, out)
    check_calibration_size(len(dataset.parts["calibration"]), settings.detector.alpha)
    if not dataset.parts["test"] and suite is not None:
        raise OptionError(
            f"{dataset.name} has no test images, and the report is about them", hint="Export without: --report none."
        )
    spec = image_spec(record.config)
    parts = Parts.of(dataset, spec)
    # Whether an export is accepted is no business of the test part, which is looked at for the report alone.
    judged = images_array(dataset.parts["validation"], spec) if graphs.precision != FP32 else None
    by_key = {sample.key: sample for sample in dataset.parts["train"]}
    sources = run.prototypes_of(network, by_key) if network.prototype_head is not None else []
    if suite is not None:
        require(suite)
    plan = make_plan(network, parts, dataset, settings, console)
    metadata = {"labels_sha256": labels_digest(record.labels), "weights_sha256": sha256_of(run_path / "model.pt")}
    with scratch("export") as staged:
        staging = Staging(
            folder=staged,
            spec=spec,
            labels=record.labels,
            calibration=parts.calibration[0],
            examples=parts.validation[0],
            metadata=metadata,
            graphs=graphs,
        )
        found = {
            head: _export_network(network, head, parts, plan, staging, judged, console) for head in network.config.heads
        }
        if plan.suite is not None:
            report = make_report(
                run,
                Attackers(network=network, seed=plan.detector.seed),
                {
                    head: Taught(Detector.load(staged / info.detector.file), lessons)
                    for head, (info, lessons) in found.items()
                },
                dataset,
                plan.suite,
            )
            (staged / REPORT).mkdir()
            report.write(staged / REPORT)
            for line in headlines(report.document):
                say(console, f"report, {line}")
        prototypes = _prototype_files(sources, by_key, spec, network, staged)
        return write_bundle(
            out,
            staged,
            {
                "schema": MANIFEST_SCHEMA,
                "name": record.dataset.name,
                "labels": record.labels,
                "image": spec,
                "networks": {head: info for head, (info, _) in found.items()},
                "prototypes": prototypes,
                "training": _provenance(record, metadata["weights_sha256"], plan, graphs),
            },
            replace=replace,
        )


def _export_network(
    network: Network,
    head: str,
    parts: Parts,
    plan: Plan,
    staging: Staging,
    judged: tuple[Images, Labels] | None,
    console: Console,
) -> tuple[NetworkInfo, Lessons]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    detector, lessons = fit_detector(network.to(device), head, parts, plan.detector)
    narrowing = None
    if judged is not None:
        narrowing = Narrowing(ranges=_training_images(parts, RANGE_IMAGES), trial=_trial(network, head, judged, plan))
    with Work(f"{head}: writing, calibrating and proving the ONNX graph"):
        info = stage_network(network.cpu(), head, detector, staging, narrowing)
    found = (
        f"equal to PyTorch at batch {', '.join(map(str, BATCHES))} ({_largest(info.parity.outputs)})"
        if narrowing is None
        else f"{staging.graphs.precision}, {_costs(info)}"
    )
    told = info.detector
    say(console, f"{head}: {found}; detector on {' '.join(detector.layers)}")
    say(console, f"{head}: {resolution(told.calibration_n, told.alpha)}")
    return info, lessons


def _largest(differences: Mapping[str, Difference]) -> str:
    """The largest difference, of which output it is, and that of probabilities beside it."""
    worst = max((name for name in differences if DTYPES[name] == "FP32"), key=lambda name: differences[name].max_abs)
    what = f"the squared distances of {worst}" if worst == tensors.LAYER_SCORES else worst
    told = f"largest difference {differences[worst].max_abs:.1e}, in {what}"
    if worst != tensors.PROBABILITIES:
        told += f"; {differences[tensors.PROBABILITIES].max_abs:.1e} in {tensors.PROBABILITIES}"
    return told


def _trial(network: Network, head: str, judged: tuple[Images, Labels], plan: Plan) -> Trial:
    """The validation part clean, and some of it under what the detector learns from (or would, by default)."""
    attacker = Attackers(network=network, seed=plan.detector.seed).on(head)
    names, picked = trial_attacks(plan.detector), evenly(len(judged[1]), plan.trial_images)
    part = judged[0][picked], judged[1][picked]
    with Work(f"{head}: attacks on the narrower graph", len(names) * len(part[1])) as work:
        made = {name: attacked(name, attacker, part, work=work) for name in names}
    return Trial(clean=judged[0], labels=judged[1], picked=picked, attacked=made)


def _training_images(parts: Parts, count: int) -> Images:
    """Some, mixed: (n, H, W, 3)."""
    found: list[Images] = []
    for images, *_ in parts.training_batches():
        found.append(images.numpy())
        if sum(map(len, found)) >= count:
            break
    return np.concatenate(found)[:count]


def _costs(info: NetworkInfo) -> str:
    wide, narrow = info.quality[FP32], info.quality[info.precision]
    return (
        f"accuracy {narrow.accuracy:.1%} ({FP32} {wide.accuracy:.1%}) and {narrow.flagged:.1%} flagged "
        f"({wide.flagged:.1%}) of {narrow.images} clean validation images, same class as PyTorch "
        f"{info.parity.argmax_agreement:.1%}, same flag {info.parity.flag_agreement:.1%}"
    )


def _prototype_files(
    sources: list[PrototypeSource], by_key: dict[str, Sample], spec: ImageSpec, network: Network, staged: Path
) -> tuple[PrototypeInfo, ...]:
    """Save each source image once, at the network's input size, and the box of the patch in it."""
    stride = network.backbone.stride
    folder = staged / "prototypes"
    folder.mkdir()
    files: dict[str, str] = {}
    infos = []
    for source in sources:
        if source.source not in files:
            files[source.source] = f"prototypes/{len(files):05d}.jpg"
            sample = by_key[source.source]
            Image.fromarray(spec.read(sample.path, sample.box)).save(
                staged / files[source.source], quality=92, subsampling=0
            )
        infos.append(
            PrototypeInfo(
                label=source.label,
                source=source.source,
                image=files[source.source],
                row=source.row,
                column=source.column,
                box=source.box(stride, spec),
            )
        )
    return tuple(infos)


def _provenance(record: RunRecord, weights_sha256: str, plan: Plan, graphs: GraphSettings) -> dict[str, Any]:
    results = {key: value for key, value in record.results.items() if key != "history"}
    better = better_head(results["validation"], record.dataset.counts["validation"])
    return {
        **({} if better is None else {DEFAULT_NETWORK: better}),
        "preset": record.config.preset,
        "config": published_config(record.config),
        "dataset": record.dataset.published(),
        "results": results,
        "versions": record.versions,
        "weights_sha256": weights_sha256,
        "detector": to_plain(plan.detector),
        "graphs": to_plain(graphs),
        "left_out": list(plan.left_out),
    }


def better_head(validation: Mapping[str, float], images: int) -> str | None:
    """The head that is right on more of so many validation images than `full`; None where `full` is as good, or one
    image worse, which is nothing.
    """
    right = {head: round(share * images) for head, share in validation.items()}
    best = max(right, key=lambda head: right[head])
    return best if tensors.FULL in right and right[best] > right[tensors.FULL] + 1 else None
