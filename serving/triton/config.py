"""config.pbtxt of one network, for each of the three backends that can serve a bundle, through Triton's own protobuf.

| backend | what a version holds | where it runs |
|---|---|---|
| `python` | model.onnx and model.py | ONNX Runtime on the processor; any Triton with the Python backend |
| `onnxruntime` | model.onnx | ONNX Runtime on processor or GPU; on a GPU also through TensorRT (`accelerator`) |
| `tensorrt` | model.plan | a TensorRT engine on a GPU |

Triton wants at least one dimension besides the batch, so a tensor of shape [N] is declared as [N, 1] there, with a
reshape; `serving.client.remote` gives it back as [N]. All else has the shapes of the manifest.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle import tensors
from bundle.engines import EngineRecord
from bundle.errors import BundleUnsupported, OptionError, RepositoryError
from bundle.manifest import INT8, Manifest
from bundle.records import to_plain

# Parameters of a configuration, which whoever reaches Triton can read: so none of them names a place of the machine.
# The first two are read by `serving.client.remote`, the next two by `serving.triton.repository`.
BUNDLE_ID = "bundle_id"
MANIFEST = "manifest"
VERSIONS = "versions"
SETTINGS = "settings"
INTRA_OP_THREADS = "intra_op_threads"  # read by model.py

PYTHON, ONNXRUNTIME, TENSORRT = "python", "onnxruntime", "tensorrt"
BACKENDS = (PYTHON, ONNXRUNTIME, TENSORRT)
AUTO, CPU, GPU = "auto", "cpu", "gpu"
NONE = "none"
MODEL_FILES = {PYTHON: "model.onnx", ONNXRUNTIME: "model.onnx", TENSORRT: "model.plan"}

MAX_BATCH_SIZE = 64
LARGEST_BATCH = 4096  # the exported graphs promise no more
PREFERRED_BATCH_SIZES = (8, 16, 32, MAX_BATCH_SIZE)
WARM_UP_BATCH = 8
QUEUE_DELAY_MICROSECONDS = 100
QUEUE_TIMEOUT_MICROSECONDS = 1_000_000
CORES_PER_INSTANCE = 4  # of the Python backend, where each instance is a process
MAX_INSTANCES = 4  # each one holds its own copy of the weights
MAX_NATIVE_INSTANCES = 8  # of one thread each while there are no more cores; they hold such copies, too
ENGINE_CACHE = "/tmp"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a repository is served, whichever version. It is kept in each configuration, so that a roll-back keeps it.

    `cores` are those of the machine that serves; `instances` those of each network, None for as many as suit the cores;
    `max_batch` images, None for 64 or what the engines take; `queue_size` requests that may wait, 0 for no limit;
    `engine_cache` an existing folder of the server, in which the accelerator TensorRT makes one for its engines.
    """

    cores: int
    backend: str = PYTHON
    device: str = AUTO
    instances: int | None = None
    max_batch: int | None = None
    queue_size: int = 0
    accelerator: str = NONE
    engine_cache: str = ENGINE_CACHE

    def __post_init__(self) -> None:
        for option, value, known in (
            ("backend", self.backend, BACKENDS),
            ("device", self.device, (AUTO, CPU, GPU)),
            ("accelerator", self.accelerator, (NONE, TENSORRT)),
        ):
            if value not in known:
                raise ValueError(f"--{option} {value[:80]!r} is none of {', '.join(known)}")
        if min(self.cores, self.instances or 1) < 1 or self.queue_size < 0:
            raise ValueError("--cores and --instances are at least 1, --queue-size at least 0")
        if not 1 <= (self.max_batch or 1) <= LARGEST_BATCH:
            raise ValueError(f"--max-batch {self.max_batch} is not between 1 and {LARGEST_BATCH}")
        if self.backend == PYTHON and self.device == GPU:
            raise ValueError("--device gpu needs a native backend; the python backend runs on the processor")
        if self.backend == TENSORRT and self.device == CPU:
            raise ValueError("--device cpu cannot be: a TensorRT engine runs on a GPU")
        if self.backend == PYTHON and self.queue_size:
            raise ValueError("--queue-size is not for the python backend: its Triton stalls with any queue policy")
        if self.accelerator == TENSORRT and (self.backend != ONNXRUNTIME or self.device == CPU):
            raise ValueError("--accelerator tensorrt is for --backend onnxruntime on a GPU")
        if not self.engine_cache.startswith("/") or not self.engine_cache.isprintable():
            raise ValueError("--engine-cache is not an absolute path")
        if self.on_cpu and self.count > self.cores:
            raise ValueError(f"--instances {self.count} are more than the {self.cores} cores; they would take turns")

    @property
    def on_cpu(self) -> bool:
        return self.backend == PYTHON or self.device == CPU

    @property
    def count(self) -> int:
        """Instances of a network; on a GPU, of each GPU."""
        if self.instances or not self.on_cpu:
            return self.instances or 1
        # Instances of one thread each have no idle threads to spin, and batches of one do not wait for each other.
        return min(MAX_NATIVE_INSTANCES, self.cores) if self.backend == ONNXRUNTIME else share_cores(self.cores)[0]

    @property
    def threads(self) -> int:
        """ONNX Runtime threads of an instance: instances x threads never exceed the cores. 0 for TensorRT."""
        return 0 if self.backend == TENSORRT else max(1, self.cores // self.count)


@dataclass(frozen=True, kw_only=True)
class Served:
    """The version that a configuration serves. `warm_up` is a file of `warmup/` with the bytes of one image, empty for
    random data; `engines` are those of this network.
    """

    number: int
    manifest: Manifest
    warm_up: str = ""
    engines: tuple[EngineRecord, ...] = ()


def settle(before: Settings | None, asked: Mapping[str, Any]) -> Settings:
    """The settings asked for (None: not asked), over those that a repository has; raises OptionError."""
    known = {"cores": available_cores()} if before is None else dict(to_plain(before))
    backend, wanted = known.get("backend"), asked.get("backend")
    if backend and wanted and backend != wanted:
        raise OptionError(
            f"the repository was written for --backend {backend}, and --backend {wanted} is asked for",
            hint="Its other versions could not be served so. Choose another --out.",
        )
    try:
        return Settings(**{**known, **{name: value for name, value in asked.items() if value is not None}})
    except ValueError as problem:
        raise OptionError(str(problem)) from None


def config_text(network: str, settings: Settings, served: Served, versions: Mapping[int, str]) -> str:
    """config.pbtxt of one network; `versions` is the history, number -> bundle id."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(model_config(network, settings, served, versions), as_utf8=True))


def model_config(network: str, settings: Settings, served: Served, versions: Mapping[int, str]) -> Any:
    """The ModelConfig message of one network."""
    from tritonclient.grpc import model_config_pb2 as protobuf

    info = served.manifest.networks[network]
    largest = max_batch(settings, served.engines)
    config = protobuf.ModelConfig(name=network, backend=settings.backend, max_batch_size=largest)
    config.version_policy.specific.versions.append(served.number)
    for tensor in info.inputs:
        config.input.add(name=tensor.name, data_type=_data_type(tensor.dtype), dims=tensor.shape)
    for tensor in info.outputs:
        output = config.output.add(name=tensor.name, data_type=_data_type(tensor.dtype), dims=tensor.shape or (1,))
        if not tensor.shape:
            output.reshape.SetInParent()
        if tensor.name == tensors.PROBABILITIES:
            output.label_filename = "labels.txt"
    _add_batching(config, settings, largest)
    _add_instances(config, settings, served)
    _add_warm_up(config, served, largest)
    if settings.backend == ONNXRUNTIME:
        config.default_model_filename = MODEL_FILES[ONNXRUNTIME]
        _add_accelerator(config, settings, served, largest)
    if settings.backend == TENSORRT:
        _add_engines(config, served, largest)

    parameters = {
        BUNDLE_ID: served.manifest.bundle_id,
        MANIFEST: served.manifest.to_json(),
        VERSIONS: json.dumps({str(number): versions[number] for number in sorted(versions)}),
        SETTINGS: json.dumps(to_plain(settings)),
        **_thread_parameters(settings),
    }
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config


def check_accelerator(manifest: Manifest, network: str, settings: Settings) -> None:
    """Raise BundleUnsupported for a network whose types TensorRT would not take without being told a precision."""
    if settings.accelerator == TENSORRT and manifest.networks[network].precision == INT8:
        raise BundleUnsupported(
            f"the int8 network {network!r} cannot go through --accelerator tensorrt",
            hint="Build engines, which are strongly typed: fieldmark engine, then --backend tensorrt --engines.",
        )


def max_batch(settings: Settings, engines: tuple[EngineRecord, ...]) -> int:
    """The largest batch of a network: what is asked for, or 64; of TensorRT engines, what all their profiles take."""
    if not engines:
        return settings.max_batch or MAX_BATCH_SIZE
    taken = min(record.profile.max for record in engines)
    if first := max(record.profile.min for record in engines) - 1:
        raise RepositoryError(
            f"the engines of {engines[0].network} take no batch below {first + 1}, and a request may hold one image",
            hint="Build them with a profile that begins at 1: fieldmark engine.",
        )
    if settings.max_batch is not None and settings.max_batch > taken:
        raise RepositoryError(
            f"--max-batch {settings.max_batch} is more than the {taken} images that the engines of "
            f"{engines[0].network} take",
            hint="Ask for a smaller one, or build the engines with a larger profile.",
        )
    return settings.max_batch or taken


def preferred_batches(largest: int) -> tuple[int, ...]:
    """Batch sizes that the dynamic batcher sends off at once, the largest last."""
    return (*(size for size in PREFERRED_BATCH_SIZES if size < largest), largest)


def plan_files(engines: tuple[EngineRecord, ...]) -> dict[str, str]:
    """Target of each of a network's engines -> its file in a version: model.plan, or one for each of several."""
    if len(engines) == 1:
        return {engines[0].target: MODEL_FILES[TENSORRT]}
    return {record.target: f"model_{record.target}.plan" for record in engines}


def share_cores(cores: int) -> tuple[int, int]:
    """The Python backend's (instances of a network, ONNX Runtime threads of each); their product is at most `cores`."""
    instances = min(MAX_INSTANCES, max(1, cores // CORES_PER_INSTANCE))
    return instances, max(1, cores // instances)


def available_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may use: its affinity mask, less a container's CPU quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        limit, period = quota.read_text().split()
        return max(1, min(cores, int(limit) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return cores


def _add_batching(config: Any, settings: Settings, largest: int) -> None:
    batching = config.dynamic_batching
    batching.preferred_batch_size.extend(preferred_batches(largest))
    batching.max_queue_delay_microseconds = QUEUE_DELAY_MICROSECONDS
    # No queue policy unless asked for: with any (a size, a timeout), Triton 2.51 stops prefetching and misses its own
    # wake-ups, so that one request in a hundred waits half a second (measured with the Python backend: p99 503 ms with
    # a size, 5 ms without). The batcher is Triton's own, so a native backend there would fare no better.
    if settings.queue_size:
        batching.default_queue_policy.max_queue_size = settings.queue_size
        batching.default_queue_policy.default_timeout_microseconds = QUEUE_TIMEOUT_MICROSECONDS


def _add_instances(config: Any, settings: Settings, served: Served) -> None:
    from tritonclient.grpc import model_config_pb2 as protobuf

    kinds = protobuf.ModelInstanceGroup
    kind = kinds.KIND_CPU if settings.on_cpu else kinds.KIND_AUTO
    if settings.device == GPU or settings.backend == TENSORRT:
        kind = kinds.KIND_GPU
    group = config.instance_group.add(count=settings.count, kind=kind)
    if served.engines:
        group.profile.append("0")  # an engine of ours has one optimisation profile


def _add_warm_up(config: Any, served: Served, largest: int) -> None:
    """The first request of a kind pays for allocations (TensorRT: for engines); let it be ours, with a true image.

    Triton makes a batch of N out of N requests, each with the whole file, so the file holds one image.
    """
    for size in sorted({1, min(WARM_UP_BATCH, largest)}):
        warm_up = config.model_warmup.add(name=f"batch of {size}", batch_size=size)
        for tensor in served.manifest.networks[config.name].inputs:
            data = warm_up.inputs[tensor.name]
            data.data_type = _data_type(tensor.dtype)
            data.dims.extend(tensor.shape)
            if served.warm_up:
                data.input_data_file = served.warm_up
            else:
                data.random_data = True


def _add_accelerator(config: Any, settings: Settings, served: Served, largest: int) -> None:
    if settings.accelerator != TENSORRT:
        return
    image = served.manifest.networks[config.name].inputs[0]
    shape = "x".join(map(str, image.shape))
    # The name of a cached engine does not depend on the weights: two bundles of one architecture would share it, and
    # the second be answered by the first. So each has a folder of its own (ONNX Runtime makes its last part only).
    cache = f"{settings.engine_cache.rstrip('/')}/fieldmark-{config.name}-{served.manifest.bundle_id}"
    # No precision_mode: it is a permission to compute anything in that precision, the detector too, whose p-values were
    # calibrated in float32 (docs/decisions/011). What the graph says is what there is.
    parameters = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": cache,
        # Without a profile, every batch size beyond those seen builds the engine anew, while a request waits.
        "trt_profile_min_shapes": f"{image.name}:1x{shape}",
        "trt_profile_opt_shapes": f"{image.name}:{min(WARM_UP_BATCH, largest)}x{shape}",
        "trt_profile_max_shapes": f"{image.name}:{largest}x{shape}",
    }
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name=TENSORRT)
    for key, value in parameters.items():
        accelerator.parameters[key] = value


def _add_engines(config: Any, served: Served, largest: int) -> None:
    files = plan_files(served.engines)
    config.default_model_filename = next(iter(files.values()))
    if len(files) > 1:
        config.default_model_filename = ""
        for target, file in files.items():
            digits = target.removeprefix("sm_")
            config.cc_model_filenames[f"{digits[:-1]}.{digits[-1]}"] = file
    # Small batches are bound by launching kernels one by one; a captured graph launches them all at once.
    cuda = config.optimization.cuda
    cuda.graphs = True
    for size in sorted({1, *preferred_batches(largest)}):
        graph = cuda.graph_spec.add(batch_size=size)
        for tensor in served.manifest.networks[config.name].inputs:
            graph.input[tensor.name].dim.extend(tensor.shape)


def _thread_parameters(settings: Settings) -> dict[str, str]:
    if settings.backend == PYTHON:
        return {INTRA_OP_THREADS: str(settings.threads)}
    if settings.backend == ONNXRUNTIME:
        # Operators run one after another (execution_mode 0), so a second pool of threads would only idle.
        return {"intra_op_thread_count": str(settings.threads), "inter_op_thread_count": "1", "execution_mode": "0"}
    return {}


def _data_type(dtype: str) -> int:
    from tritonclient.grpc import model_config_pb2 as protobuf

    return int(protobuf.DataType.Value(f"TYPE_{dtype}"))
