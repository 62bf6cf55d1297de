"""What the production image starts: `python -m serving.container BUNDLE` verifies a bundle and becomes tritonserver.

The image's Triton has the native ONNX Runtime backend, which the wheel of `fieldmark serve` lacks: one instance on each
GPU, or one on the processor. The graphs are links into the verified bundle, not copies in the container's memory.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from bundle import Bundle
from bundle.errors import FieldmarkError, ServerError, printable
from serving.repository import write_repository
from serving.triton_command import restriction
from serving.triton_config import ONNXRUNTIME, Settings, available_cores

SERVER = "tritonserver"


def command(models: Path) -> list[str]:
    """tritonserver's command line: gRPC on 8001, HTTP on 8000, metrics on 8002, nothing that changes the server."""
    secret = restriction()
    options = {
        "model-repository": models,
        "model-control-mode": "none",  # the other modes can load code that a request brings along
        "strict-readiness": "true",
        "exit-on-error": "true",
        "exit-timeout-secs": "20",
        "metrics-config": "summary_latencies=true",
        "grpc-restricted-protocol": secret,
        "http-restricted-api": secret,
    }
    return [SERVER, "--disable-auto-complete-config", *(f"--{name}={value}" for name, value in options.items())]


def main(arguments: list[str] | None = None) -> None:
    """Replace this process by tritonserver, so that it gets the container's signals; exit 1 if that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m serving.container", description="Serve a bundle in a container.")
    parser.add_argument("bundle", type=Path)
    options = parser.parse_args(arguments)
    try:
        bundle = Bundle.open(options.bundle)
        settings = Settings(backend=ONNXRUNTIME, cores=available_cores())
        models = write_repository(bundle, Path(tempfile.mkdtemp(prefix="fieldmark-models-")), settings, link=True)
        sys.stdout.write(f"bundle {bundle.bundle_id}: {', '.join(bundle.manifest.networks)}\n")
        sys.stdout.flush()
        try:
            os.execvp(SERVER, command(models))
        except OSError as problem:
            raise ServerError(
                f"{SERVER} cannot be started ({problem.strerror})", hint="This is the entry point of the image."
            ) from None
    except (FieldmarkError, OSError) as problem:
        sys.stderr.write(f"error: {printable(str(problem))}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
