"""The Triton repository of a bundle: what Triton and a client will read in it."""

import ast
import dataclasses
import os
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as protobuf

from bundle import Bundle, tensors
from bundle.manifest import parse_manifest
from serving import repository


def parse_config(folder: Path, network: str) -> protobuf.ModelConfig:
    return text_format.Parse((folder / network / "config.pbtxt").read_text(encoding="utf-8"), protobuf.ModelConfig())


@pytest.mark.parametrize("network", tensors.NETWORKS)
def test_config_declares_the_manifests_tensors(toy_bundle: Bundle, tmp_path: Path, network: str) -> None:
    config = parse_config(repository.write_repository(toy_bundle, tmp_path / "models", cores=2), network)
    info = toy_bundle.manifest.networks[network]
    assert (config.name, config.backend, config.max_batch_size) == (network, "python", 64)
    assert [(each.name, protobuf.DataType.Name(each.data_type), tuple(each.dims)) for each in config.input] == [
        ("image", "TYPE_UINT8", (32, 32, 3))
    ]
    assert [each.name for each in config.output] == list(tensors.OUTPUTS[network])
    for output, tensor in zip(config.output, info.outputs, strict=True):
        assert protobuf.DataType.Name(output.data_type) == f"TYPE_{tensor.dtype}"
        # Triton refuses an output without dimensions: a scalar is [1] outside and [] inside.
        assert tuple(output.dims) == (tensor.shape or (1,))
        assert output.HasField("reshape") == (tensor.shape == ())
        assert not output.reshape.shape
    assert not config.dynamic_batching.HasField("default_queue_policy")  # it costs half a second now and then
    assert max(config.dynamic_batching.preferred_batch_size) == config.max_batch_size
    assert 0 < config.dynamic_batching.max_queue_delay_microseconds <= 1000
    assert [warm_up.batch_size for warm_up in config.model_warmup] == [1, 8]
    assert config.instance_group[0].kind == protobuf.ModelInstanceGroup.KIND_CPU
    assert config.instance_group[0].count * int(config.parameters["intra_op_threads"].string_value) <= 2


def test_parameters_carry_the_whole_manifest(toy_bundle: Bundle, tmp_path: Path) -> None:
    config = parse_config(repository.write_repository(toy_bundle, tmp_path / "models"), tensors.FULL)
    manifest = parse_manifest(config.parameters["manifest"].string_value, "config.pbtxt")
    assert manifest.bundle_id == config.parameters["bundle_id"].string_value == toy_bundle.bundle_id
    assert config.parameters["bundle_path"].string_value == str(toy_bundle.path)


def test_files_of_a_network(toy_bundle: Bundle, tmp_path: Path) -> None:
    folder = repository.write_repository(toy_bundle, tmp_path / "models")
    assert sorted(path.name for path in folder.iterdir()) == sorted(tensors.NETWORKS)
    assert (folder / "full/1/model.onnx").read_bytes() == toy_bundle.model("full").read_bytes()
    assert (folder / "attention/1/model.onnx").read_bytes() == toy_bundle.model("attention").read_bytes()
    assert (folder / "full/labels.txt").read_text().splitlines() == list(toy_bundle.manifest.labels)
    config = parse_config(folder, "full")
    assert [each.name for each in config.output if each.label_filename == "labels.txt"] == ["probabilities"]


def test_odd_labels_survive(toy_bundle: Bundle, tmp_path: Path) -> None:
    labels = ('Grünspecht "der Große"', "a, b: c", "back\\slash", "${HOME} } {", "鳥")
    odd = Bundle(toy_bundle.path, dataclasses.replace(toy_bundle.manifest, labels=labels))
    folder = repository.write_repository(odd, tmp_path / "models")
    manifest = parse_manifest(parse_config(folder, "full").parameters["manifest"].string_value, "config.pbtxt")
    assert manifest.labels == labels
    assert manifest.bundle_id == odd.bundle_id
    lines = (folder / "full/labels.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ['Grünspecht "der Große"', "a, b: c", "back\\slash"]
    assert len(lines) == len(labels)


@pytest.mark.parametrize(
    ("cores", "expected"), [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (8, (2, 4)), (16, (4, 4)), (96, (4, 24))]
)
def test_instances_and_threads_share_the_cores(cores: int, expected: tuple[int, int]) -> None:
    assert repository.share_cores(cores) == expected


def test_instances_times_threads_never_exceed_the_cores() -> None:
    for cores in range(1, 300):
        instances, threads = repository.share_cores(cores)
        assert instances >= 1
        assert threads >= 1
        assert cores - instances < instances * threads <= cores


@pytest.mark.parametrize(
    ("quota", "expected"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None)]
)
def test_a_containers_quota_counts(tmp_path: Path, quota: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    cores = len(os.sched_getaffinity(0))
    assert repository.available_cores(tmp_path / "cpu.max") == (cores if expected is None else expected)
    assert repository.available_cores(tmp_path / "absent") == cores


def test_adapter_stands_alone() -> None:
    """It is copied into a model folder and runs in Triton's stub, where nothing of this project can be imported."""
    tree = ast.parse(Path(repository.__file__).with_name("triton_model.py").read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    outside = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert outside == {"numpy", "onnxruntime", "triton_python_backend_utils"}
