"""tritonserver's command line, the backend that it runs, and the line of its log that says why it could not start."""

import os
import re
import secrets
import shutil
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from bundle.errors import ServerError
from serving.environment import TritonEnvironment

MODELS, BACKENDS = "models", "backends"  # of a server's folder
_RESTRICTED = "shared-memory,model-repository,trace,logging"


def flags(folder: Path, address: str, ports: Mapping[str, int | None]) -> list[str]:
    """What follows the program's name. `ports` by grpc, http, metrics, at the numeric `address`; no HTTP if None."""
    options = {
        "model-repository": folder / MODELS,
        # It follows the files, which are ours alone; the mode `explicit` can load code that a request brings along.
        "model-control-mode": "poll",
        "repository-poll-secs": 1,
        "strict-readiness": "true",
        "exit-on-error": "true",
        "exit-timeout-secs": 5,
        "backend-directory": folder / BACKENDS,
        "backend-config": f"python,shm-region-prefix-name={folder.name}",
        "grpc-address": address,
        "grpc-port": ports["grpc"],
        "grpc-restricted-protocol": restriction(),
        "allow-http": "false",
        "metrics-address": address,
        "metrics-port": ports["metrics"],
        "allow-gpu-metrics": "false",
        "metrics-config": "summary_latencies=true",
    }
    if ports["http"] is not None:
        options |= {"allow-http": "true", "http-address": address, "http-port": ports["http"]}
        options |= {"http-restricted-api": restriction()}
    return ["--disable-auto-complete-config", *(f"--{name}={value}" for name, value in options.items())]


def copy_backend(folder: Path, environment: TritonEnvironment) -> None:
    """The Python backend with the stub of the environment's Python, into a folder of backends; raises ServerError."""
    backend = folder / "python"
    shutil.copytree(environment.backend, backend, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(environment.stub, backend / environment.stub.name)
    (backend / environment.stub.name).chmod(0o755)  # installers do not always keep the executable bit
    if not os.access(backend / environment.stub.name, os.X_OK):
        raise ServerError(
            f"nothing may be run in {folder.parent.parent}, and Triton runs its workers from there (noexec)",
            hint="Docker: --tmpfs /tmp:exec. Elsewhere name another folder: TMPDIR=/path",
        )


def restriction() -> str:
    """Triton's flag value that shuts the calls which change or tap the server, behind a header that nobody can send.

    Every argument stands in the process list, so the value is no secret there; but a gRPC header has no capitals, and
    Triton compares it letter by letter. (HTTP's headers are compared without regard to them: there it is the value.)
    """
    return f"{_RESTRICTED}:Fieldmark-Key={secrets.token_urlsafe(24)}"


def useful_line(log: "deque[str]") -> str:
    """The line of a tritonserver log that says why it could not start."""
    errors = [line for line in log if re.match(r"E\d{4} ", line) and "CudaDriverHelper" not in line]  # no GPU: no error
    loads = [line for line in errors if "failed to load" in line]
    plain = [line for line in log if line.strip() and not re.match(r"[EIW]\d{4} |[|+ \t]", line)]
    line = (loads or errors or plain or [""])[0]
    return plain_line(line)


def plain_line(line: str) -> str:
    """A line of the log without time stamp and place in Triton's source."""
    text = re.sub(r"^[EWI]\d{4} [\d:.]+ \d+ [\w.]+:\d+\] ", "", line)
    return text.strip().strip('"').rstrip("; ").replace('\\"', '"').replace("\\n", " ")[:300]
