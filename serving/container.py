"""What the production image starts: `python -m serving.container BUNDLE` verifies a bundle and becomes tritonserver.

The image's Triton has the native ONNX Runtime backend, which the wheel of `fieldmark serve` lacks. The model repository
is the same but for three things: the backend, no adapter, and one instance on each GPU, or one on the processor.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from bundle import Bundle
from bundle.errors import FieldmarkError, ServerError, printable
from bundle.files import write_text
from serving.repository import available_cores, model_config
from serving.server import restriction

SERVER = "tritonserver"


def native_config(bundle: Bundle, network: str, cores: int) -> Any:
    """The ModelConfig message of one network for Triton's native ONNX Runtime backend."""
    from tritonclient.grpc import model_config_pb2 as protobuf

    config = model_config(bundle, network, cores)
    config.backend = "onnxruntime"
    config.default_model_filename = "model.onnx"
    del config.instance_group[:]
    config.instance_group.add(count=1, kind=protobuf.ModelInstanceGroup.KIND_AUTO)
    config.parameters["intra_op_thread_count"].string_value = str(cores)
    return config


def write_native_repository(bundle: Bundle, folder: Path, *, cores: int | None = None) -> Path:
    """Write a repository whose graphs are links into the verified bundle; returns `folder`."""
    from google.protobuf import text_format

    cores = available_cores() if cores is None else cores
    for network in bundle.manifest.networks:
        version = folder / network / "1"
        version.mkdir(parents=True)
        (version / "model.onnx").symlink_to(bundle.model(network).resolve())
        write_text(version.parent / "labels.txt", "".join(f"{label}\n" for label in bundle.manifest.labels))
        config = native_config(bundle, network, cores)
        write_text(version.parent / "config.pbtxt", str(text_format.MessageToString(config, as_utf8=True)))
    return folder


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
        models = write_native_repository(bundle, Path(tempfile.mkdtemp(prefix="fieldmark-models-")))
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
