"""The way to a Ray cluster, or one on this machine for as long as a job lasts."""

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

from bundle.errors import EndpointError, MissingExtra, OptionError, ScoringError, first_line

LOCAL = "local"
CONNECT_SECONDS = 10.0
# Read by Ray when it is imported. It must not report its use to its makers, nor take this program for one of uv's, nor
# wait for minutes where nobody answers; and its workers on this machine are what the person waits for, so not nice.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_NUM_REDIS_GET_RETRIES": "3",
    "RAY_worker_niceness": "0",
}
# What HTTP/2 begins with: a fixed text, and a frame of settings, which has a length, a kind, flags and a stream.
SETTINGS_FRAME = 4
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, SETTINGS_FRAME, 0, 0, 0, 0, 0])
TOKEN = "Its token is looked for where Ray does: RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
_ADDRESS = re.compile(r"(?:ray://)?(?P<host>[^:/\s]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")


def ray_library() -> Any:
    """The ray module; raises MissingExtra."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.exceptions
    except ImportError as problem:
        raise MissingExtra.named("cluster", "score --cluster", problem) from None
    return ray


def check_address(address: str) -> None:
    """Raise OptionError for what is no address, EndpointError where nobody listens."""
    if address in (LOCAL, "auto"):
        return
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise OptionError(
            f"--cluster {address!r} is no address", hint="Give local, auto, HOST:PORT, or ray://HOST:PORT."
        )
    try:
        place = (found["host"].strip("[]"), int(found["port"]))
        with socket.create_connection(place, CONNECT_SECONDS) as stream:
            stream.sendall(GREETING)  # who speaks gRPC returns it; to all else Ray would listen for minutes
            if len(answer := stream.recv(9)) < 9 or answer[3] != SETTINGS_FRAME:
                raise OSError("what answers is something else")
    except (OSError, OverflowError) as problem:
        raise EndpointError(
            f"no Ray answers at {address} ({first_line(problem)})",
            hint="Start one with 'ray start --head', or pass --cluster local.",
        ) from None


@contextlib.contextmanager
def connected(address: str, workers: int | None, threads: int, memory: int) -> Iterator[dict[str, float]]:
    """Be connected to a cluster; gives its resources by name. Raises EndpointError, or ScoringError for one that is of
    another version."""
    ray = ray_library()
    options: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if address == LOCAL:
        cores = (workers or max(1, len(os.sched_getaffinity(0)) // threads)) * threads
        options |= {"num_cpus": cores, "object_store_memory": memory, "include_dashboard": False}
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
    except (RuntimeError, ValueError) as problem:
        if "ersion" in str(problem):
            raise ScoringError(
                f"the cluster at {address} runs another version of Ray or Python ({first_line(problem)[:300]})",
                hint="Start the job from the image that the cluster runs.",
            ) from None
        raise EndpointError(f"Ray cannot be used at {address} ({first_line(problem)[:300]})") from None
    except (ConnectionError, TimeoutError, OSError) as problem:
        if isinstance(problem.__cause__, Exception) and "uthenticat" in str(problem.__cause__):
            raise EndpointError(f"the Ray at {address} does not let this job in", hint=TOKEN) from None
        raise EndpointError(
            f"no Ray answers at {address} ({first_line(problem)[:300]})",
            hint="Start one with 'ray start --head', or pass --cluster local.",
        ) from None
    # Ray tells of workers that it starts again on standard output, at the latest when it ends; JSON is expected there.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            yield dict(ray.cluster_resources())
        finally:
            ray.shutdown()
