"""The export verb: a finished run becomes a bundle, both networks proved equal to PyTorch."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from PIL import Image
from rich.console import Console

from bundle import tensors
from bundle.errors import CheckpointError, OptionError
from bundle.files import check_free, sha256_of
from bundle.folder import Bundle, write_bundle
from bundle.image import ImageSpec
from bundle.manifest import MANIFEST, MARGINAL, PER_CLASS, SCHEMA, DetectorInfo, NetworkInfo, PrototypeInfo
from bundle.records import to_plain
from bundle.tensors import DTYPES, TensorSpec
from detector.conformal import check_calibration_size
from detector.model import Detector
from export.graph import GraphSession, set_calibration, to_onnx
from export.parity import prove
from export.served import ServedNetwork
from robustness.fitting import BATCH, Images, Labels, fit_detector
from training.adversaries import CLEAN, NOISE, check_attacks, run_dataset, spread
from training.data import Sample, check_outside
from training.data.loading import ImageParts, image_loader, images_array, load_part
from training.networks import Network
from training.run import PrototypeSource, Run, RunRecord, image_spec

PARITY_IMAGES = 7
VALIDATION_IMAGES = 300
WORKERS = 2  # processes that decode training images, where these do not fit into memory
CELLS = 1  # a prototype's box reaches this many feature-map cells beyond its own


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """`attacks` teach the detector's combination; without any, clean images do. `alpha` is the
    default false-positive rate of `is_adversarial`: on the whole (`marginal`), or in every predicted class.
    """

    attacks: tuple[str, ...] = ("fgsm-8", "pgd10-2", "pgd10-8")
    alpha: float = 0.05
    calibration: str = MARGINAL
    seed: int = 0


def export_run(
    run_path: Path, out: Path, settings: ExportSettings, console: Console, *, data: Path | None, replace: bool
) -> Bundle:
    """Fit the detectors, export both graphs, calibrate them on their own outputs, prove parity, write the bundle."""
    run = Run(run_path)
    check_free(out, replace=replace, marker=MANIFEST)  # before work that takes minutes
    record, network = run.load_network()
    check_attacks(settings.attacks, {}, network)
    if idle := {CLEAN, NOISE} & set(settings.attacks):
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
    dataset = run_dataset(record, root)
    check_outside(dataset, out)
    check_calibration_size(len(dataset.parts["calibration"]), settings.alpha)
    spec = image_spec(record.config)
    # The combination has few parameters: a few hundred attacked images teach it as much as thousands.
    used = {**dataset.parts, "validation": spread(dataset.parts["validation"], VALIDATION_IMAGES)}
    parts = {name: images_array(used[name], spec) for name in ("validation", "calibration")}
    train = load_part(used["train"], spec)  # both networks learn from one decoding, if that fits into memory
    by_key = {sample.key: sample for sample in dataset.parts["train"]}
    with tempfile.TemporaryDirectory(prefix="fieldmark-export-") as folder:
        staged = Path(folder)
        networks = {
            served: _export_network(network, served, spec, train, parts, settings, staged, record.labels, console)
            for served in network.config.heads
        }
        sources = run.read_prototypes() if network.prototype_head is not None else []
        prototypes = _prototype_files(sources, by_key, spec, network, staged)
        return write_bundle(
            out,
            staged,
            {
                "schema": SCHEMA,
                "name": record.dataset.name,
                "labels": record.labels,
                "image": spec,
                "networks": networks,
                "prototypes": prototypes,
                "training": _provenance(record, run_path, settings),
            },
            replace=replace,
        )


def _export_network(
    network: Network,
    served: str,
    spec: ImageSpec,
    train: ImageParts,
    parts: dict[str, tuple[Images, Labels]],
    settings: ExportSettings,
    staged: Path,
    labels: tuple[str, ...],
    console: Console,
) -> NetworkInfo:
    talk = Console(stderr=True)  # standard output is for results
    with talk.status(f"{served}: fitting the detector"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        detector = fit_detector(
            network.to(device),
            served,
            train=image_loader(train, spec, batch_size=BATCH, shuffle_seed=None, workers=WORKERS),
            validation=parts["validation"],
            attacks=settings.attacks,
            calibration_n=len(parts["calibration"][0]),
            alpha=settings.alpha,
            seed=settings.seed,
            per_class=settings.calibration == PER_CLASS,
        )
    with talk.status(f"{served}: writing, calibrating and proving the ONNX graph"):
        info = stage_network(
            network.cpu(), served, detector, spec, parts["calibration"][0], parts["validation"][0], staged, labels
        )
    worst = max(value for name, value in info.parity.items() if DTYPES[name] == "FP32")
    console.print(
        f"{served}: equal to PyTorch at batch 1, 2, 7 (largest difference {worst:.1e}); "
        f"detector on {' '.join(detector.layers)}",
        highlight=False,
        soft_wrap=True,
    )
    return info


def stage_network(
    network: Network,
    served: str,
    detector: Detector,
    spec: ImageSpec,
    calibration: Images,
    examples: Images,
    staged: Path,
    labels: tuple[str, ...],
) -> NetworkInfo:
    """Write graph and detector into `staged`: calibrated on the graph's own scores of `calibration` : (n, H, W, 3), and
    proved equal to PyTorch on `examples` : (m, H, W, 3). `detector` brings n calibration scores of any value.
    """
    module = ServedNetwork(network, served, detector)
    model = to_onnx(module, served, spec)
    scores, predicted = GraphSession(model).scores(calibration)
    detector = detector.calibrated(scores, predicted, detector.alpha, labels)
    set_calibration(model, module, detector)
    session = GraphSession(model)
    parity = prove(module, session, served, examples[:PARITY_IMAGES])
    answer = session.run(examples[:1])
    model_file, detector_file = f"{served}/model.onnx", f"detector/{served}.npz"
    (staged / served).mkdir()
    onnx.save_model(model, staged / model_file)
    detector.save(staged / detector_file)
    return NetworkInfo(
        model=model_file,
        inputs=(TensorSpec(name=tensors.IMAGE, dtype="UINT8", shape=(spec.height, spec.width, 3)),),
        outputs=tuple(
            TensorSpec(name=name, dtype=DTYPES[name], shape=tuple(answer[name].shape[1:]))
            for name in tensors.OUTPUTS[served]
        ),
        detector=DetectorInfo(
            file=detector_file,
            layers=detector.columns,
            alpha=detector.alpha,
            calibration=MARGINAL if detector.calibration_classes is None else PER_CLASS,
            calibration_n=detector.calibration_n,
        ),
        parity=parity,
    )


def _prototype_files(
    sources: list[PrototypeSource], by_key: dict[str, Sample], spec: ImageSpec, network: Network, staged: Path
) -> tuple[PrototypeInfo, ...]:
    """Save each source image once, at the network's input size, and the box of the patch in it."""
    stride = network.backbone.stride
    limit = (spec.width, spec.height)
    folder = staged / "prototypes"
    folder.mkdir()
    files: dict[str, str] = {}
    infos = []
    for source in sources:
        if source.source not in by_key:
            raise CheckpointError(f"prototype image {source.source!r} is not in the training part of this dataset")
        if source.source not in files:
            files[source.source] = f"prototypes/{len(files):05d}.jpg"
            sample = by_key[source.source]
            Image.fromarray(spec.read(sample.path, sample.box)).save(
                staged / files[source.source], quality=92, subsampling=0
            )
        low = [max(0, (cell - CELLS) * stride) for cell in (source.column, source.row)]
        high = [
            min(edge, (cell + 1 + CELLS) * stride)
            for cell, edge in zip((source.column, source.row), limit, strict=True)
        ]
        infos.append(
            PrototypeInfo(
                label=source.label,
                source=source.source,
                image=files[source.source],
                row=source.row,
                column=source.column,
                box=(*low, *high),
            )
        )
    return tuple(infos)


def _provenance(record: RunRecord, run_path: Path, settings: ExportSettings) -> dict[str, Any]:
    results = {key: value for key, value in record.results.items() if key != "history"}
    config = json.loads(json.dumps(to_plain(record.config)))
    return {
        "preset": record.config.preset,
        "config": config,
        "dataset": {key: value for key, value in to_plain(record.dataset).items() if key != "root"},
        "results": results,
        "versions": record.versions,
        "weights_sha256": sha256_of(run_path / "model.pt"),
        "detector": to_plain(settings),
    }
