"""What Triton costs: one image over gRPC against the same graph in process, in the same run."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import paired
from bundle import tensors
from bundle.folder import Bundle
from demo.endpoint import served
from serving.client.local import LocalInference
from serving.client.remote import TritonInference

ROUNDS = 200


def measure_endpoint(bundle_path: Path) -> dict[str, Any]:
    """Milliseconds at batch 1, in process (first) and over gRPC (second), and their ratio."""
    bundle = Bundle.open(bundle_path)
    local = LocalInference(bundle)
    spec = bundle.manifest.image
    image = np.random.default_rng(0).integers(0, 256, (1, spec.height, spec.width, 3), dtype=np.uint8)
    result: dict[str, Any] = {"bundle_id": bundle.bundle_id, "image": [spec.height, spec.width], "batch": 1}
    with served(bundle_path) as endpoint:
        remote = TritonInference.connect(endpoint["grpc_url"])
        for network in tensors.NETWORKS:
            if not all(
                np.array_equal(local.infer(image, network)[name], remote.infer(image, network)[name])
                for name in tensors.OUTPUTS[network]
            ):
                result.setdefault("differs_from_in_process", []).append(network)
            result[network] = paired(
                partial(local.infer, image, network),
                partial(remote.infer, image, network),
                rounds=ROUNDS,
            )
    return result
