"""The export verb: a finished run becomes a bundle, both networks proved equal to PyTorch."""

import json
import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch
from PIL import Image
from rich.console import Console

from bundle import tensors
from bundle.errors import OptionError
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
from robustness.fitting import DetectorSettings, Images, Lessons, Parts, fit_detector
from robustness.report import headlines, make_report, require
from robustness.suites import Suite
from training.adversaries import CLEAN, NOISE, check_attacks, run_dataset
from training.data import Sample, check_outside
from training.networks import Network
from training.run import PrototypeSource, Run, RunRecord, image_spec

PARITY_IMAGES = 7
REPORT = "report"  # the bundle's folder for it


def export_run(
    run_path: Path,
    out: Path,
    settings: DetectorSettings,
    console: Console,
    *,
    data: Path | None,
    replace: bool,
    suite: Suite | None = None,
) -> Bundle:
    """Fit the detectors, export both graphs, calibrate them on their own outputs, prove parity, measure the report of
    `suite` if there is one, write the bundle.
    """
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
    parts = Parts.of(dataset, spec)
    by_key = {sample.key: sample for sample in dataset.parts["train"]}
    sources = run.prototypes_of(network, by_key) if network.prototype_head is not None else []
    if suite is not None:
        require(suite)
    with tempfile.TemporaryDirectory(prefix="fieldmark-export-") as folder:
        staged = Path(folder)
        found = {
            served: _export_network(network, served, parts, settings, staged, record.labels, console)
            for served in network.config.heads
        }
        if suite is not None:
            report = make_report(
                run,
                record,
                network,
                {served: Detector.load(staged / info.detector.file) for served, (info, _) in found.items()},
                dataset,
                suite,
                lessons={served: lessons for served, (_, lessons) in found.items()},
                sources={},
                seed=settings.seed,
            )
            (staged / REPORT).mkdir()
            report.write(staged / REPORT)
            for line in headlines(report.document):
                console.print(f"report, {line}", highlight=False, soft_wrap=True)
        prototypes = _prototype_files(sources, by_key, spec, network, staged)
        return write_bundle(
            out,
            staged,
            {
                "schema": SCHEMA,
                "name": record.dataset.name,
                "labels": record.labels,
                "image": spec,
                "networks": {served: info for served, (info, _) in found.items()},
                "prototypes": prototypes,
                "training": _provenance(record, run_path, settings),
            },
            replace=replace,
        )


def _export_network(
    network: Network,
    served: str,
    parts: Parts,
    settings: DetectorSettings,
    staged: Path,
    labels: tuple[str, ...],
    console: Console,
) -> tuple[NetworkInfo, Lessons]:
    talk = Console(stderr=True)  # standard output is for results
    with talk.status(f"{served}: fitting the detector"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        detector, lessons = fit_detector(network.to(device), served, parts, settings)
    with talk.status(f"{served}: writing, calibrating and proving the ONNX graph"):
        info = stage_network(
            network.cpu(), served, detector, parts.spec, parts.calibration[0], parts.validation[0], staged, labels
        )
    worst = max(value for name, value in info.parity.items() if DTYPES[name] == "FP32")
    console.print(
        f"{served}: equal to PyTorch at batch 1, 2, 7 (largest difference {worst:.1e}); "
        f"detector on {' '.join(detector.layers)}",
        highlight=False,
        soft_wrap=True,
    )
    return info, lessons


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


def _provenance(record: RunRecord, run_path: Path, settings: DetectorSettings) -> dict[str, Any]:
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
