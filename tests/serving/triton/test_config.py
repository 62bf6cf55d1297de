"""What Triton and a client read in config.pbtxt, for each flavour."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as protobuf

from bundle import Bundle, tensors
from bundle.errors import BundleUnsupported, OptionError
from bundle.manifest import parse_manifest
from serving.triton import config as triton_config
from serving.triton.config import ONNXRUNTIME, PYTHON, TENSORRT, Settings, settle
from serving.triton.repository import write_repository
from tests.serving.narrowed import narrowed
from tests.serving.triton.engine_sets import write_engines

GOLDEN = Path(__file__).parent / "golden"
KINDS = protobuf.ModelInstanceGroup
FLAVOURS: dict[str, Settings] = {
    "python": Settings(cores=8),
    "onnxruntime-cpu": Settings(cores=6, backend=ONNXRUNTIME, device="cpu", instances=3, queue_size=256),
    "onnxruntime-auto": Settings(cores=6, backend=ONNXRUNTIME),
    "onnxruntime-tensorrt": Settings(
        cores=6, backend=ONNXRUNTIME, device="gpu", accelerator=TENSORRT, engine_cache="/var/cache/fieldmark/"
    ),
    "tensorrt": Settings(cores=6, backend=TENSORRT),
    "tensorrt-two-gpus": Settings(cores=6, backend=TENSORRT, instances=2, max_batch=16),
}
Write = Callable[..., Path]


@pytest.fixture
def write(toy_bundle: Bundle, tmp_path: Path) -> Write:
    """`write(settings)` writes the toy's repository; for TensorRT with engines for one target, or `targets`."""

    def make(settings: Settings, targets: tuple[str, ...] = ("sm_86",), bundle: Bundle = toy_bundle) -> Path:
        engines = None
        if settings.backend == TENSORRT:
            engines = write_engines(tmp_path / "engines", bundle, targets=targets)
        return write_repository(bundle, tmp_path / "models", settings, engines=engines)

    return make


def parse_config(folder: Path, network: str) -> Any:
    return text_format.Parse((folder / network / "config.pbtxt").read_text(encoding="utf-8"), protobuf.ModelConfig())


def texts(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_golden(flavour: str, write: Write, toy_bundle: Bundle) -> None:
    """Byte for byte. FIELDMARK_WRITE_GOLDEN=1 python -m pytest tests/serving/triton/test_config.py writes them anew:
    look at the difference before you commit it."""
    targets = ("sm_120", "sm_80") if flavour == "tensorrt-two-gpus" else ("sm_86",)
    folder = write(FLAVOURS[flavour], targets)
    text = (folder / "full" / "config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(text, protobuf.ModelConfig())
    # What depends on the versions of the libraries that made the toy.
    for value, name in (
        (toy_bundle.manifest.to_json(), "MANIFEST"),
        (toy_bundle.bundle_id, "ID"),
    ):
        escaped = text_format.MessageToString(KINDS(name=value), as_utf8=True).removeprefix('name: "').rstrip('"\n')
        assert escaped in text
        text = text.replace(escaped, f"<{name}>")
    if os.environ.get("FIELDMARK_WRITE_GOLDEN"):
        (GOLDEN / f"{flavour}.pbtxt").write_text(text, encoding="utf-8")
    assert text == (GOLDEN / f"{flavour}.pbtxt").read_text(encoding="utf-8")
    assert text_format.MessageToString(config, as_utf8=True).encode() == (folder / "full/config.pbtxt").read_bytes()


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("network", tensors.NETWORKS)
def test_every_flavour_declares_the_manifests_tensors(
    flavour: str, network: str, write: Write, toy_bundle: Bundle
) -> None:
    settings = FLAVOURS[flavour]
    config = parse_config(write(settings), network)
    info = toy_bundle.manifest.networks[network]
    assert (config.name, config.backend) == (network, settings.backend)
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
    assert [each.name for each in config.output if each.label_filename == "labels.txt"] == ["probabilities"]
    assert list(config.version_policy.specific.versions) == [1]
    assert json.loads(texts(config)["versions"]) == {"1": toy_bundle.bundle_id}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_flavour_batches(flavour: str, write: Write) -> None:
    settings = FLAVOURS[flavour]
    config = parse_config(write(settings), "full")
    sizes = list(config.dynamic_batching.preferred_batch_size)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == config.max_batch_size
    assert 0 < config.dynamic_batching.max_queue_delay_microseconds <= 1000
    # A queue policy costs half a second now and then: only where somebody asks for it.
    policy = config.dynamic_batching.default_queue_policy
    assert config.dynamic_batching.HasField("default_queue_policy") == bool(settings.queue_size)
    assert policy.max_queue_size == settings.queue_size
    assert bool(policy.default_timeout_microseconds) == bool(settings.queue_size)
    assert [warm_up.batch_size for warm_up in config.model_warmup] == [1, 8]
    assert {warm_up.inputs["image"].input_data_file for warm_up in config.model_warmup} == {"1.raw"}


@pytest.mark.parametrize(
    ("settings", "kind", "count", "threads"),
    [
        (Settings(cores=2), KINDS.KIND_CPU, 1, 2),
        (Settings(cores=8), KINDS.KIND_CPU, 2, 4),
        (Settings(cores=8, instances=3), KINDS.KIND_CPU, 3, 2),
        (Settings(cores=2, backend=ONNXRUNTIME, device="cpu"), KINDS.KIND_CPU, 2, 1),
        (Settings(cores=8, backend=ONNXRUNTIME, device="cpu"), KINDS.KIND_CPU, 8, 1),
        (Settings(cores=32, backend=ONNXRUNTIME, device="cpu"), KINDS.KIND_CPU, 8, 4),
        (Settings(cores=8, backend=ONNXRUNTIME, device="cpu", instances=1), KINDS.KIND_CPU, 1, 8),
        (Settings(cores=8, backend=ONNXRUNTIME), KINDS.KIND_AUTO, 1, 8),
        (Settings(cores=8, backend=ONNXRUNTIME, device="gpu", instances=2), KINDS.KIND_GPU, 2, 4),
        (Settings(cores=1, backend=ONNXRUNTIME, device="gpu", instances=4), KINDS.KIND_GPU, 4, 1),
        (Settings(cores=8, backend=TENSORRT), KINDS.KIND_GPU, 1, 0),
    ],
)
def test_instances_and_threads(settings: Settings, kind: int, count: int, threads: int, write: Write) -> None:
    config = parse_config(write(settings), "full")
    assert [(group.kind, group.count) for group in config.instance_group] == [(kind, count)]
    names = {PYTHON: "intra_op_threads", ONNXRUNTIME: "intra_op_thread_count"}
    assert settings.threads == threads
    if settings.backend == TENSORRT:
        assert not {"intra_op_threads", "intra_op_thread_count"} & set(config.parameters)
        assert list(config.instance_group[0].profile) == ["0"]
    else:
        assert texts(config)[names[settings.backend]] == str(threads)


def test_the_accelerator_has_a_cache_for_each_bundle_and_one_profile_for_all_batches(
    write: Write, toy_bundle: Bundle
) -> None:
    """A cached engine's name does not depend on the weights, and without a profile each new batch size builds one."""
    folder = write(FLAVOURS["onnxruntime-tensorrt"])
    caches = set()
    for network in tensors.NETWORKS:
        (accelerator,) = parse_config(folder, network).optimization.execution_accelerators.gpu_execution_accelerator
        assert accelerator.name == "tensorrt"
        caches.add(accelerator.parameters["trt_engine_cache_path"])
        assert accelerator.parameters["trt_profile_max_shapes"] == "image:64x32x32x3"
    root = "/var/cache/fieldmark/fieldmark"
    assert caches == {f"{root}-{network}-{toy_bundle.bundle_id}" for network in tensors.NETWORKS}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_accelerator_is_given_no_precision(precision: str, write: Write, toy_bundle: Bundle) -> None:
    """It would be allowed to compute the detector in it, too; the types of the graph are all there is."""
    bundle = toy_bundle if precision == "fp32" else narrowed(toy_bundle, precision)
    folder = write(FLAVOURS["onnxruntime-tensorrt"], bundle=bundle)
    for network in tensors.NETWORKS:
        (accelerator,) = parse_config(folder, network).optimization.execution_accelerators.gpu_execution_accelerator
        assert not {"precision_mode", "trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable"} & set(
            accelerator.parameters
        )


def test_the_accelerator_takes_no_int8(write: Write, toy_bundle: Bundle) -> None:
    with pytest.raises(BundleUnsupported, match=r"the int8 network 'full' cannot go through --accelerator tensorrt"):
        write(FLAVOURS["onnxruntime-tensorrt"], bundle=narrowed(toy_bundle, "int8"))


def test_engines_decide_the_largest_batch_and_the_files(write: Write) -> None:
    folder = write(Settings(cores=2, backend=TENSORRT), ("sm_120", "sm_86"))
    config = parse_config(folder, "full")
    assert config.max_batch_size == 32
    assert dict(config.cc_model_filenames) == {"12.0": "model_sm_120.plan", "8.6": "model_sm_86.plan"}
    for name in config.cc_model_filenames.values():
        assert (folder / "full" / "1" / name).is_file()
    assert config.optimization.cuda.graphs
    graphs = [(spec.batch_size, list(spec.input["image"].dim)) for spec in config.optimization.cuda.graph_spec]
    assert graphs == [(size, [32, 32, 3]) for size in (1, 8, 16, 32)]


def test_parameters_carry_the_whole_manifest(write: Write, toy_bundle: Bundle) -> None:
    found = texts(parse_config(write(Settings(cores=2)), tensors.FULL))
    manifest = parse_manifest(found["manifest"], "config.pbtxt")
    assert manifest.bundle_id == found["bundle_id"] == toy_bundle.bundle_id
    assert str(toy_bundle.path) not in str(found)


# Settings


def test_what_is_not_asked_for_stays() -> None:
    before = Settings(cores=3, backend=ONNXRUNTIME, device="cpu", instances=2, queue_size=5, max_batch=16)
    assert settle(before, {"backend": None, "instances": None, "queue_size": None}) == before
    after = settle(before, {"queue_size": 0, "instances": 3, "backend": ONNXRUNTIME})
    assert after == Settings(cores=3, backend=ONNXRUNTIME, device="cpu", instances=3, max_batch=16)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"backend": "pytorch"}, "--backend 'pytorch' is none of python, onnxruntime, tensorrt"),
        ({"device": "tpu"}, "--device 'tpu' is none of auto, cpu, gpu"),
        ({"accelerator": "openvino"}, "--accelerator 'openvino' is none of none, tensorrt"),
        ({"device": "gpu"}, "--device gpu needs a native backend"),
        ({"backend": TENSORRT, "device": "cpu"}, "a TensorRT engine runs on a GPU"),
        ({"queue_size": 9}, "stalls with any queue policy"),
        ({"accelerator": TENSORRT}, "is for --backend onnxruntime on a GPU"),
        ({"backend": ONNXRUNTIME, "device": "cpu", "accelerator": TENSORRT}, "is for --backend onnxruntime on a GPU"),
        ({"instances": 3}, "--instances 3 are more than the 2 cores"),
        ({"max_batch": 5000}, "--max-batch 5000 is not between 1 and 4096"),
        ({"engine_cache": "cache"}, "--engine-cache is not an absolute path"),
        ({"cores": 0}, "are at least 1"),
    ],
)
def test_settings_that_cannot_be(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError) as problem:
        settle(None, {"cores": 2, **asked})
    assert sentence in str(problem.value)


def test_another_backend_than_the_repositorys() -> None:
    with pytest.raises(OptionError, match="was written for --backend python, and --backend onnxruntime is asked"):
        settle(Settings(cores=2), {"backend": ONNXRUNTIME})


@pytest.mark.parametrize(
    ("cores", "expected"), [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (8, (2, 4)), (16, (4, 4)), (96, (4, 24))]
)
def test_instances_and_threads_share_the_cores(cores: int, expected: tuple[int, int]) -> None:
    assert triton_config.share_cores(cores) == expected


def test_instances_times_threads_never_exceed_the_cores() -> None:
    for cores in range(1, 300):
        for settings in (Settings(cores=cores), Settings(cores=cores, instances=1 + cores // 3)):
            assert settings.count >= 1
            assert settings.threads >= 1
            assert cores - settings.count < settings.count * settings.threads <= cores


@pytest.mark.parametrize(
    ("quota", "expected"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None)]
)
def test_a_containers_quota_counts(tmp_path: Path, quota: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    cores = len(os.sched_getaffinity(0))
    assert triton_config.available_cores(tmp_path / "cpu.max") == (cores if expected is None else expected)
    assert triton_config.available_cores(tmp_path / "absent") == cores
