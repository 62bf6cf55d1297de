"""Everything that can be asked of `fieldmark serve`, in one record. docs/serve.md lists the flags."""

from dataclasses import dataclass
from pathlib import Path

from bundle.errors import OptionError
from serving.envoy.door import FLAGS, Door
from serving.gateway.options import flag

DEFAULT_TRITON_PORT = 8001
# What `fieldmark serve` itself tells its gateway.
_GATEWAYS_OWN = ("host", "port", "metrics_port", "drain_seconds", "bundle", "control", "replaced", "expiry")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What is served, where, and before whom. Times in seconds; port 0 takes any free one.

    Triton's gRPC and metrics are at sockets that this user alone reaches, unless a port is asked for or there is no
    gateway: then nothing can be rolled, because two servers cannot share it.
    """

    path: Path  # a bundle, a link to one, or with `watch` a folder of bundles
    watch: bool = False
    key: Path | None = None  # the public key that must have signed every bundle
    other_labels: bool = False  # whether what is found may have other labels or fewer networks
    host: str = "127.0.0.1"
    port: int = 8010
    insecure: bool = False
    door: Door | None = None
    gateway: bool = True
    gateway_options: tuple[str, ...] = ()
    gateway_metrics_port: int = 8011
    grpc_port: int | None = None
    http_port: int | None = None
    metrics_port: int = 8002
    triton_python: Path | None = None
    start_seconds: float = 120.0
    drain_seconds: float = 10.0
    traces: str = ""  # the URL of a collector of Triton's spans
    log: bool = False  # whether the gateway and Envoy write theirs
    control: Path | None = None  # where orders are taken; None: where `control_path` says

    def __post_init__(self) -> None:
        if not self.gateway:
            if self.gateway_options:
                raise OptionError(f"{self.gateway_options[0]} is for the gateway, and --no-gateway is given")
            if self.door is not None:
                raise OptionError("--keys is for the gateway, and --no-gateway is given")
        if self.watch and not self.rolls:
            what = flag("http_port" if self.grpc_port is None else "grpc_port") if self.gateway else "--no-gateway"
            raise OptionError(
                f"--watch and {what} do not go together",
                hint="A new bundle comes up beside the old one, and Triton's port cannot belong to both.",
            )
        ours = {flag(name) for name in (*FLAGS, *_GATEWAYS_OWN)}
        for each in self.gateway_options:
            if (name := each.partition("=")[0]) in ours:
                raise OptionError(
                    f"{name} stands behind the --", hint="It is for 'fieldmark serve' itself: put it before."
                )

    @property
    def rolls(self) -> bool:
        """Whether another bundle can be moved to."""
        return self.gateway and self.grpc_port is None and self.http_port is None
