"""Narrower precisions: what is narrowed and what is not, calibrated on its own answers, judged against float32."""

import json
import subprocess
import sys
from collections import Counter

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from PIL import Image
from rich.console import Console
from scipy.stats import betabinom

from bundle import Bundle, tensors
from bundle.errors import BundleUnsupported, ExportError, OptionError
from bundle.image import ImageSpec
from bundle.manifest import Quality
from calibration.recalibration import recalibrate
from detector.model import Detector
from export import quality
from export.bundling import export_run
from export.graph import GraphSession, check_device, labels_digest, to_onnx
from export.plan import ExportSettings
from export.precision import backbone, emulated, narrowed, signed
from export.served import ServedNetwork
from export.staging import GraphSettings
from robustness.fitting import DetectorSettings
from robustness.metrics import flagged_interval, fooled
from training.data import open_dataset
from training.data.loading import images_array
from training.run import Run

SPEC = ImageSpec(height=32, width=32)
SETTINGS = DetectorSettings(attacks=("fgsm-8",), alpha=0.1)
NARROW = ("fp16", "bf16", "int8")
KINDS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16, "int8": TensorProto.INT8}


@pytest.fixture(scope="module")
def parts(tiny_birds, tiny_config):
    dataset = open_dataset(tiny_birds, seed=tiny_config.seed)
    return {name: images_array(samples, SPEC) for name, samples in dataset.parts.items()}


def graph(bundle, served):
    return onnx.load(bundle.model(served))


def session(bundle, served, precision):
    """bf16 has no kernels here, so its float32 stand-in is made from the graph that it was narrowed from."""
    if precision != "bf16":
        return GraphSession(graph(bundle, served))
    return GraphSession(stand_in(graph(bundle, served)))


def stand_in(model):
    """The bf16 graph by hand: weights widened, casts to bfloat16 and back after every node of the backbone."""
    nodes = []
    narrow = [node for node in model.graph.node if any(name.endswith("/narrow") for name in node.output)]
    inside = {name for node in narrow for name in node.output}
    for node in model.graph.node:
        node = onnx.NodeProto.FromString(node.SerializeToString())
        rounds = inside.intersection(node.output) and node.op_type != "Cast"
        if rounds:
            (name,) = node.output
            node.output[:] = [f"{name}/exact"]
            nodes.append(node)
            for source, target, kind in (
                (f"{name}/exact", f"{name}/half", TensorProto.BFLOAT16),
                (f"{name}/half", name, TensorProto.FLOAT),
            ):
                nodes.append(onnx.helper.make_node("Cast", [source], [target], to=kind))
        elif node.op_type == "Cast" and inside.intersection(node.output):
            (source,), (name,) = node.input, node.output
            nodes.append(onnx.helper.make_node("Cast", [source], [f"{name}/half"], to=TensorProto.BFLOAT16))
            nodes.append(onnx.helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT))
        else:
            nodes.append(node)
    for initializer in model.graph.initializer:
        if initializer.data_type == TensorProto.BFLOAT16:
            wide = numpy_helper.to_array(initializer).astype(np.float32)
            initializer.CopyFrom(numpy_helper.from_array(wide, initializer.name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize("served", tensors.NETWORKS)
@pytest.mark.parametrize("precision", ["fp32", *NARROW])
def test_every_precision_carries_its_own_calibration_and_parity(bundles, parts, precision, served):
    info = Bundle.open(bundles[precision].path).manifest.networks[served]
    assert info.precision == precision
    answers = session(bundles[precision], served, precision).answers(parts["calibration"][0])
    values, n = np.sort(answers[tensors.P_VALUE]), len(parts["calibration"][0])
    np.testing.assert_allclose(values, (np.arange(n) + 2) / (n + 1), atol=1e-6)
    detector = Detector.load(bundles[precision].file(f"detector/{served}.npz"))
    np.testing.assert_array_equal(detector.calibration, np.sort(answers[tensors.INSTANCE_SCORE]))
    assert set(info.parity.outputs) == set(tensors.OUTPUTS[served])
    assert info.parity.images == 64
    assert set(info.quality) == (set() if precision == "fp32" else {"fp32", precision})
    for found in info.quality.values():
        assert found.images == len(parts["validation"][0])
        assert set(found.auroc) <= {"fgsm-8"}


@pytest.mark.parametrize("precision", NARROW)
def test_a_narrow_bundle_is_recalibrated_on_its_own_answers(bundles, parts, precision, tmp_path):
    """Beside float32, on the same images: other scores, so other calibrations; bf16 has no kernels on a processor."""
    paths = [tmp_path / f"{index:04d}.png" for index in range(len(parts["train"][0]))]
    for path, image in zip(paths, parts["train"][0], strict=True):
        Image.fromarray(image).save(path)
    if precision == "bf16":
        with pytest.raises(BundleUnsupported, match="computes in bf16, which no processor runs here"):
            recalibrate(bundles[precision], paths, tmp_path / "out", source="x")
        return
    made = recalibrate(bundles[precision], paths, tmp_path / "out", source="x").bundle
    wide = recalibrate(bundles["fp32"], paths, tmp_path / "wide", source="x").bundle
    for served, info in made.manifest.networks.items():
        before = bundles[precision].manifest.networks[served]
        assert (info.precision, info.quality, info.model) == (precision, before.quality, before.model)
        detector, other = (Detector.load(each.file(info.detector.file)) for each in (made, wide))
        assert not np.array_equal(detector.calibration, other.calibration)
        answers = GraphSession(graph(made, served)).run(parts["test"][0])
        expected = detector.p_values(answers[tensors.INSTANCE_SCORE], answers[tensors.PROBABILITIES].argmax(1))
        np.testing.assert_array_equal(answers[tensors.P_VALUE], expected)


@pytest.mark.parametrize("served", tensors.NETWORKS)
def test_what_is_measured_is_what_the_graphs_answer(bundles, parts, served):
    images, labels = parts["validation"]  # the test part accepts no export
    for precision in ("fp32", "int8"):
        answers = session(bundles[precision], served, precision).answers(images)
        found = bundles["int8"].manifest.networks[served].quality[precision]
        assert found.accuracy == pytest.approx((answers[tensors.PROBABILITIES].argmax(1) == labels).mean(), abs=1e-6)
        assert found.flagged == pytest.approx(answers[tensors.IS_ADVERSARIAL].mean(), abs=1e-6)


@pytest.mark.parametrize("precision", ["fp32", *NARROW])
def test_the_narrower_the_further_from_pytorch_and_never_far(bundles, precision):
    for served in tensors.NETWORKS:
        far = {name: bundles[name].manifest.networks[served].parity.outputs for name in ("fp32", *NARROW)}
        means = [far[name][tensors.LAYER_SCORES].mean_rel for name in ("fp32", "fp16", "bf16", "int8")]
        assert means == sorted(means)
        assert 0 < means[0] < 1e-5 < means[1] < 1e-2
        assert means[3] < 0.3


@pytest.mark.parametrize("served", tensors.NETWORKS)
@pytest.mark.parametrize("precision", NARROW)
def test_the_backbone_is_narrow_and_everything_after_it_is_float32(bundles, precision, served):
    model = graph(bundles[precision], served)
    kinds = {initializer.name: initializer.data_type for initializer in model.graph.initializer}
    inside = [name for name in kinds if name.startswith("backbone.")]
    weights = [name for name in inside if name.removesuffix("_quantized").endswith("weight")]
    assert weights
    assert {kinds[name] for name in weights} == {KINDS[precision]}
    others = [
        name for name in kinds if name.startswith(("scoring.", "attention_head.", "prototype_head.", "calibration"))
    ]
    assert {kinds[name] for name in others} == {TensorProto.FLOAT}
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    wide = Counter(
        node.op_type for node in model.graph.node if types.get(node.output[0], TensorProto.FLOAT) == TensorProto.FLOAT
    )
    fp32 = Counter(node.op_type for node in graph(bundles["fp32"], served).graph.node)
    for operator in ("MatMul", "Gemm", "ReduceMean", "Softmax", "Log", "Div", "Sqrt"):
        assert wide[operator] == fp32[operator], operator


@pytest.mark.parametrize("served", tensors.NETWORKS)
def test_graphs_are_pinned_folded_and_know_what_they_are(bundles, served):
    for precision, bundle in bundles.items():
        model = graph(bundle, served)
        onnx.checker.check_model(model, full_check=True)
        assert model.ir_version == 10
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [
            ("", 22 if precision == "bf16" else 18)
        ]
        told = {item.key: item.value for item in model.metadata_props}
        assert told == {
            "fieldmark.network": served,
            "fieldmark.precision": precision,
            "fieldmark.labels_sha256": labels_digest(bundle.manifest.labels),
            "fieldmark.weights_sha256": bundle.manifest.training["weights_sha256"],
        }
        constants = {initializer.name for initializer in model.graph.initializer}
        idle = [node.name for node in model.graph.node if constants.issuperset(filter(None, node.input))]
        # Weights of int8 are dequantised where they are used; nothing else is left to compute once.
        assert [name for name in idle if "DequantizeLinear" not in name] == []
        assert not any(value.data_location for value in model.graph.initializer)


@pytest.mark.parametrize("served", tensors.NETWORKS)
def test_a_graph_is_hardly_larger_than_its_weights(bundles, served):
    """The tiny network has few weights for its many operators; what the operators take is bounded by itself."""
    model = graph(bundles["fp32"], served)
    weights = sum(numpy_helper.to_array(value).nbytes for value in model.graph.initializer)
    assert bundles["fp32"].model(served).stat().st_size - weights < 40_000


def test_networks_share_nothing(bundles):
    """Either runs where the other is gone: a graph has no external data, and weights of its own."""
    for served, other in (("full", "attention"), ("attention", "full")):
        bundle = bundles["fp32"]
        data = bundle.model(served).read_bytes()
        assert GraphSession(onnx.load_from_string(data)).run(np.zeros((1, 32, 32, 3), np.uint8))
        assert bundle.manifest.networks[served].detector.file != bundle.manifest.networks[other].detector.file


# The passes over a graph


@pytest.fixture(scope="module")
def wide(bundles):
    return graph(bundles["fp32"], "full")


def test_int8_as_tensorrt_wants_it_has_the_same_numbers(bundles, parts):
    unsigned = graph(bundles["int8"], "full")
    around_zero = signed(unsigned)
    kinds = {value.name: value.data_type for value in around_zero.graph.initializer}
    zeros = {node.input[2] for node in around_zero.graph.node if "quantizeLinear" in node.op_type.replace("Q", "q", 1)}
    assert {kinds[name] for name in zeros} == {TensorProto.INT8}
    onnx.checker.check_model(around_zero, full_check=True)
    images = parts["test"][0]
    want, have = (GraphSession(model).answers(images) for model in (unsigned, around_zero))
    for name in (tensors.PROBABILITIES, tensors.LAYER_SCORES, tensors.ATTENTION):
        np.testing.assert_allclose(have[name], want[name], rtol=2e-3, atol=2e-3, err_msg=name)
    assert signed(graph(bundles["fp16"], "full")) == clean(graph(bundles["fp16"], "full"))


def clean(model):
    del model.graph.value_info[:]
    return model


def test_graphs_quantised_around_another_point_are_refused(bundles):
    model = graph(bundles["int8"], "full")
    zero = next(value for value in model.graph.initializer if value.data_type == TensorProto.UINT8)
    zero.CopyFrom(numpy_helper.from_array(np.array(7, np.uint8), zero.name))
    with pytest.raises(ExportError, match="quantises around 7 and not around zero"):
        signed(model)


def test_emulated_bfloat16_rounds_every_value_of_the_backbone(wide, parts):
    """Against PyTorch's own bfloat16 layers, whose sums differ only in their order."""
    images = parts["test"][0][:4]
    entry, nodes = backbone(wide)
    model = emulated(wide)
    names = [nodes[0].output[0].removesuffix("/exact"), nodes[-1].output[0].removesuffix("/exact")]
    for name in (f"{entry}/rounded", *names):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    found = GraphSession(model).run(images)
    for name in (f"{entry}/rounded", *names):
        np.testing.assert_array_equal(found[name], found[name].astype(ml_dtypes.bfloat16).astype(np.float32))
    first = next(node for node in wide.graph.node if node.op_type == "Conv")
    weight, bias = (
        torch.from_numpy(numpy_helper.to_array(value).copy())
        for name in first.input[1:]
        for value in wide.graph.initializer
        if value.name == name
    )
    rounded = torch.from_numpy(found[f"{entry}/rounded"]).bfloat16()
    want = torch.nn.functional.conv2d(rounded.float(), weight.bfloat16().float(), bias.bfloat16().float(), padding=1)
    np.testing.assert_allclose(found[names[0]], want.bfloat16().float().numpy(), rtol=1e-2, atol=1e-3)


def test_an_operator_that_cannot_be_narrowed_is_named(wide):
    model = onnx.ModelProto.FromString(wide.SerializeToString())
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.op_type = "ConvTranspose"
    with pytest.raises(ExportError, match=r"the operator ConvTranspose of backbone\.stages\.0.* cannot be narrowed"):
        narrowed(model, "fp16", np.zeros((1, 32, 32, 3), np.uint8))
    del model.graph.node[:]
    with pytest.raises(ExportError, match="no backbone whose precision"):
        backbone(model)


class Odd(torch.nn.Module):
    """A layer that ONNX has no operator for, or that decides by what it sees."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, maps):
        if self.kind == "operator":
            return maps + torch.linalg.eigvals(maps[..., :2, :2].mean((0, 1))).real.sum()
        return maps if maps.sum().item() > 0 else -maps


@pytest.mark.parametrize("kind", ["operator", "decision"])
def test_a_layer_that_cannot_be_exported_is_named(bundles, tiny_run, kind, capfd):
    _, network = Run(tiny_run).load_network()
    network.backbone.stages[1].body[2] = Odd(kind)
    detector = Detector.load(bundles["fp32"].file("detector/full.npz"))
    with pytest.raises(ExportError, match=r"layer backbone\.stages\.1\.body\.2 \(") as caught:
        to_onnx(ServedNetwork(network, "full", detector), SPEC)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


class Said:
    """A graph that answers as it is told: class 1 where the pixel is above 100, and the pixel as score."""

    def answers(self, images):
        scores, predicted = self.scores(images)
        flags = scores > 200
        return {
            tensors.PROBABILITIES: np.eye(2)[predicted],
            tensors.INSTANCE_SCORE: scores,
            tensors.IS_ADVERSARIAL: flags,
        }

    def scores(self, images):
        values = images[:, 0, 0, 0].astype(np.float32)
        return values, (values > 100).astype(np.int64)


def test_the_positives_of_an_auroc_are_images_that_fool():
    """Of four images three are right when clean; of these the attack turns one, which scores above two of the four."""

    def image(*values):
        return np.array(values, np.uint8)[:, None, None, None]

    trial = quality.Trial(
        clean=image(10, 90, 150, 95),
        labels=np.array([0, 1, 1, 0]),
        picked=np.array([0, 1, 2]),
        attacked={"turns one": image(120, 99, 150), "turns none": image(20, 90, 255)},
    )
    found = trial.quality(Said())
    assert found.auroc == {"turns one": 0.75}
    assert (found.accuracy, found.images) == (0.75, 4)
    np.testing.assert_array_equal(
        fooled(np.array([True, True, False]), np.array([False, True, False])), [True, False, False]
    )


# What is refused


def test_what_costs_too_much_accuracy_is_refused_with_the_numbers(bundles):
    detector = Detector.load(bundles["fp32"].file("detector/full.npz"))
    wide = Quality(images=200, accuracy=0.90, flagged=0.1, auroc={})
    narrow = Quality(images=200, accuracy=0.89, flagged=0.1, auroc={})
    quality.check_quality("full", "int8", {"fp32": wide, "int8": narrow}, detector, 1.0)
    with pytest.raises(
        ExportError, match=r"full in int8 loses 1\.00 points.*200 validation.*0\.5 are.*90\.00 % in fp32"
    ):
        quality.check_quality("full", "int8", {"fp32": wide, "int8": narrow}, detector, 0.5)


@pytest.mark.parametrize("flagged", [0.0, 0.35])
def test_flags_that_alpha_does_not_allow_are_refused(bundles, flagged):
    detector = Detector.load(bundles["fp32"].file("detector/full.npz"))  # alpha 0.1
    wide, narrow = (Quality(images=600, accuracy=1.0, flagged=share, auroc={}) for share in (0.1, flagged))
    with pytest.raises(ExportError, match=r"full in fp16 flags \d+\.0 % of 600 .*alpha = 0\.1 gives .*fp32 flags 10"):
        quality.check_quality("full", "fp16", {"fp32": wide, "fp16": narrow}, detector, 0.5)


@pytest.mark.parametrize(
    ("wide", "narrow", "passes"),
    [  # calibration gives 5.5 to 15.5 %
        (0.4, 0.405, True),  # photographs of other shops: narrowing changed nothing
        (0.4, 0.25, True),  # nearer to what is promised
        (0.4, 0.05, False),
        (0.4, 0.5, False),
        (0.02, 0.015, True),
        (0.02, 0.2, False),
        (0.14, 0.17, False),  # where float32 keeps the promise nothing more is allowed
        (0.06, 0.04, False),
    ],
)
def test_flags_are_held_against_those_of_float32_where_it_is_off_too(bundles, wide, narrow, passes, monkeypatch):
    detector = Detector.load(bundles["fp32"].file("detector/full.npz"))
    monkeypatch.setattr(quality, "flagged_interval", lambda groups, alpha: (0.055, 0.155))
    found = {
        precision: Quality(images=600, accuracy=1.0, flagged=share, auroc={})
        for precision, share in (("fp32", wide), ("fp16", narrow))
    }
    if passes:
        quality.check_quality("full", "fp16", found, detector, 0.5)
    else:
        with pytest.raises(ExportError, match=rf"full in fp16 flags .*fp32 flags {100 * wide:.1f} %, so .* allowed"):
            quality.check_quality("full", "fp16", found, detector, 0.5)


@pytest.mark.parametrize("share", [0.0, 0.06, 0.18])
def test_a_precision_that_flags_what_float32_flags_is_never_refused(bundles, share, monkeypatch):
    """Per class, p-values are coarse and the interval lies below alpha as a whole."""
    detector = Detector.load(bundles["fp32"].file("detector/full.npz"))
    monkeypatch.setattr(quality, "flagged_interval", lambda groups, alpha: (0.011, 0.045))
    found = {precision: Quality(images=648, accuracy=1.0, flagged=share, auroc={}) for precision in ("fp32", "fp16")}
    quality.check_quality("full", "fp16", found, detector, 0.5)


def test_the_interval_of_flags_covers_what_calibration_gives():
    """By simulation: scores of one law, calibrated on n and counted on m others."""
    generator = np.random.default_rng(0)
    n, m, alpha, draws = 60, 100, 0.1, 4000
    known, fresh = generator.normal(size=(draws, n)), generator.normal(size=(draws, m))
    values = (1 + (known[:, None, :] >= fresh[:, :, None]).sum(2)) / (n + 1)
    shares = (values <= alpha).mean(1)
    low, high = flagged_interval([(m, n)], alpha)
    outside = ((shares < low) | (shares > high)).mean()
    assert outside <= 0.01 + 3 * np.sqrt(0.01 / draws)
    assert np.abs(shares.mean() - betabinom(m, 6, 55).mean() / m) < 0.005
    assert ((shares <= low + 0.01) | (shares >= high - 0.02)).any()  # and it is no wider than it must be
    exact = betabinom(m, 6, 55).interval(0.99)
    assert (low, high) == pytest.approx((exact[0] / m, exact[1] / m))


def test_the_interval_of_flags_is_of_every_class_that_is_calibrated_on_its_own():
    """The smallest class bounds p-values; it says nothing of the share that is flagged among all."""
    generator = np.random.default_rng(1)
    groups, alpha, draws = [(30, 20), *[(60, 39)] * 5], 0.05, 3000
    flags = np.zeros(draws)
    for m, n in groups:
        known, fresh = generator.normal(size=(draws, n)), generator.normal(size=(draws, m))
        flags += ((1 + (known[:, None, :] >= fresh[:, :, None]).sum(2)) / (n + 1) <= alpha).sum(1)
    shares = flags / sum(m for m, _ in groups)
    low, high = flagged_interval(groups, alpha, 0.95)
    assert low == pytest.approx(np.quantile(shares, 0.025), abs=0.006)
    assert high == pytest.approx(np.quantile(shares, 0.975), abs=0.006)
    alone = flagged_interval([(330, 20)], alpha, 0.95)  # what was told before
    assert high - low < 0.7 * (alone[1] - alone[0])


def test_a_refused_precision_writes_nothing(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(quality.Trial, "quality", lambda self, session: next(worse))
    worse = iter([Quality(images=12, accuracy=share, flagged=0.1, auroc={}) for share in (0.9, 0.5)])
    with pytest.raises(ExportError, match=r"full in int8 loses 40\.00 points"):
        settings = ExportSettings(detector=SETTINGS, graphs=GraphSettings(precision="int8"))
        export_run(tiny_run, tmp_path / "out", settings, Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_here_is_named():
    check_device("cpu")
    with pytest.raises(OptionError, match=r"no CUDAExecutionProvider.*Here: cpu.*'\.\[gpu\]'"):
        check_device("cuda")


def test_the_verb_knows_precisions_and_devices(tiny_run, tmp_path, bundles):
    def fieldmark(*words):
        command = [sys.executable, "-m", "fieldmark", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = fieldmark("export", tiny_run, "--out", tmp_path / "o", "--precision", "fp8")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "unknown precision 'fp8'. Choose one of: fp32, fp16, bf16, int8." in done.stderr
    done = fieldmark("export", tiny_run, "--out", tmp_path / "o", "--device", "npu")
    assert "unknown device 'npu'. Choose one of: cpu, cuda, tensorrt." in done.stderr
    done = fieldmark("bundle", "show", bundles["int8"].path)
    assert done.returncode == 0
    assert "int8" in done.stdout
    told = json.loads(fieldmark("bundle", "show", bundles["int8"].path, "--json").stdout)
    assert told["training"]["graphs"] == {"precision": "int8", "max_accuracy_loss": 100.0, "device": "cpu"}
