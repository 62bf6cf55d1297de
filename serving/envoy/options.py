"""Everything that can be set on the Envoy that faces strangers, in one record. docs/gateway.md lists the flags."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bundle.errors import EndpointError
from serving.client.remote import parse_url
from serving.envoy.keys import Key
from serving.envoy.limits import HIGHEST_RATE
from serving.gateway.options import DEFAULT_PORT, MESSAGE_MARGIN, MIB, check_positive, flag

DEFAULT_ENVOY_PORT = 8443
_CALLERS = ("rate", "burst", "connections")
SHARED = ("image_bytes", "concurrency", "timeout", "stall_seconds", "idle_seconds", "connection_seconds")


@dataclass(frozen=True, kw_only=True)
class EnvoyOptions:
    """Who is let in, and how much of everybody. Times in seconds. What the gateway limits too has its numbers.

    `certificate` and `certificate_key` are PEM files that Envoy reads; with `client_ca`, another one, callers must show
    a certificate that it has signed. Every caller must have one of `keys`.
    """

    certificate: Path
    certificate_key: Path
    keys: tuple[Key, ...] = field(repr=False)
    client_ca: Path | None = None
    host: str = "0.0.0.0"
    port: int = DEFAULT_ENVOY_PORT
    gateway: str = f"127.0.0.1:{DEFAULT_PORT}"  # where it, or the console, listens, reached without TLS
    rate: int = 50  # requests a second of one key; a stream is one
    burst: int = 100  # requests that a key may have saved up
    connections: int = 1000  # open at a time, of all callers
    image_bytes: int = 16 * MIB  # largest encoded image
    concurrency: int = 64  # requests in work that are never shed
    timeout: float = 30.0  # longest time of a request; its arrival may take stall_seconds more
    stall_seconds: float = 30.0  # how long a request may not move: neither sent on nor read
    idle_seconds: float = 300.0  # the same of a stream
    connection_seconds: float = 3600.0  # how long a connection lives
    health: bool = False  # whether anybody may ask whether the service is ready, without a key
    reflection: bool = False  # whether holders of a key may ask for the proto

    def __post_init__(self) -> None:
        if not 0 < self.port <= 65535:
            raise ValueError(f"--port {self.port} is not between 1 and 65535")
        for name in (*_CALLERS, *SHARED):
            check_positive(name, getattr(self, name))
        for name in _CALLERS:
            if getattr(self, name) > HIGHEST_RATE:
                raise ValueError(f"{flag(name)} {getattr(self, name)} is more than {HIGHEST_RATE}")
        if self.burst < self.rate:
            raise ValueError(f"--burst {self.burst} is less than --rate {self.rate}")
        try:
            parse_url(self.gateway, port=DEFAULT_PORT)
        except EndpointError as problem:
            raise ValueError(str(problem)) from None
        if self.json_bytes >= 2**31:
            raise ValueError(f"--image-bytes {self.image_bytes} is more than Envoy can hold")

    @property
    def certificates(self) -> tuple[Path, ...]:
        """The files whose end shuts the door to everybody."""
        return (self.certificate,) if self.client_ca is None else (self.certificate, self.client_ca)

    @property
    def message_bytes(self) -> int:
        """The largest body of a gRPC call of one image: the gateway's largest message, and gRPC's 5 bytes before it."""
        return self.image_bytes + MESSAGE_MARGIN + 5

    @property
    def json_bytes(self) -> int:
        """The largest body of a JSON call: the image grows by a third in base64."""
        return -(-self.image_bytes // 3) * 4 + MESSAGE_MARGIN


DEFAULTS: dict[str, Any] = {each.name: each.default for each in fields(EnvoyOptions)}
