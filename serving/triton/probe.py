"""Is the server healthy? `python -m serving.triton.probe --url HOST:PORT` has one grey image answered by every network.

Triton's own health stays green when a worker process has died or a network answers nonsense; a real answer cannot.
Exit code 0 and a line on stdout, or 1 and a sentence on stderr, as a container's health check wants it.
"""

import argparse
import sys
import time

import numpy as np

from bundle import tensors
from bundle.errors import EndpointError, FieldmarkError, printable
from serving.client.remote import DEFAULT_PORT, TritonInference

GREY = 128


def probe(url: str, timeout: float) -> dict[str, float]:
    """Seconds that each network took to answer; raises EndpointError. `timeout`, in seconds, holds for every call."""
    with TritonInference.connect(url, timeout=timeout) as inference:
        return {network: ask(inference, network) for network in inference.manifest.networks}


def ask(inference: TritonInference, network: str) -> float:
    """Seconds that a network took to answer one grey image; raises EndpointError, also for an answer without sense."""
    spec = inference.manifest.image
    image = np.full((1, spec.height, spec.width, 3), GREY, dtype=np.uint8)
    url, started = inference.url, time.monotonic()
    outputs = inference.infer(image, network)
    seconds = time.monotonic() - started
    if wrong := [name for name, value in outputs.items() if not np.isfinite(value).all()]:
        raise EndpointError(f"{url} answers nonsense: {network}.{wrong[0]} is not finite", hint="Restart it.")
    total = float(outputs[tensors.PROBABILITIES].sum())
    if abs(total - 1) > 0.01:
        raise EndpointError(f"{url} answers nonsense: probabilities of {network} sum to {total:g}")
    return seconds


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.triton.probe", description="Have every network answer once."
    )
    parser.add_argument("--url", default=f"localhost:{DEFAULT_PORT}", help="HOST:PORT of the server's gRPC port")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds for each call")
    options = parser.parse_args(arguments)
    try:
        seconds = probe(options.url, options.timeout)
    except FieldmarkError as problem:
        sys.stderr.write(f"unhealthy: {printable(str(problem))}\n")
        return 1
    sys.stdout.write("healthy: " + ", ".join(f"{name} {1000 * each:.0f} ms" for name, each in seconds.items()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
