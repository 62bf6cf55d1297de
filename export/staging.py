"""One network of a bundle: its graph exported, calibrated, proved or narrowed, and written with its detector."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from bundle import tensors
from bundle.image import ImageSpec
from bundle.manifest import BF16, FP32, MARGINAL, PER_CLASS, DetectorInfo, NetworkInfo
from bundle.tensors import DTYPES, TensorSpec
from detector.model import Detector
from export.graph import CPU, GraphSession, finish, set_calibration, to_onnx
from export.parity import prove_parity
from export.precision import emulated, narrowed
from export.quality import Trial, check_quality
from export.served import ServedNetwork
from training.networks import Network

PARITY_IMAGES = 64
Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """In which `precision` a backbone is served, how many percentage points of accuracy that may cost, and the `device`
    (one of export.graph.PROVIDERS) on which graphs are calibrated and compared: the one that will serve them.
    """

    precision: str = FP32
    max_accuracy_loss: float = 0.5
    device: str = CPU


@dataclass(frozen=True, kw_only=True)
class Staging:
    """What the networks of one bundle have in common: the `folder` that becomes it, the spec of its images and its
    labels; images `calibration` : (n, H, W, 3), whose scores by a graph are that graph's calibration, and `examples` :
    (m, H, W, 3) to prove it on; what else is written into a graph as its `metadata`.
    """

    folder: Path
    spec: ImageSpec
    labels: tuple[str, ...]
    calibration: Images
    examples: Images
    metadata: Mapping[str, str] = field(default_factory=dict)
    graphs: GraphSettings = field(default_factory=GraphSettings)


@dataclass(frozen=True, kw_only=True)
class Narrowing:
    """What a narrower precision is made of and judged by: images for the ranges of int8 (n, H, W, 3), and a trial."""

    ranges: Images
    trial: Trial


def stage_network(
    network: Network, head: str, detector: Detector, staging: Staging, narrowing: Narrowing | None = None
) -> NetworkInfo:
    """Write a head's graph and detector into the folder: calibrated on the graph's own scores, and proved equal to
    PyTorch. `detector` brings n calibration scores of any value.

    With `narrowing`, the graph that was proved is narrowed to another precision, calibrated anew, and refused if it
    costs too much.
    """
    graphs, spec = staging.graphs, staging.spec
    module = ServedNetwork(network, head, detector)
    model = to_onnx(module, spec)
    detector, session = _calibrated(model, model, detector, staging)
    module.calibrate(detector)
    examples = staging.examples[:PARITY_IMAGES]
    parity = prove_parity(module, session, examples, exact=True)
    quality = {}
    if narrowing is not None:
        precision = graphs.precision
        quality[FP32] = narrowing.trial.quality(session)
        runs = emulated(model) if precision == BF16 and graphs.device == CPU else None
        model = narrowed(model, precision, narrowing.ranges)
        detector, session = _calibrated(model, runs or model, detector, staging)
        parity = prove_parity(module, session, examples, exact=False)
        quality[precision] = narrowing.trial.quality(session)
        check_quality(head, precision, quality, detector, graphs.max_accuracy_loss)
    answer = session.run(examples[:1])
    model_file, detector_file = f"{head}/model.onnx", f"detector/{head}.npz"
    (staging.folder / head).mkdir()
    told = {"network": head, "precision": graphs.precision, **staging.metadata}
    onnx.save_model(finish(model, told), staging.folder / model_file)
    detector.save(staging.folder / detector_file)
    return NetworkInfo(
        model=model_file,
        precision=graphs.precision,
        inputs=(TensorSpec(name=tensors.IMAGE, dtype="UINT8", shape=(spec.height, spec.width, 3)),),
        outputs=tuple(
            TensorSpec(name=name, dtype=DTYPES[name], shape=tuple(answer[name].shape[1:]))
            for name in tensors.OUTPUTS[head]
        ),
        detector=DetectorInfo(
            file=detector_file,
            columns=detector.columns,
            alpha=detector.alpha,
            calibration=MARGINAL if detector.calibration_classes is None else PER_CLASS,
            calibration_n=detector.calibration_n,
        ),
        parity=parity,
        quality=quality,
    )


def _calibrated(
    model: onnx.ModelProto, runs: onnx.ModelProto, detector: Detector, staging: Staging
) -> tuple[Detector, GraphSession]:
    """`detector` and `model` calibrated on the scores that `runs` gives (`model` itself, or what stands for it where no
    kernel can run it), and a session that answers so.
    """
    device = staging.graphs.device
    said = GraphSession(runs, device).answers(staging.calibration)
    scores, predicted = said[tensors.INSTANCE_SCORE], said[tensors.PROBABILITIES].argmax(1)
    layers = said[tensors.LAYER_SCORES]
    detector = detector.calibrated(scores, predicted, detector.alpha, staging.labels, layers=layers)
    for graph in {id(graph): graph for graph in (model, runs)}.values():
        set_calibration(graph, detector)
    return detector, GraphSession(runs, device)
