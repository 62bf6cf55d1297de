"""tritonserver's command line, the backend that it runs, and the line of its log that says why it could not start."""

import os
import re
import secrets
import shutil
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from bundle.errors import OptionError, ServerError
from serving.triton.environment import TritonEnvironment

MODELS, BACKENDS = "models", "backends"  # of a server's folder
_RESTRICTED = "shared-memory,model-repository,trace,logging"
# A request that says so is traced, and of the others, probes among them, one in as many as Triton can count.
_TRACES = ("mode=opentelemetry", "level=TIMESTAMPS", "rate=2147483647", "opentelemetry,resource=service.name=triton")

# Ten seconds, otherwise, for which a collector that says nothing would hold up the end. (In Python's units it is "4".)
TRACE_VARIABLES = {"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "4s"}


GRPC_SOCKET, METRICS_SOCKET = "grpc:1", "metrics"  # in a folder of sockets; gRPC's name ends in what is its port


def flags(
    folder: Path,
    address: str,
    ports: Mapping[str, int | None],
    *,
    sockets: Path | None = None,
    traces: str = "",
) -> list[str]:
    """What follows the program's name. `ports` by grpc, http, metrics, at the numeric `address`; no HTTP if None.

    With `sockets`, gRPC and metrics listen in that folder instead, and at no port. `traces` is the URL of a collector,
    for OTLP over HTTP.
    """
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
    if sockets is not None:
        place, _, port = GRPC_SOCKET.partition(":")
        options |= {"grpc-address": f"unix:{sockets / place}", "grpc-port": port}
        options |= {"metrics-address": f"unix:{sockets / METRICS_SOCKET}"}
    if ports["http"] is not None:
        options |= {"allow-http": "true", "http-address": address, "http-port": ports["http"]}
        options |= {"http-restricted-api": restriction()}
    given = [f"--{name}={value}" for name, value in options.items()]
    if traces:
        given += [f"--trace-config={each}" for each in (*_TRACES, f"opentelemetry,url={traces}")]
    return ["--disable-auto-complete-config", *given]


def collector_url(text: str) -> str:
    """The URL of a collector, as Triton's command line can hold it; raises OptionError."""
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not text.isprintable() or re.search(r"[\s,@]", text):
        raise OptionError(
            f"--triton-otlp {text!r} is not the URL of a collector",
            hint="Triton speaks OTLP over HTTP: http://localhost:4318/v1/traces.",
        )
    return text


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
