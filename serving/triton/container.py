"""What the gpu image starts: `python -m serving.triton.container BUNDLE` verifies a bundle and becomes tritonserver.

The image's Triton has the native ONNX Runtime backend, which the wheel of `fieldmark serve` lacks: one instance on each
GPU, or on the processor one for each core. The graphs are links into the verified bundle, not copies in the container's
memory. It listens on loopback, where the gateway of the same pod reaches it and nobody else, unless told otherwise.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bundle import Bundle
from bundle.errors import FieldmarkError, ServerError, printable
from serving.client.prediction import check_runtime
from serving.triton.command import restriction
from serving.triton.config import AUTO, CPU, ONNXRUNTIME, Settings, available_cores
from serving.triton.repository import write_repository

SERVER = "tritonserver"
LOOPBACK = "127.0.0.1"
RELEASE = "NVIDIA_TRITON_SERVER_VERSION"  # set by NVIDIA's images, such as 25.08
FIRST_INT8_RELEASE = (25, 8)  # brings ONNX Runtime 1.23; 24.10 brings 1.19.2, and those between were not looked at
OLD_RUNTIME = "1.19.2"


def command(models: Path, host: str = LOOPBACK) -> list[str]:
    """tritonserver's command line: gRPC on 8001, metrics on 8002, no HTTP, nothing that changes the server."""
    options = {
        "model-repository": models,
        "model-control-mode": "none",  # the other modes can load code that a request brings along
        "strict-readiness": "true",
        "exit-on-error": "true",
        "exit-timeout-secs": "20",
        "metrics-config": "summary_latencies=true",
        "grpc-restricted-protocol": restriction(),
        "grpc-address": host,
        "allow-http": "false",  # one body of a few megabytes ends it
        "metrics-address": LOOPBACK,  # and its metrics
    }
    return [SERVER, "--disable-auto-complete-config", *(f"--{name}={value}" for name, value in options.items())]


def device(devices: Path = Path("/dev")) -> str:
    """cpu where no GPU was given to the container: then a network is shared out otherwise; else Triton looks itself."""
    return AUTO if [*devices.glob("nvidia*"), *devices.glob("dxg")] else CPU


def check_image(bundle: Bundle, environment: Mapping[str, str]) -> None:
    """Raise BundleUnsupported for an int8 bundle in an image whose ONNX Runtime is known to be too old for it."""
    release = re.findall(r"\d+", environment.get(RELEASE, ""))[:2]
    if release and tuple(map(int, release)) < FIRST_INT8_RELEASE:
        check_runtime(bundle.manifest, OLD_RUNTIME)


def main(arguments: list[str] | None = None) -> None:
    """Replace this process by tritonserver, so that it gets the container's signals; exit 1 if that cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.triton.container", description="Serve a bundle in a container."
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--host", default=LOOPBACK, help="numeric address of gRPC; who reaches it needs no key")
    options = parser.parse_args(arguments)
    try:
        bundle = Bundle.open(options.bundle)
        check_image(bundle, os.environ)
        settings = Settings(backend=ONNXRUNTIME, device=device(), cores=available_cores())
        models = write_repository(bundle, Path(tempfile.mkdtemp(prefix="fieldmark-models-")), settings, link=True)
        sys.stdout.write(f"bundle {bundle.bundle_id}: {', '.join(bundle.manifest.networks)}\n")
        sys.stdout.flush()
        try:
            os.execvp(SERVER, command(models, options.host))
        except OSError as problem:
            raise ServerError(
                f"{SERVER} cannot be started ({problem.strerror})", hint="This is the entry point of the image."
            ) from None
    except (FieldmarkError, OSError) as problem:
        sys.stderr.write(f"error: {printable(str(problem))}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
