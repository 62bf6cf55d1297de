"""A bundle as a Triton model repository: one model per network, named as the network is, served by `triton_model.py`.

    REPOSITORY/full/config.pbtxt       batching, instances, warm-up, and in its parameters the bundle's whole manifest
              /full/labels.txt         one label a line, for Triton's own classification extension
              /full/1/model.py         serving/triton_model.py
              /full/1/model.onnx
              /attention/...

Triton wants at least one dimension besides the batch, so a tensor of shape [N] is declared as [N, 1] there, with a
reshape; `serving.client` gives it back as [N]. All else has the shapes of the manifest.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from bundle import Bundle, tensors
from bundle.files import write_text

BUNDLE_ID = "bundle_id"
MANIFEST = "manifest"
BUNDLE_PATH = "bundle_path"
INTRA_OP_THREADS = "intra_op_threads"

MAX_BATCH_SIZE = 64
PREFERRED_BATCH_SIZES = (8, 16, 32, MAX_BATCH_SIZE)
QUEUE_DELAY_MICROSECONDS = 100
CORES_PER_INSTANCE = 4
MAX_INSTANCES = 4  # each one holds its own copy of the weights


def write_repository(bundle: Bundle, folder: Path, *, cores: int | None = None) -> Path:
    """Write a model repository for every network of `bundle` into the empty or absent `folder`; returns it."""
    cores = available_cores() if cores is None else cores
    for network in bundle.manifest.networks:
        version = folder / network / "1"
        version.mkdir(parents=True)
        shutil.copyfile(bundle.model(network), version / "model.onnx")
        shutil.copyfile(Path(__file__).with_name("triton_model.py"), version / "model.py")
        write_text(version.parent / "labels.txt", "".join(f"{label}\n" for label in bundle.manifest.labels))
        write_text(version.parent / "config.pbtxt", config_text(bundle, network, cores))
    return folder


def config_text(bundle: Bundle, network: str, cores: int) -> str:
    """config.pbtxt of one network, through Triton's own protobuf."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(model_config(bundle, network, cores), as_utf8=True))


def model_config(bundle: Bundle, network: str, cores: int) -> Any:
    """The ModelConfig message of one network."""
    from tritonclient.grpc import model_config_pb2 as protobuf

    info = bundle.manifest.networks[network]
    config = protobuf.ModelConfig(name=network, backend="python", max_batch_size=MAX_BATCH_SIZE)
    for tensor in info.inputs:
        config.input.add(name=tensor.name, data_type=_data_type(tensor.dtype), dims=tensor.shape)
    for tensor in info.outputs:
        output = config.output.add(name=tensor.name, data_type=_data_type(tensor.dtype), dims=tensor.shape or (1,))
        if not tensor.shape:
            output.reshape.SetInParent()
        if tensor.name == tensors.PROBABILITIES:
            output.label_filename = "labels.txt"

    # No queue policy: with any (a size, a timeout), Triton 2.51 stops prefetching and misses its own wake-ups, so that
    # one request in a hundred waits half a second (measured: p99 503 ms with a size, 5 ms without).
    config.dynamic_batching.preferred_batch_size.extend(PREFERRED_BATCH_SIZES)
    config.dynamic_batching.max_queue_delay_microseconds = QUEUE_DELAY_MICROSECONDS

    instances, threads = share_cores(cores)
    config.instance_group.add(count=instances, kind=protobuf.ModelInstanceGroup.KIND_CPU)
    for size in (1, PREFERRED_BATCH_SIZES[0]):  # the first request of a kind pays for allocations; let it be ours
        warm_up = config.model_warmup.add(name=f"batch of {size}", batch_size=size)
        for tensor in info.inputs:
            data = warm_up.inputs[tensor.name]
            data.data_type, data.random_data = _data_type(tensor.dtype), True
            data.dims.extend(tensor.shape)

    parameters = {
        BUNDLE_ID: bundle.bundle_id,
        MANIFEST: bundle.manifest.to_json(),
        BUNDLE_PATH: os.fsencode(bundle.path.resolve()).decode("utf-8", "replace"),
        INTRA_OP_THREADS: str(threads),
    }
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config


def share_cores(cores: int) -> tuple[int, int]:
    """(instances of a network, ONNX Runtime threads of each); their product never exceeds `cores`."""
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


def _data_type(dtype: str) -> int:
    from tritonclient.grpc import model_config_pb2 as protobuf

    return int(protobuf.DataType.Value(f"TYPE_{dtype}"))
