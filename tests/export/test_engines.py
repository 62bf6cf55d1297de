"""Engines, built for real by TensorRT for RTX, which needs no GPU for it: what is in them, and what is on disk when."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bundle.files
import export.engines.building
import export.engines.compiler
from bundle import Bundle, tensors, write_bundle
from bundle.engines import BUILDER, ENGINES, INSPECTOR, NETWORK, EngineSet, Evidence, Profile
from bundle.errors import BundleCorrupt, DiskFull, EngineError, ExportError, MissingExtra, OptionError
from bundle.manifest import Quality
from export.engines.building import EngineOrder, build_engines
from export.engines.check import check_answers, check_engine, widened
from export.engines.compiler import Compiled, Compiler, local_target
from export.engines.folder import LOCK
from export.engines.layers import CONVOLUTION, inspected_layers, listed_layers
from export.engines.messages import plain
from export.graph import GraphSession
from export.precision import backbone

PROFILE = Profile(min=1, opt=2, max=4)
BOTH = tensors.NETWORKS
ONE = (tensors.ATTENTION_ONLY,)
TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8"}

try:
    RTX: Compiler | None = Compiler.open("tensorrt-rtx")
except (MissingExtra, EngineError):
    RTX = None
needs_rtx = pytest.mark.skipif(RTX is None, reason="TensorRT for RTX is not installed")


def convolve(model: onnx.ModelProto, precision: str) -> None:
    """Put a convolution that changes nothing before the toy's features, in another precision than the rest."""
    dtype = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}.get(precision, TensorProto.FLOAT)
    if precision == "bf16":  # no convolution before knows it
        model.opset_import[0].version = 22
    graph = model.graph
    place = next(index for index, node in enumerate(graph.node) if "chw" in node.output)
    graph.node[place].output[0] = "pixels"
    kernel = np.zeros((3, 3, 3, 3), dtype=np.float32)
    kernel[range(3), range(3), 1, 1] = 1
    nodes = [helper.make_node("Cast", ["pixels"], ["low"], to=dtype)]
    inputs = ["low", "kernel"]
    if precision == "int8":
        graph.initializer.extend(
            [
                numpy_helper.from_array((127 * kernel).astype(np.int8), "kernel_int8"),
                numpy_helper.from_array(np.full(3, 1 / 127, dtype=np.float32), "kernel_scale"),
                numpy_helper.from_array(np.zeros(3, dtype=np.int8), "kernel_zero"),
                numpy_helper.from_array(np.float32(1 / 127), "step"),
                numpy_helper.from_array(np.int8(0), "zero"),
            ]
        )
        nodes += [
            helper.make_node("DequantizeLinear", ["kernel_int8", "kernel_scale", "kernel_zero"], ["kernel"], axis=0),
            helper.make_node("QuantizeLinear", ["low", "step", "zero"], ["low_int8"]),
            helper.make_node("DequantizeLinear", ["low_int8", "step", "zero"], ["low_again"]),
        ]
        inputs[0] = "low_again"
    else:
        graph.initializer.append(helper.make_tensor("kernel", dtype, kernel.shape, kernel.ravel().tolist()))
    nodes.append(helper.make_node("Conv", inputs, ["convolved"], pads=[1] * 4, name="first"))
    nodes.append(helper.make_node("Cast", ["convolved"], ["chw"], to=TensorProto.FLOAT))
    for offset, node in enumerate(nodes):
        graph.node.insert(place + 1 + offset, node)
    onnx.checker.check_model(model, full_check=True)


def rewritten(
    source: Bundle, path: Path, edit: Callable[[onnx.ModelProto], None] = lambda model: None, precision: str = "fp32"
) -> Bundle:
    """A bundle like `source` with every graph edited, which says that it is in `precision`."""
    staged = path.with_name(f"{path.name}-staged")
    shutil.copytree(source.path, staged)
    (staged / "manifest.json").unlink()
    quality = {
        name: Quality(images=1, accuracy=1.0, flagged=0.0, auroc={})
        for name in {"fp32", precision}
        if precision != "fp32"
    }
    manifest, networks = source.manifest, {}
    for name, network in manifest.networks.items():
        model = onnx.load(staged / network.model)
        edit(model)
        onnx.save(model, staged / network.model)
        networks[name] = replace(network, precision=precision, quality=quality)
    own = {name: getattr(manifest, name) for name in manifest.__dataclass_fields__ if name != "files"}
    return write_bundle(path, staged, {**own, "networks": networks})


@pytest.fixture(scope="module")
def in_precision(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """The toy in a precision: `in_precision("fp16")`. Each is made once."""
    made: dict[str, Bundle] = {}

    def make(precision: str) -> Bundle:
        if precision not in made:
            path = tmp_path_factory.mktemp(precision) / "bundle"
            made[precision] = rewritten(toy_bundle, path, lambda model: convolve(model, precision), precision)
        return made[precision]

    return make


@pytest.fixture(scope="module")
def rtx() -> Compiler:
    if RTX is None:
        pytest.skip("TensorRT for RTX is not installed")
    return RTX


@pytest.fixture(scope="module")
def toy_set(
    rtx: Compiler, in_precision: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory
) -> EngineSet:
    """Engines of the toy for sm_86, both networks, and of one for sm_89. Read-only: copy it before you damage it."""
    out = tmp_path_factory.mktemp("set") / "engines"
    build_engines(in_precision("fp32"), out, rtx, EngineOrder(networks=BOTH, targets=("sm_86",), profile=PROFILE))
    engines, dropped = build_engines(
        in_precision("fp32"), out, rtx, EngineOrder(networks=ONE, targets=("sm_89",), profile=PROFILE)
    )
    assert dropped == ()
    return engines


@pytest.fixture
def own_set(toy_set: EngineSet, tmp_path: Path) -> Path:
    return shutil.copytree(toy_set.path, tmp_path / "engines")


def places(engines: EngineSet) -> list[tuple[str, str]]:
    return [(record.network, record.target) for record in engines.records]


def files(path: Path) -> dict[str, str]:
    """Every file of a folder with its digest."""
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


class Canned:
    """Stands where a compiler does and gives engines that were built before: for tests of the folder alone."""

    runtime, version = "tensorrt-rtx", "9.9"

    def __init__(self, data: bytes = b"an engine", timings: bytes | None = None) -> None:
        self.data, self.timings, self.calls = data, timings, []  # type: ignore[var-annotated]

    def compile(self, graph: bytes, where: Path, target: str, profile: Profile, timings: bytes | None) -> Compiled:
        self.calls.append((where.parent.name, target, timings))
        evidence = Evidence(source=NETWORK, layers={CONVOLUTION: {"FLOAT": 1, "HALF": 1}})
        return Compiled(
            data=self.data + hashlib.sha256(graph).digest() + target.encode(), evidence=evidence, timings=self.timings
        )


# what is in an engine


@needs_rtx
@pytest.mark.parametrize("precision", TYPES)
def test_an_exported_bundle_becomes_engines_that_compute_as_it_promises(
    bundles: dict[str, Bundle], rtx: Compiler, tmp_path: Path, precision: str
) -> None:
    exported = bundles[precision]
    engines, _ = build_engines(
        exported, tmp_path / "e", rtx, EngineOrder(networks=BOTH, targets=("sm_86",), profile=PROFILE)
    )
    assert places(engines) == [("attention", "sm_86"), ("full", "sm_86")]
    for record in engines.records:
        data = engines.file(record).read_bytes()
        graph = exported.model(record.network).read_bytes()
        assert (record.bytes, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert record.graph_sha256 == hashlib.sha256(graph).hexdigest()
        assert (record.runtime, record.version, record.precision) == ("tensorrt-rtx", rtx.version, precision)
        assert record.profile == PROFILE
        assert record.bytes > len(graph)  # the weights are inside
        assert record.evidence.source == BUILDER
        counts = dict(record.evidence.layers[CONVOLUTION])
        _, nodes = backbone(onnx.load(bundles["fp32"].model(record.network)))
        in_backbone = sum(node.op_type == "Conv" for node in nodes)
        in_heads = sum(node.op_type == "Conv" for node in onnx.load_from_string(graph).graph.node) - in_backbone
        found = counts.pop(TYPES[precision])
        if precision != "fp32":  # the heads stay in float32
            assert found == in_backbone
            found += counts.pop("FLOAT")
        assert counts == {}
        assert in_backbone < found <= in_backbone + in_heads  # a builder may make a product of a 1x1 convolution
    assert EngineSet.open(tmp_path / "e", exported.bundle_id).records == engines.records


@needs_rtx
@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_89", "sm_120"])
def test_other_targets(rtx: Compiler, in_precision: Callable[[str], Bundle], tmp_path: Path, target: str) -> None:
    opened = in_precision("fp16")
    if target == "sm_75":  # the detector computes in float32
        with pytest.raises(EngineError, match=r"cannot build .*attention/model\.onnx for sm_75 \(.*FP32 GEMM"):
            build_engines(opened, tmp_path / "e", rtx, EngineOrder(networks=ONE, targets=(target,), profile=PROFILE))
        assert not (tmp_path / "e" / ENGINES).exists()
        return
    engines, _ = build_engines(
        opened, tmp_path / "e", rtx, EngineOrder(networks=ONE, targets=(target,), profile=PROFILE)
    )
    assert places(engines) == [("attention", target)]


@needs_rtx
def test_an_engine_without_the_promised_precision_is_refused(
    rtx: Compiler, in_precision: Callable[[str], Bundle], own_set: Path, tmp_path: Path
) -> None:
    before = files(own_set)
    liar = rewritten(in_precision("fp32"), tmp_path / "bundle", precision="fp16")
    with pytest.raises(EngineError, match=r"no convolution in HALF, which a bundle in fp16 promises.*has 1 in FLOAT"):
        build_engines(liar, own_set, rtx, EngineOrder(networks=ONE, targets=("sm_86",), profile=PROFILE))
    assert files(own_set) == before


@needs_rtx
def test_what_was_built_counts_and_not_what_was_asked_for(
    rtx: Compiler, in_precision: Callable[[str], Bundle], tmp_path: Path
) -> None:
    """On Turing the builder computes int8 convolutions in float32, without a word of warning."""

    def without_products(model: onnx.ModelProto) -> None:
        graph = model.graph
        place = next(index for index, node in enumerate(graph.node) if node.op_type == "MatMul")
        scores, weights = graph.node[place].input
        row = numpy_helper.to_array(next(each for each in graph.initializer if each.name == weights)).T
        graph.initializer.append(numpy_helper.from_array(row, "weights_row"))
        graph.node[place].CopyFrom(helper.make_node("Mul", [scores, "weights_row"], ["terms"]))
        graph.node.insert(place + 1, helper.make_node("ReduceSum", ["terms", "last"], ["weighted"]))

    opened = rewritten(in_precision("int8"), tmp_path / "bundle", without_products, "int8")
    build_engines(opened, tmp_path / "a", rtx, EngineOrder(networks=ONE, targets=("sm_86",), profile=PROFILE))
    with pytest.raises(
        EngineError, match=r"attention for sm_75 has no convolution in INT8.*by the builder it has 1 in"
    ):
        build_engines(opened, tmp_path / "b", rtx, EngineOrder(networks=ONE, targets=("sm_75",), profile=PROFILE))


@needs_rtx
def test_the_network_tells_types_where_builder_and_inspector_do_not(
    rtx: Compiler, in_precision: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.engines.compiler, "listed_layers", lambda text: {})
    for precision, dtype in TYPES.items():
        opened = in_precision(precision)
        graph = opened.model("attention")
        made = rtx.compile(graph.read_bytes(), graph, "sm_86", PROFILE, None)
        assert made.evidence.source == NETWORK
        assert made.evidence.layers[CONVOLUTION] == {dtype: 1}
        assert made.evidence.layers["SOFTMAX"] == {"FLOAT": 1}


def test_layers_as_runtimes_tell_them() -> None:
    listed = (
        "Layers:\nName: a, LayerType: correlation, Inputs: [ { Name: x, Datatype: Half, Format: f }], Outputs: []\n"
        "Name: a, b, LayerType: kgen, Inputs: [], Constants: [], Outputs: [ { Name: y, Datatype: BFloat16 }]\n"
        "Name: w, LayerType: wait, Inputs: [], Constants: [], Outputs: [], StreamId: 0\n"
    )
    assert listed_layers(listed) == {CONVOLUTION: {"HALF": 1}, "kgen": {"BF16": 1}}
    assert listed_layers("Layers:\na convolution in Half") == {}
    ten = {"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}
    eleven = {"DataType": "Int8", "Format": "Row major linear FP32 format"}
    document = {
        "Layers": [
            {"LayerType": "CaskConvolution", "Inputs": [ten], "Outputs": []},
            {"LayerType": "CaskGemmConvolution", "Inputs": [eleven], "Outputs": []},
            {"LayerType": "CaskDeconvolutionV2", "Inputs": [eleven], "Outputs": []},
            {"LayerType": "NoOp", "Inputs": [{"Dimensions": [1]}], "Outputs": []},
            "only a name",
        ]
    }
    assert inspected_layers(json.dumps(document)) == {
        CONVOLUTION: {"HALF": 1, "INT8": 1},
        "CaskDeconvolutionV2": {"INT8": 1},
    }


@needs_rtx
def test_what_the_parser_refuses_is_named(rtx: Compiler, toy_bundle: Bundle, own_set: Path, tmp_path: Path) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Softmax")
        node.op_type, node.name, node.domain = "Warble", "beak", "birds"
        model.opset_import.append(helper.make_opsetid("birds", 1))

    before = files(own_set)
    spoilt = rewritten(toy_bundle, tmp_path / "bundle", spoil)
    with pytest.raises(EngineError, match=r"cannot read .*full/model\.onnx: node beak of type Warble: .*Plugin not"):
        build_engines(spoilt, own_set, rtx, EngineOrder(networks=BOTH[:1], targets=("sm_86",), profile=PROFILE))
    assert files(own_set) == before


@needs_rtx
def test_a_graph_that_is_none(rtx: Compiler, toy_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"birds" * 100)
    with pytest.raises(EngineError, match="Failed to parse the ONNX model"):
        rtx.compile(path.read_bytes(), path, "sm_86", PROFILE, None)
    model = onnx.load(toy_bundle.model("attention"))
    model.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match="the one input 'image' with a free batch"):
        rtx.compile(path.read_bytes(), path, "sm_86", PROFILE, None)


def test_a_graph_that_has_changed_since_the_bundle_was_opened(make_toy_bundle: Any, tmp_path: Path) -> None:
    opened, compiler = make_toy_bundle(tmp_path / "bundle"), Canned()
    graph = opened.model("attention")
    graph.write_bytes(graph.read_bytes() + b"!")
    with pytest.raises(BundleCorrupt, match="has changed since the bundle was verified"):
        build_engines(opened, tmp_path / "e", compiler, EngineOrder(networks=ONE, targets=("sm_86",), profile=PROFILE))  # type: ignore[arg-type]
    assert (compiler.calls, files(tmp_path / "e")) == ([], {LOCK: hashlib.sha256(b"").hexdigest()})


def test_complaints_are_one_line_without_places_in_somebody_elses_source() -> None:
    assert (
        plain(
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:1500: run_passes] Cannot compile for "
            "target(s) sm75. In compileGraph at /_src/codeGenerator.cpp:2012)\n[x.cpp::y::250] (cudaError 35: none)"
        )
        == "Cannot compile for target(s) sm75"
    )


@needs_rtx
def test_ctrl_c_ends_a_build_and_the_process_lives(rtx: Compiler, bundles: dict[str, Bundle], own_set: Path) -> None:
    before = files(own_set)
    stop = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    stop.start()
    with pytest.raises(KeyboardInterrupt):
        for _ in range(20):
            build_engines(
                bundles["fp32"],
                own_set,
                rtx,
                EngineOrder(networks=BOTH, targets=("sm_86",), profile=PROFILE, force=True),
            )
            before = files(own_set)
    assert files(own_set) == before
    EngineSet.open(own_set)


@needs_rtx
def test_an_ignored_signal_stays_ignored(
    rtx: Compiler, bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `nohup`, or in the background of a script."""
    graph = bundles["fp32"].model("full")
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
        stop = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        stop.start()
        rtx.compile(graph.read_bytes(), graph, "sm_86", PROFILE, None)
        stop.join()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        with export.engines.compiler.signals_postponed() as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (heard, stopped) == ([], [signal.SIGTERM])
        assert heard == [signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@needs_rtx
def test_a_build_that_nobody_wants_any_more_ends_early(
    rtx: Compiler, toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.engines.compiler, "signals_postponed", lambda: contextlib.nullcontext([signal.SIGINT]))
    graph = toy_bundle.model("attention")
    with pytest.raises(EngineError, match="cannot build"):  # where a signal came, nobody hears this sentence
        rtx.compile(graph.read_bytes(), graph, "sm_86", PROFILE, None)


# what is kept, and what is built anew


@needs_rtx
def test_a_second_run_keeps_what_fits(rtx: Compiler, in_precision: Callable[[str], Bundle], own_set: Path) -> None:
    before, told = files(own_set), []
    order = EngineOrder(networks=BOTH, targets=("sm_86",), profile=PROFILE)
    build_engines(in_precision("fp32"), own_set, rtx, order, tell=told.append)
    assert [outcome.built for outcome in told] == [False, False]
    assert files(own_set) == before


@pytest.mark.parametrize(
    "change", ["graph", "version", "runtime", "profile", "damage", "length", "missing", "precision", "force"]
)
def test_whatever_differs_is_built_anew(make_toy_bundle: Any, tmp_path: Path, change: str) -> None:
    opened = make_toy_bundle(tmp_path / "bundle")
    out, compiler = tmp_path / "engines", Canned()
    order = EngineOrder(networks=BOTH, targets=("sm_86",), profile=PROFILE, force=change == "force")
    old, _ = build_engines(opened, out, compiler, order)  # type: ignore[arg-type]
    assert len(compiler.calls) == 2
    victim = old.file(old.find("attention", "sm_86"))
    rebuilt = {"attention", "full"}
    match change:
        case "graph":
            opened = make_toy_bundle(tmp_path / "other", alpha=0.2)
        case "version":
            compiler.version = "9.10"
        case "runtime":
            compiler.runtime = "tensorrt"
        case "profile":
            order = replace(order, profile=replace(PROFILE, opt=3))
        case "precision":
            opened = rewritten(opened, tmp_path / "other", precision="fp16")
        case "damage":
            victim.write_bytes(victim.read_bytes()[:-1] + b"!")
            rebuilt = {"attention"}
        case "length":
            victim.write_bytes(b"")
            rebuilt = {"attention"}
        case "missing":
            victim.unlink()
            rebuilt = {"attention"}
    compiler.calls.clear()
    told: list[Any] = []
    new, dropped = build_engines(opened, out, compiler, order, tell=told.append)  # type: ignore[arg-type]
    assert {network for network, _, _ in compiler.calls} == rebuilt
    assert {outcome.record.network for outcome in told if outcome.built} == rebuilt
    assert places(new) == [("attention", "sm_86"), ("full", "sm_86")]
    assert dropped == ()
    assert set(files(out)) == {record.file for record in new.records} | {ENGINES, LOCK}


def test_engines_for_other_targets_and_networks_stay(toy_bundle: Bundle, tmp_path: Path) -> None:
    compiler: Any = Canned()
    for networks, target in ((BOTH, "sm_89"), (ONE, "sm_86"), (BOTH[:1], "sm_120")):
        engines, dropped = build_engines(
            toy_bundle, tmp_path, compiler, EngineOrder(networks=networks, targets=(target,), profile=PROFILE)
        )
        assert dropped == ()
    assert places(engines) == [
        ("attention", "sm_86"),
        ("attention", "sm_89"),
        ("full", "sm_120"),
        ("full", "sm_89"),
    ]


def test_engines_of_another_graph_go_once_the_new_ones_are_there(make_toy_bundle: Any, tmp_path: Path) -> None:
    compiler: Any = Canned()
    out = tmp_path / "engines"
    first = make_toy_bundle(tmp_path / "first")
    old, _ = build_engines(
        first, out, compiler, EngineOrder(networks=BOTH, targets=("sm_86", "sm_89"), profile=PROFILE)
    )
    damaged = old.find("attention", "sm_89")
    renamed = make_toy_bundle(tmp_path / "renamed", name="other", networks=ONE)  # the same graph in another bundle
    old.file(damaged).write_bytes(b"")
    new, dropped = build_engines(renamed, out, compiler, EngineOrder(networks=ONE, targets=("sm_86",), profile=PROFILE))
    assert new.document.bundle_id == renamed.bundle_id
    assert new.records == (old.find("attention", "sm_86"),)
    assert {(one.record.network, one.record.target): one.reason for one in dropped} == {
        ("attention", "sm_89"): "it is damaged",
        ("full", "sm_86"): "it was built from another graph",
        ("full", "sm_89"): "it was built from another graph",
    }
    assert set(files(out)) == {new.records[0].file, ENGINES, LOCK}


def test_timings_of_tensorrt_help_the_next_build(toy_bundle: Bundle, tmp_path: Path) -> None:
    compiler: Any = Canned(timings=b"timed")
    order = EngineOrder(networks=ONE, targets=("sm_86",), profile=PROFILE, force=True)
    for expected in (None, b"timed"):
        build_engines(toy_bundle, tmp_path, compiler, order)
        assert compiler.calls.pop() == ("attention", "sm_86", expected)
    assert (tmp_path / "timings/tensorrt-rtx-9.9-sm_86.cache").read_bytes() == b"timed"
    EngineSet.open(tmp_path)  # no part of the set


# whatever happens, one whole set is there


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EROFS, "cannot write .*Read-only file system"),
        (errno.EACCES, "cannot write"),
    ],
)
@pytest.mark.parametrize("at", ["full/sm_86", "engines.json"])
def test_a_disk_that_refuses_leaves_the_old_set(
    make_toy_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, sentence: str, at: str
) -> None:
    compiler: Any = Canned()
    out = tmp_path / "engines"
    first, second = (make_toy_bundle(tmp_path / name, alpha=alpha) for name, alpha in (("a", 0.05), ("b", 0.2)))
    build_engines(first, out, compiler, EngineOrder(networks=BOTH, targets=("sm_86",), profile=PROFILE))
    before = files(out)
    flush = bundle.files.flush

    def refuse(path: Path) -> None:
        if at.split("/")[-1] in path.name:
            raise OSError(number, os.strerror(number), str(path))
        flush(path)

    monkeypatch.setattr(bundle.files, "flush", refuse)
    with pytest.raises(DiskFull if number == errno.ENOSPC else EngineError, match=sentence):
        build_engines(second, out, compiler, EngineOrder(networks=BOTH, targets=("sm_86",), profile=PROFILE))
    assert files(out) == before
    EngineSet.open(out, first.bundle_id)
    monkeypatch.undo()
    build_engines(second, out, compiler, EngineOrder(networks=BOTH, targets=("sm_86",), profile=PROFILE))
    EngineSet.open(out, second.bundle_id)


DISK_CALLS = {"open", "write", "close", "fsync", "replace", "unlink", "mkdir", "rmdir", "flock"}


class Killer:
    """A profiler that kills its process right before the n-th call that may change what is on the disk."""

    def __init__(self, fatal: int) -> None:
        self.left = fatal

    def __call__(self, frame: types.FrameType, event: str, function: Any) -> None:
        if event != "c_call" or function.__name__ not in DISK_CALLS:
            return
        if function.__module__ in ("posix", "fcntl") or type(function.__self__).__module__ == "_io":
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)


def test_killed_at_any_time_the_folder_holds_the_old_set_or_the_new(make_toy_bundle: Any, tmp_path: Path) -> None:
    """Fork, die by SIGKILL before one call after another that touches the disk, and let the next run finish."""
    compiler: Any = Canned(timings=b"timed")
    first, second = (make_toy_bundle(tmp_path / name, alpha=alpha) for name, alpha in (("a", 0.05), ("b", 0.2)))
    order = EngineOrder(networks=ONE, targets=("sm_86",), profile=PROFILE)
    build_engines(first, tmp_path / "old", compiler, order)
    seen, fatal, status = set(), 0, -signal.SIGKILL
    while status:
        fatal += 1
        out = shutil.copytree(tmp_path / "old", tmp_path / f"{fatal}")
        process = os.fork()
        if not process:
            sys.setprofile(Killer(fatal))
            build_engines(second, out, compiler, order)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        assert status in (0, -signal.SIGKILL)
        seen.add(EngineSet.open(out).document.bundle_id)
        engines, _ = build_engines(second, out, compiler, order)
        timings = f"timings/{compiler.runtime}-{compiler.version}-sm_86.cache"
        assert set(files(out)) == {engines.records[0].file, ENGINES, LOCK, timings}
    assert fatal > 20
    assert seen == {first.bundle_id, second.bundle_id}


def test_a_first_build_that_was_killed_does_not_shut_the_folder(toy_bundle: Bundle, tmp_path: Path) -> None:
    compiler: Any = Canned()
    out = tmp_path / "engines"
    (out / "full").mkdir(parents=True)
    (out / LOCK).touch()
    for left in ("full/sm_86.0123456789abcdef.engine", "full/.sm_86.0123456789abcdef.engine.12345.tmp"):
        (out / left).write_bytes(b"left")
    (out / "full/notes.txt").write_text("not ours")
    build_engines(toy_bundle, out, compiler, EngineOrder(networks=ONE, targets=("sm_86",), profile=PROFILE))
    assert set(files(out)) - {LOCK, ENGINES} == {"full/notes.txt", EngineSet.open(out).records[0].file}


def test_the_second_of_two_at_once_is_sent_away(toy_bundle: Bundle, tmp_path: Path) -> None:
    compiler: Any = Canned()
    order = EngineOrder(networks=ONE, targets=("sm_86",), profile=PROFILE)
    met = []

    def intrude(outcome: Any) -> None:
        with pytest.raises(EngineError, match="another fieldmark engine is building into") as problem:
            build_engines(toy_bundle, tmp_path, compiler, order)
        met.append(problem)

    build_engines(toy_bundle, tmp_path, compiler, order, tell=intrude)
    assert len(met) == 1
    EngineSet.open(tmp_path)


# a runtime that cannot be had here


class Recorder:
    """Any object of a runtime: remembers what it was asked, and answers what it was told to."""

    def __init__(self, kind: str, calls: list[Any], **answers: Any) -> None:
        self.__dict__.update(_kind=kind, _calls=calls, **answers)

    def __setattr__(self, name: str, value: Any) -> None:
        self._calls.append((f"{self._kind}.{name}", value))
        self.__dict__[name] = value

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self._calls.append((f"{self._kind}.{name}", arguments))

        return call


def tensorrt(version: str, calls: list[Any]) -> types.SimpleNamespace:
    """A module with the names that TensorRT's own documents give: 10 with flags for types, 11 without."""
    tensor = Recorder("tensor", calls, name="image", shape=(-1, 32, 32, 3))
    named = types.SimpleNamespace
    layer = named(
        num_outputs=1,
        type=named(name="CONVOLUTION"),
        get_input=lambda index: named(name="x", dtype=named(name="HALF")),
        get_output=lambda index: named(name="y", dtype=named(name="HALF")),
    )
    network = Recorder(
        "network", calls, num_inputs=1, get_input=lambda index: tensor, num_layers=1, get_layer=lambda index: layer
    )
    cache = named(serialize=lambda: b"timings")

    def create_timing_cache(data: bytes) -> Any:
        calls.append(("config.create_timing_cache", (data,)))
        return cache

    config = Recorder(
        "config",
        calls,
        create_timing_cache=create_timing_cache,
        set_timing_cache=lambda cache, ignore: calls.append(("config.set_timing_cache", (cache, ignore))) or True,
        get_timing_cache=lambda: cache,
    )

    def create_network(flags: int) -> Any:
        calls.append(("builder.create_network", (flags,)))
        return network

    builder = Recorder(
        "builder",
        calls,
        create_network=create_network,
        create_builder_config=lambda: config,
        create_optimization_profile=lambda: Recorder("profile", calls),
        build_serialized_network=lambda network, config: b"plan",
    )

    class Base:
        Severity = named(ERROR=1, INTERNAL_ERROR=0)

    return named(
        __version__=version,
        ILogger=Base,
        IProgressMonitor=Base,
        Builder=lambda logger: builder,
        OnnxParser=lambda network, logger: Recorder("parser", calls, parse=lambda data: True),
        NetworkDefinitionCreationFlag=named(STRONGLY_TYPED=1) if version.startswith("10") else named(),
        ProfilingVerbosity=named(DETAILED="detailed"),
        BuilderFlag=named(TF32="tf32"),
    )


@pytest.mark.parametrize(("version", "flags"), [("10.7.0", 2), ("11.4.1", 0)])
def test_tensorrt_builds_for_its_own_gpu_and_keeps_its_timings(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, flags: int
) -> None:
    calls: list[Any] = []
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt(version, calls))
    compiler = Compiler.open("tensorrt")
    assert (compiler.version, compiler.targets()) == (version, ())
    with pytest.raises(OptionError, match=r"no GPU here that --target local could mean.*machine with the GPU"):
        compiler.resolve("local")
    monkeypatch.setattr(export.engines.compiler, "local_target", lambda: "sm_86")
    monkeypatch.setattr(Compiler, "load", lambda self, data: types.SimpleNamespace(create_engine_inspector=inspector))
    told = {"Layers": [{"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Row major FP32"}]}]}
    compiler.trt.LayerInformationFormat = types.SimpleNamespace(JSON="json")

    def inspector() -> Any:
        return types.SimpleNamespace(get_engine_information=lambda form: json.dumps(told))

    assert (compiler.resolve("local"), compiler.resolve("sm_86")) == ("sm_86", "sm_86")
    with pytest.raises(OptionError, match=r"tensorrt .* cannot build for sm_89 here.*GPU of its own machine.*sm_86"):
        compiler.resolve("sm_89")
    engines, _ = build_engines(
        toy_bundle, tmp_path, compiler, EngineOrder(networks=ONE, targets=("sm_86",), profile=PROFILE)
    )
    assert engines.records[0].evidence == Evidence(source=INSPECTOR, layers={CONVOLUTION: {"FLOAT": 1}})
    assert engines.file(engines.records[0]).read_bytes() == b"plan"
    assert (tmp_path / f"timings/tensorrt-{version}-sm_86.cache").read_bytes() == b"timings"
    assert ("builder.create_network", (flags,)) in calls
    assert ("config.clear_flag", ("tf32",)) in calls
    assert ("config.create_timing_cache", (b"",)) in calls
    assert ("profile.set_shape", ("image", (1, 32, 32, 3), (2, 32, 32, 3), (4, 32, 32, 3))) in calls
    assert not [call for call in calls if "set_flag" in call[0] or "compute_capability" in call[0]]
    calls.clear()
    build_engines(
        toy_bundle, tmp_path, compiler, EngineOrder(networks=ONE, targets=("sm_86",), profile=PROFILE, force=True)
    )
    assert ("config.create_timing_cache", (b"timings",)) in calls


# on a GPU


def answers(count: int = 200) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        tensors.PROBABILITIES: random.dirichlet(np.ones(5), count).astype(np.float32),
        tensors.INSTANCE_SCORE: random.normal(0, 30, count).astype(np.float32),
        tensors.P_VALUE: random.uniform(0, 1, count).astype(np.float32),
        tensors.IS_ADVERSARIAL: random.uniform(0, 1, count) < 0.5,
        tensors.LAYER_SCORES: random.uniform(0, 900, (count, 2)).astype(np.float32),
        tensors.ATTENTION: random.uniform(0, 1, (count, 4, 4)).astype(np.float32),
        tensors.PROTOTYPE_INDICES: np.stack([random.permutation(10)[:3] for _ in range(count)]),
        tensors.PROTOTYPE_SIMILARITIES: random.uniform(0, 9, (count, 3)).astype(np.float32),
    }


def test_answers_that_are_the_same_to_rounding_are_the_same() -> None:
    expected, found = answers(), answers()
    assert set(check_answers(expected, found, "fp32", "it").values()) == {0.0}
    found[tensors.LAYER_SCORES] += 0.5  # of 900
    found[tensors.IS_ADVERSARIAL][0] ^= True  # one of 200
    found[tensors.PROTOTYPE_INDICES][:, :2] = found[tensors.PROTOTYPE_INDICES][:, 1::-1].copy()
    differences = check_answers(expected, found, "fp32", "it")
    assert differences[tensors.LAYER_SCORES] == pytest.approx(0.5 / 900, rel=0.1)
    assert differences[tensors.IS_ADVERSARIAL] == pytest.approx(1 / 200)


@pytest.mark.parametrize("name", tensors.OUTPUTS[tensors.FULL])
def test_any_output_that_differs_is_refused(name: str) -> None:
    expected, found = answers(), answers()
    found[name] = np.roll(found[name], 1, axis=0)
    with pytest.raises(EngineError, match=f"^it: .*{'labels|' * (name == tensors.PROBABILITIES)}{name}"):
        check_answers(expected, found, "fp16", "it")
    if found[name].dtype == np.float32:
        found[name] = np.full_like(expected[name], np.nan)
        with pytest.raises(EngineError):
            check_answers(expected, found, "fp16", "it")
    found[name] = expected[name][:-1]
    with pytest.raises(EngineError, match=f"^it: {name} is "):
        check_answers(expected, found, "fp16", "it")


def test_a_bfloat16_graph_is_held_against_the_same_in_float32(bundles: dict[str, Bundle]) -> None:
    """ONNX Runtime on a processor refuses the one and runs the other; weights are as coarse, sums are not."""
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    for network in BOTH:
        narrow, exact = (onnx.load(bundles[precision].model(network)) for precision in ("bf16", "fp32"))
        with pytest.raises(ExportError, match="cannot run the graph"):
            GraphSession(narrow)
        found, expected = GraphSession(widened(narrow)).run(images), GraphSession(exact).run(images)
        difference = np.abs(found[tensors.PROBABILITIES] - expected[tensors.PROBABILITIES]).max()
        assert 0 < difference < 0.1


@pytest.mark.skipif(local_target() is None, reason="no GPU")
@needs_rtx
@pytest.mark.parametrize("precision", TYPES)
def test_on_a_gpu_the_engine_answers_as_onnx_runtime(
    rtx: Compiler, bundles: dict[str, Bundle], tmp_path: Path, precision: str
) -> None:
    exported, target = bundles[precision], rtx.resolve("local")
    engines, _ = build_engines(exported, tmp_path, rtx, EngineOrder(networks=BOTH, targets=(target,), profile=PROFILE))
    for record in engines.records:
        assert record.evidence.source == INSPECTOR
        check = check_engine(rtx, engines, record, exported)
        assert set(check.differences) == set(tensors.OUTPUTS[record.network])
        assert 0 < check.median_ms <= check.p95_ms
