"""A bundle whose p-values count from somebody's own clean images: another bundle, of the same weights.

Scores are the graph's own, so that whatever precision and runtime it has, a score is compared with its like. What
changes is the calibration in graphs and detector files, and what the manifest says of it. Every other output of the new
graphs is proved to be the old one's, bit by bit, before the bundle is there.
"""

import datetime
import functools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bundle import tensors
from bundle.canonical import canonical_json
from bundle.errors import BundleCorrupt, DetectorError, ExportError, OptionError
from bundle.false_alarms import false_alarms, smallest_p_value
from bundle.files import check_free, scratch, write_text
from bundle.folder import Bundle, write_bundle
from bundle.manifest import FETCH_AGAIN, MANIFEST, NetworkInfo
from bundle.version import version
from calibration.graph import recalibrated
from calibration.sample import Images, Sample, Seen, look
from detector.conformal import check_calibration_size
from detector.model import Detector
from serving.client.local import LocalInference

CALIBRATION = "calibration"  # the key of `training`, free as that is, that says what a calibration was made with
REPORT = "report/calibration.json"
CPU = "CPUExecutionProvider"
PROVED = 32  # images on which old and new graph are compared
CHANGED = (tensors.P_VALUE, tensors.IS_ADVERSARIAL)


@dataclass(frozen=True, kw_only=True)
class NetworkCalibration:
    """Of one network: the `alpha` that its flag has, `n` scores behind every p-value, the smallest one, mean and
    standard deviation of the false-alarm rate, and how many of the images its former calibration `flagged_before`.
    """

    alpha: float
    n: int
    smallest_p_value: float
    false_alarms: float
    false_alarms_deviation: float
    flagged_before: int


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a calibration was made with: as a user calls it (`source`), `images`, the digest of their files, when (UTC),
    from which bundle, by which version and runtime.
    """

    source: str
    images: int
    left_out: int
    sha256: str
    date: str
    bundle_id: str
    version: str
    runtime: str
    networks: dict[str, NetworkCalibration]


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """The new bundle and what it was made with."""

    bundle: Bundle
    provenance: Provenance
    left_out: tuple[str, ...]


def recalibrate(
    bundle: Bundle,
    images: Iterable[Path],
    out: Path,
    *,
    source: str,
    alpha: float | None = None,
    skip_bad: bool = False,
    replace: bool = False,
) -> Recalibration:
    """Write to `out` the bundle with the scores of these clean images; `source` is what people call them, and `alpha`
    the false-positive rate of the flag, else each network's own.

    Raises DetectorError for too few images, DatasetError for damaged ones and copies, BundleUnsupported for a graph
    that this machine cannot run.
    """
    paths = tuple(images)
    _check_place(bundle, out, replace)
    _check_size(bundle, len(paths), alpha)
    inference = LocalInference(bundle)
    sample = look(inference, paths, skip_bad=skip_bad)
    _check_size(bundle, len(sample.paths), alpha, sample.left_out)
    detectors = {name: _calibrated(bundle, name, seen, alpha) for name, seen in sample.networks.items()}
    provenance = _provenance(bundle, source, sample, detectors, inference)
    with scratch("calibrate") as folder:
        staged = folder / "staged"
        for name in bundle.manifest.files:
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(name), staged / name)
        for name, detector in detectors.items():
            model = recalibrated(bundle.model(name).read_bytes(), detector.calibration_rows, detector.alpha)
            (staged / bundle.manifest.networks[name].model).write_bytes(model)
            detector.save(staged / bundle.manifest.networks[name].detector.file)
        write_text(staged / REPORT, canonical_json(asdict(provenance)))
        fields = _fields(bundle, detectors, provenance)
        _prove(inference, write_bundle(folder / "trial", staged, fields), detectors, sample.paths[:PROVED])
        return Recalibration(
            bundle=write_bundle(out, staged, fields, replace=replace), provenance=provenance, left_out=sample.left_out
        )


def _check_place(bundle: Bundle, out: Path, replace: bool) -> None:
    check_free(out, replace=replace, marker=MANIFEST)
    here, there = bundle.path.resolve(), out.resolve()
    if here == there or here in there.parents:
        raise OptionError(
            f"{out} lies in the bundle {bundle.path}, and a bundle is immutable", hint="Choose another --out."
        )


def _check_size(bundle: Bundle, n: int, alpha: float | None, left_out: Sequence[str] = ()) -> None:
    """Raise DetectorError where so many images are too few for a network, and say which others there were."""
    try:
        for info in bundle.manifest.networks.values():
            check_calibration_size(n, info.detector.alpha if alpha is None else alpha)
    except DetectorError as problem:
        others = f"; {len(left_out):,} others are left out, the first: {left_out[0]}" if left_out else ""
        raise DetectorError(f"{problem.what}{others}", hint=problem.hint) from None


def _calibrated(bundle: Bundle, network: str, seen: Seen, alpha: float | None) -> Detector:
    info = bundle.manifest.networks[network].detector
    detector = Detector.load(bundle.file(info.file))
    labels = bundle.manifest.labels
    if detector.columns != info.columns or len(detector.gaussians[0].means) != len(labels):
        raise BundleCorrupt(f"{bundle.path / info.file} is not the detector of {network!r}", hint=FETCH_AGAIN)
    rate = info.alpha if alpha is None else alpha
    return detector.calibrated(seen.scores, seen.predicted, rate, labels, layers=seen.layers)


def _provenance(
    bundle: Bundle, source: str, sample: Sample, detectors: Mapping[str, Detector], inference: LocalInference
) -> Provenance:
    import onnxruntime

    found = {}
    for name, detector in detectors.items():
        rate = false_alarms(detector.calibration_n, detector.alpha)
        found[name] = NetworkCalibration(
            alpha=detector.alpha,
            n=detector.calibration_n,
            smallest_p_value=round(smallest_p_value(detector.calibration_n), 8),
            false_alarms=round(rate.mean, 6),
            false_alarms_deviation=round(rate.deviation, 6),
            flagged_before=sample.networks[name].flagged,
        )
    return Provenance(
        source=source,
        images=len(sample.paths),
        left_out=len(sample.left_out),
        sha256=sample.sha256,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        bundle_id=bundle.bundle_id,
        version=version(),
        runtime=f"onnxruntime {onnxruntime.__version__} {inference.providers[0]}",
        networks=found,
    )


def _fields(bundle: Bundle, detectors: Mapping[str, Detector], provenance: Provenance) -> dict[str, Any]:
    """The manifest's fields but `files`. What the export measured stays, except of p-values, which are others now."""
    manifest = bundle.manifest

    def changed(info: NetworkInfo, detector: Detector) -> NetworkInfo:
        told = replace(info.detector, alpha=detector.alpha, calibration_n=detector.calibration_n)
        outputs = {name: found for name, found in info.parity.outputs.items() if name not in CHANGED}
        return replace(info, detector=told, parity=replace(info.parity, outputs=outputs))

    return {
        "schema": manifest.schema,
        "name": manifest.name,
        "labels": manifest.labels,
        "image": manifest.image,
        "networks": {name: changed(info, detectors[name]) for name, info in manifest.networks.items()},
        "prototypes": manifest.prototypes,
        "training": {**manifest.training, CALIBRATION: asdict(provenance)},
    }


def _prove(before: LocalInference, made: Bundle, detectors: Mapping[str, Detector], paths: Sequence[Path]) -> None:
    """Raise ExportError unless the new graphs give the old outputs, and numpy's p-values of their own scores."""
    images: Images = np.stack([made.manifest.image.read(path) for path in paths])
    after = LocalInference(made)
    # Two sessions on a GPU may choose other kernels, and round otherwise.
    same = np.array_equal if before.providers == (CPU,) else functools.partial(np.allclose, rtol=1e-2, atol=1e-2)
    for name, detector in detectors.items():
        old, new = before.infer(images, name), after.infer(images, name)
        p_values = detector.p_values(new[tensors.INSTANCE_SCORE], new[tensors.PROBABILITIES].argmax(1))
        flags = p_values <= np.float32(detector.alpha)
        wrong = [each for each in new if each not in CHANGED and not same(old[each], new[each])]
        wrong += [tensors.P_VALUE] if not np.array_equal(new[tensors.P_VALUE], p_values) else []
        wrong += [tensors.IS_ADVERSARIAL] if not np.array_equal(new[tensors.IS_ADVERSARIAL], flags) else []
        if wrong:
            raise ExportError(
                f"{name}.{wrong[0]} of the calibrated graph is not what it must be",
                hint="No bundle was written; please report it.",
            )
