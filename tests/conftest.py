"""What every room's tests share: a small but complete bundle whose graphs are true functions of the image.

The toy knows five birds, each a square of its own colour in a place of its own on a grey ground. Its features are the
mean colour and a 4x4 grid of mean colours; its detector, calibration and prototypes are computed from drawn images, so
clean birds are recognised and pass, and noise is flagged. Built with onnx.helper alone: no PyTorch, a second to make.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle import Bundle, ImageSpec, tensors, write_bundle
from bundle.manifest import FP32, MANIFEST_SCHEMA, DetectorInfo, NetworkInfo, Parity, PrototypeInfo
from bundle.tensors import TensorSpec

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many workers as cores, and sums do not hang on how many are free
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests report to nobody
os.environ.pop("FIELDMARK_PUBLIC_KEY", None)  # whose bundles the machine's owner trusts is not the tests' matter
for name in [name for name in os.environ if name.startswith("OTEL_")]:
    del os.environ[name]  # nor is where his traces go

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts them in the background has shut it off

SIZE, GRID, SHOWN, PER_CLASS, CALIBRATION = 32, 4, 3, 2, 99
LABELS = ("Amber-crowned Warbler", "Blue-winged Finch", "Crimson Bunting", "Dusky Lark", "Emerald-throated Wren")
COLOURS = ((250, 180, 20), (30, 80, 230), (220, 20, 50), (60, 55, 70), (20, 190, 90))
CELLS = ((1, 1), (1, 2), (2, 1), (2, 2), (0, 3))  # row, column on the 4x4 grid
LAYERS = ("colour", "grid")
# instance_score = bias + weights . layer_scores: the detectors of the two networks differ, as real ones do
WEIGHTS = {tensors.FULL: ((0.5, 1.0), -2.0), tensors.ATTENTION_ONLY: ((2.0, 0.25), -1.0)}

MakeToyBundle = Callable[..., Bundle]


def draw_toy(label: int, seed: int) -> np.ndarray:
    """One clean image of a label : (32, 32, 3) uint8."""
    random = np.random.default_rng((label, seed))
    image = np.full((SIZE, SIZE, 3), 140.0) + random.normal(0, 4, (SIZE, SIZE, 3)) + random.normal(0, 3, 3)
    row, column = CELLS[label]
    step = SIZE // GRID
    image[row * step : (row + 1) * step, column * step : (column + 1) * step] = COLOURS[label] + random.normal(0, 6, 3)
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def toy_images() -> np.ndarray:
    """Twenty clean images, label = row % 5 : (20, 32, 32, 3) uint8."""
    return np.stack([draw_toy(index % len(LABELS), 1000 + index) for index in range(20)])


@pytest.fixture(scope="session")
def make_toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeToyBundle:
    """`make_toy_bundle(path, name="toy", alpha=0.05, networks=("full", "attention"))` writes a bundle of its own id.

    `layers` are those of its detectors, "grid" among them.
    """

    def make(
        path: Path,
        *,
        name: str = "toy",
        alpha: float = 0.05,
        networks: tuple[str, ...] = tensors.NETWORKS,
        layers: tuple[str, ...] = LAYERS,
    ) -> Bundle:
        staged = tmp_path_factory.mktemp("staged")
        fields = {
            "schema": MANIFEST_SCHEMA,
            "name": name,
            "labels": LABELS,
            "image": ImageSpec(height=SIZE, width=SIZE),
            "networks": {network: _stage_network(staged, network, alpha, layers) for network in networks},
            "prototypes": _stage_prototypes(staged),
            "training": {"preset": "toy", "seed": 0},
        }
        return write_bundle(path, staged, fields)

    return make


@pytest.fixture(scope="session")
def toy_bundle(make_toy_bundle: MakeToyBundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle most tests use. Read-only: copy it before you damage it."""
    return make_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


def _features(images: np.ndarray) -> dict[str, np.ndarray]:
    """The graph's two layers, computed naively: colour : (N, 3), grid : (N, 48)."""
    step = SIZE // GRID
    scaled = images.astype(np.float64) / 255
    grid = scaled.reshape(len(images), GRID, step, GRID, step, 3).mean(axis=(2, 4))  # (N, 4, 4, 3)
    return {"colour": scaled.mean(axis=(1, 2)), "grid": grid.transpose(0, 3, 1, 2).reshape(len(images), -1)}


def _batch(seed: int, per_class: int) -> np.ndarray:
    return np.stack([draw_toy(label, seed + index) for label in range(len(LABELS)) for index in range(per_class)])


def _gaussians() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each layer the scale that whitens it (one standard deviation) and the class means: () and (K, D)."""
    gaussians = {}
    for layer, features in _features(_batch(0, 20)).items():
        means = features.reshape(len(LABELS), 20, -1).mean(axis=1)
        scale = 1 / np.sqrt(((features.reshape(len(LABELS), 20, -1) - means[:, None]) ** 2).mean())
        gaussians[layer] = (np.float32(scale), (scale * means).astype(np.float32))
    return gaussians


def _stage_prototypes(staged: Path) -> tuple[PrototypeInfo, ...]:
    (staged / "prototypes").mkdir()
    step, found = SIZE // GRID, []
    for index in range(PER_CLASS * len(LABELS)):
        label = index // PER_CLASS
        image = f"prototypes/{index:04d}.png"
        Image.fromarray(draw_toy(label, 500 + index)).save(staged / image)
        row, column = CELLS[label]
        box = (column * step, row * step, (column + 1) * step, (row + 1) * step)
        source = f"train/{LABELS[label]}/{index:04d}.png"
        found.append(PrototypeInfo(label=label, source=source, image=image, row=row, column=column, box=box))
    return tuple(found)


def _stage_network(staged: Path, network: str, alpha: float, layers: tuple[str, ...]) -> NetworkInfo:
    import onnx
    import onnxruntime

    gaussians = {layer: gaussian for layer, gaussian in _gaussians().items() if layer in layers}
    weights, bias = WEIGHTS[network]
    weights = tuple(weight for layer, weight in zip(LAYERS, weights, strict=True) if layer in layers)
    clean = _batch(100, 20)[:CALIBRATION]
    scores = np.full(CALIBRATION, bias)
    clean_features = _features(clean)
    for (layer, (scale, means)), weight in zip(gaussians.items(), weights, strict=True):
        features = clean_features[layer]
        scores += weight * ((scale * features[:, None] - means) ** 2).sum(axis=-1).min(axis=1)
    calibration = np.sort(scores).astype(np.float32)

    graph = _graph(network, gaussians, np.float32(weights), np.float32(bias), calibration, np.float32(alpha))
    (staged / network).mkdir()
    (staged / "detector").mkdir(exist_ok=True)
    onnx.save(graph, staged / network / "model.onnx")
    arrays = {
        f"{layer}_{key}": value for layer, pair in gaussians.items() for key, value in zip("sm", pair, strict=True)
    }
    np.savez(staged / "detector" / f"{network}.npz", weights=weights, bias=bias, calibration=calibration, **arrays)

    session = onnxruntime.InferenceSession(staged / network / "model.onnx", providers=["CPUExecutionProvider"])
    names = list(tensors.OUTPUTS[network])
    answers = session.run(names, {tensors.IMAGE: clean[:2]})
    outputs = tuple(
        TensorSpec(name=name, dtype=tensors.DTYPES[name], shape=answer.shape[1:])
        for name, answer in zip(names, answers, strict=True)
    )
    return NetworkInfo(
        model=f"{network}/model.onnx",
        precision=FP32,
        inputs=(TensorSpec(name=tensors.IMAGE, dtype="UINT8", shape=(SIZE, SIZE, 3)),),
        outputs=outputs,
        detector=DetectorInfo(
            file=f"detector/{network}.npz",
            columns=tuple(gaussians),
            alpha=alpha,
            calibration="marginal",
            calibration_n=CALIBRATION,
        ),
        parity=Parity(runtime="none", images=1, argmax_agreement=1.0, flag_agreement=1.0, outputs={}),
        quality={},
    )


def _graph(
    network: str,
    gaussians: dict[str, tuple[np.ndarray, np.ndarray]],
    weights: np.ndarray,
    bias: np.ndarray,
    calibration: np.ndarray,
    alpha: np.ndarray,
) -> Any:
    """The served graph of the design, with mean colours where a backbone would be."""
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes: list[Any] = []
    constants: dict[str, np.ndarray] = {}

    def constant(name: str, value: Any, dtype: Any = np.float32) -> str:
        constants[name] = np.asarray(value, dtype=dtype)
        return name

    def node(kind: str, inputs: list[str], output: str | list[str], **attributes: Any) -> str:
        outputs = [output] if isinstance(output, str) else output
        nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[0]

    axis1, last = constant("axis1", [1], np.int64), constant("last", [-1], np.int64)
    spatial = constant("spatial", [2, 3], np.int64)
    node("Cast", [tensors.IMAGE], "float", to=TensorProto.FLOAT)
    node("Div", ["float", constant("white", 255)], "scaled")
    node("Transpose", ["scaled"], "chw", perm=[0, 3, 1, 2])
    step = SIZE // GRID
    node("AveragePool", ["chw"], "map", kernel_shape=[step, step], strides=[step, step])  # (N, 3, 4, 4)
    node("ReduceMean", ["chw", spatial], "colour", keepdims=0)
    node("Reshape", ["map", constant("flat", [0, -1], np.int64)], "grid")
    for layer, (scale, means) in gaussians.items():
        node("Mul", [layer, constant(f"{layer}_scale", scale)], f"{layer}_white")
        node("Unsqueeze", [f"{layer}_white", axis1], f"{layer}_white_row")
        node("Sub", [f"{layer}_white_row", constant(f"{layer}_means", means[None])], f"{layer}_differences")
        node("ReduceSumSquare", [f"{layer}_differences", last], f"{layer}_distances", keepdims=0)  # (N, K)
        node("ReduceMin", [f"{layer}_distances", axis1], f"{layer}_score", keepdims=1)
    node("Mul", ["grid_distances", constant("temperature", -0.02)], "logits")
    node("Softmax", ["logits"], tensors.PROBABILITIES, axis=1)
    node("Concat", [f"{layer}_score" for layer in gaussians], tensors.LAYER_SCORES, axis=1)
    node("MatMul", [tensors.LAYER_SCORES, constant("weights", weights[:, None])], "weighted")
    node("Add", ["weighted", constant("bias", bias)], "scored")  # (N, 1)
    node("Squeeze", ["scored", axis1], tensors.INSTANCE_SCORE)
    node("GreaterOrEqual", [constant("calibration", calibration[None]), "scored"], "at_least")
    node("Cast", ["at_least"], "ones", to=TensorProto.FLOAT)
    node("ReduceSum", ["ones", axis1], "count", keepdims=0)
    node("Add", ["count", constant("one", 1)], "rank")
    node("Div", ["rank", constant("total", len(calibration) + 1)], tensors.P_VALUE)
    node("LessOrEqual", [tensors.P_VALUE, constant("alpha", alpha)], tensors.IS_ADVERSARIAL)
    node("Sub", ["map", constant("ground", 140 / 255)], "contrast")
    node("ReduceL2", ["contrast", axis1], "saliency", keepdims=0)  # (N, 4, 4)
    node("ReduceMax", ["saliency", constant("plane", [1, 2], np.int64)], "peak", keepdims=1)
    node("Max", ["peak", constant("tiny", 1e-6)], "safe_peak")
    node("Div", ["saliency", "safe_peak"], tensors.ATTENTION)
    if network == tensors.FULL:
        prototypes = np.stack([draw_toy(i // PER_CLASS, 500 + i) for i in range(PER_CLASS * len(LABELS))])
        node("Unsqueeze", ["grid", axis1], "grid_row")
        node("Sub", ["grid_row", constant("prototypes", _features(prototypes)["grid"][None])], "to_prototypes")
        node("ReduceSumSquare", ["to_prototypes", last], "d", keepdims=0)
        node("Add", ["d", "one"], "d_one")
        node("Add", ["d", constant("gamma", 1e-4)], "d_gamma")
        node("Div", ["d_one", "d_gamma"], "ratio")
        node("Log", ["ratio"], "similarity")
        node(
            "TopK",
            ["similarity", constant("shown", [SHOWN], np.int64)],
            [tensors.PROTOTYPE_SIMILARITIES, tensors.PROTOTYPE_INDICES],
        )
    types = {"FP32": TensorProto.FLOAT, "BOOL": TensorProto.BOOL, "INT64": TensorProto.INT64}
    ranks = {
        tensors.PROBABILITIES: ["N", len(LABELS)],
        tensors.LAYER_SCORES: ["N", len(gaussians)],
        tensors.ATTENTION: ["N", GRID, GRID],
        tensors.PROTOTYPE_INDICES: ["N", SHOWN],
        tensors.PROTOTYPE_SIMILARITIES: ["N", SHOWN],
    }
    outputs = [
        helper.make_tensor_value_info(name, types[tensors.DTYPES[name]], ranks.get(name, ["N"]))
        for name in tensors.OUTPUTS[network]
    ]
    image = helper.make_tensor_value_info(tensors.IMAGE, TensorProto.UINT8, ["N", SIZE, SIZE, 3])
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, network, [image], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="session")
def tiny_birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three species at 32 px in CUB's format: 40 training and 4 test images each."""
    from training.data.cub_writer import BirdSet, write_birds

    path = tmp_path_factory.mktemp("birds") / "tiny"
    write_birds(path, BirdSet(species=3, size=32, images_train=40, images_test=4, seed=1), workers=1)
    return path


@pytest.fixture(scope="session")
def tiny_config() -> Any:
    """A training config that runs in seconds."""
    from training.presets import preset

    return preset(
        "small", image_size=32, epochs=3, batch_size=16, prototypes_per_class=2, prototype_channels=16, seed=3
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_birds: Path, tiny_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training run on `tiny_birds`."""
    from rich.console import Console

    from training.data import open_dataset
    from training.fit import Trainer
    from training.parallel import Devices
    from training.run import Run

    path = tmp_path_factory.mktemp("run") / "tiny"
    dataset = open_dataset(tiny_birds, seed=tiny_config.seed)
    Trainer(Run(path), dataset, tiny_config, Devices(accelerator="cpu"), Console(quiet=True)).fit(resume=False)
    return path


@pytest.fixture(scope="session")
def substitute(tiny_birds: Path, tiny_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run of a plain network on the same data, to transfer attacks from."""
    from dataclasses import replace

    from rich.console import Console

    from training.data import open_dataset
    from training.fit import Trainer
    from training.parallel import Devices
    from training.run import Run

    run = Run(tmp_path_factory.mktemp("substitute") / "run")
    config = replace(tiny_config, system="gap", preset="gap-small", epochs=2)
    data = open_dataset(tiny_birds, seed=3)
    Trainer(run, data, config, Devices(accelerator="cpu"), Console(quiet=True)).fit(resume=False)
    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
