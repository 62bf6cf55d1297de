"""Everything that can be set on a gateway, in one record. docs/gateway.md lists the flags."""

import ipaddress
from dataclasses import dataclass, field, fields
from pathlib import Path

from serving.triton.config import available_cores

DEFAULT_PORT = 8010
DEFAULT_METRICS_PORT = 8011
MIB = 1024 * 1024
MESSAGE_MARGIN = (
    MIB  # of a message beyond its image: names, ids, and an image that is a little too large for a sentence
)
SPARE_CALLS = 64  # for health, reflection and descriptions, beside what may classify
METADATA_BYTES = 8 * 1024
LONGEST_SECONDS = 2**31 // 1000  # gRPC counts milliseconds
CLOSE_SECONDS = 5.0  # that a drained gateway takes at most for what is still to be kept of requests
_UNCHECKED = (
    "host",
    "port",
    "metrics_port",
    "metrics_host",
    "queue_size",
    "drain_seconds",
    "otlp",
    "replaced",
    "expiry",
)


@dataclass(frozen=True, kw_only=True)
class GatewayOptions:
    """Limits and places of a gateway. Times in seconds. Port 0 takes any free one.

    What faces strangers stands before it, so it listens on loopback unless told otherwise.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    metrics_port: int = DEFAULT_METRICS_PORT
    metrics_host: str = "127.0.0.1"  # where a Prometheus elsewhere reaches it, so does whoever else is let through
    workers: int = field(default_factory=available_cores)  # threads that decode
    concurrency: int = 64  # requests of one network that are decoded or at Triton at a time
    queue_size: int = 256  # requests of one network that wait beyond those
    queue_bytes: int = 256 * MIB  # of the images that wait
    image_bytes: int = 16 * MIB  # largest encoded image; the bundle may allow less
    pixels: int = 50_000_000  # most pixels of an image; the bundle may allow less
    stream_window: int = 8  # requests of one stream that are worked on at a time
    streams: int = 64  # streams that may be open
    timeout: float = 30.0  # longest time of a request, also where the caller allows more
    probe_seconds: float = 2.0  # how often every network must answer a probe, and within how long
    stall_seconds: float = 30.0  # how long answers of a stream may lie unread
    idle_seconds: float = 300.0  # how long a stream may be open with nothing to do
    rate: int = 50  # images a second of one key in streams; where keys have names, which is behind Envoy
    burst: int = 100  # images that a key may have saved up
    connection_seconds: float = 3600.0  # how long a connection lives; gRPC opens the next one by itself
    drain_seconds: float = 10.0  # how long requests in work may take when the gateway stops
    otlp: str | None = None  # where traces go: HOST:PORT, OTLP over gRPC; None: where OpenTelemetry's variables say
    replaced: Path | None = None  # the file in which `fieldmark serve` counts what it has replaced
    expiry: tuple[Path, ...] = ()  # certificates of an Envoy before it, whose end the metrics show

    def __post_init__(self) -> None:
        for name in ("port", "metrics_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ValueError(f"{flag(name)} {getattr(self, name)} is not between 0 and 65535")
        if self.port == self.metrics_port != 0:
            raise ValueError(f"--port and --metrics-port are both {self.port}")
        for each in fields(self):
            if each.name not in _UNCHECKED:
                check_positive(each.name, getattr(self, each.name))
        if self.queue_size < 0:
            raise ValueError(f"--queue-size {self.queue_size} is negative")
        if not 0 <= self.drain_seconds <= 3600:
            raise ValueError(f"--drain-seconds {self.drain_seconds:g} is not between 0 and 3600")
        if self.image_bytes + MESSAGE_MARGIN >= 2**31:
            raise ValueError(f"--image-bytes {self.image_bytes} is more than a message of gRPC can hold")
        longest = {
            "--connection-seconds": self.connection_seconds,
            "--timeout and --stall-seconds together": self.timeout + self.stall_seconds,
        }
        for name, seconds in longest.items():
            if seconds > LONGEST_SECONDS:
                raise ValueError(f"{name}: {seconds:.0f} s are more than gRPC counts, {LONGEST_SECONDS}")

    @property
    def message_bytes(self) -> int:
        """The largest message that gRPC lets in."""
        return self.image_bytes + MESSAGE_MARGIN

    @property
    def calls(self) -> int:
        """The most calls at a time; each may have a message that is still arriving."""
        return 2 * (self.concurrency + self.queue_size) + self.streams + SPARE_CALLS


def flag(name: str) -> str:
    """The command line's name of a setting."""
    return "--" + name.replace("_", "-")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless a setting is a positive number that makes sense."""
    if not 0 < value < 2**40:  # NaN is neither
        raise ValueError(f"{flag(name)} {value} is not a positive number")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
