"""`fieldmark gateway`: the typed service before a Triton that runs already, or before one that it starts itself."""

import asyncio
import contextlib
import dataclasses
import json as jsonlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bundle import Bundle
from bundle.console import say
from bundle.errors import OptionError, ServerError
from bundle.verbs import App
from serving.client.remote import UNIX
from serving.envoy.door import Door, find_door, limits_of
from serving.envoy.flags import (
    Binary,
    Burst,
    Certificate,
    CertificateKey,
    ClientCa,
    Connections,
    Health,
    Keys,
    Rate,
    Reflection,
)
from serving.envoy.options import DEFAULTS
from serving.gateway.options import GatewayOptions
from serving.gateway.retention_flags import (
    AUDIT_DEFAULTS,
    QUARANTINE_DEFAULTS,
    AuditBytes,
    AuditFile,
    AuditFiles,
    Bytes,
    Days,
    Place,
    Sample,
    retention_options,
)

app = App()

WATCH_SECONDS = 0.25
_DEFAULTS = GatewayOptions(workers=1)


@app.callback()
def verbs() -> None:
    """Keeps `gateway` a command of its own name while it is the only one here."""


def option(text: str) -> Any:
    """A number of GatewayOptions, which checks it."""
    return typer.Option(help=text)


@app.command()
def gateway(
    triton: Annotated[
        str, typer.Argument(metavar="BUNDLE|HOST:PORT", help="Start a Triton for this bundle, or use the one there.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = _DEFAULTS.host,
    port: Annotated[int, option("Port of fieldmark.v1; 0 takes any free one.")] = _DEFAULTS.port,
    metrics_port: Annotated[int, option("Port of Prometheus' endpoint; 0: any.")] = _DEFAULTS.metrics_port,
    metrics_host: Annotated[
        str, typer.Option(help="Address of Prometheus' endpoint, which asks nobody who he is.")
    ] = _DEFAULTS.metrics_host,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on an address that others reach, without TLS and keys.")
    ] = False,
    bundle: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Insist on this bundle, and take prototype images from it.")
    ] = None,
    triton_header: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="One line NAME=VALUE that Triton's restricted protocols ask for."),
    ] = None,
    triton_tls: Annotated[
        Path | None, typer.Option(metavar="DIR", help="ca.pem, client.pem, client.key for a Triton with mutual TLS.")
    ] = None,
    triton_python: Annotated[
        Path | None, typer.Option(help="With BUNDLE: Python of the server environment, as for serve.")
    ] = None,
    workers: Annotated[int | None, option("Threads that decode. Default: one a core.")] = None,
    concurrency: Annotated[int, option("Requests of a network in work at a time.")] = _DEFAULTS.concurrency,
    queue_size: Annotated[int, option("Requests of a network that may wait.")] = _DEFAULTS.queue_size,
    queue_bytes: Annotated[int, option("Bytes of images that may wait.")] = _DEFAULTS.queue_bytes,
    image_bytes: Annotated[int, option("Largest encoded image.")] = _DEFAULTS.image_bytes,
    pixels: Annotated[int, option("Most pixels of an image.")] = _DEFAULTS.pixels,
    stream_window: Annotated[int, option("Requests of a stream in work at a time.")] = _DEFAULTS.stream_window,
    streams: Annotated[int, option("Streams that may be open.")] = _DEFAULTS.streams,
    timeout: Annotated[float, option("Longest time of a request, in seconds.")] = _DEFAULTS.timeout,
    probe_seconds: Annotated[float, option("Seconds between probes, and for each.")] = _DEFAULTS.probe_seconds,
    stall_seconds: Annotated[float, option("Seconds that answers may lie unread.")] = _DEFAULTS.stall_seconds,
    idle_seconds: Annotated[float, option("Seconds that a stream may be idle.")] = _DEFAULTS.idle_seconds,
    connection_seconds: Annotated[float, option("Seconds that a connection lives.")] = _DEFAULTS.connection_seconds,
    drain_seconds: Annotated[float, option("Seconds for what is in work at the end.")] = _DEFAULTS.drain_seconds,
    quarantine: Place = None,
    quarantine_sample: Sample = QUARANTINE_DEFAULTS.sample,
    quarantine_bytes: Bytes = QUARANTINE_DEFAULTS.bytes,
    quarantine_days: Days = QUARANTINE_DEFAULTS.days,
    audit_log: AuditFile = None,
    audit_bytes: AuditBytes = AUDIT_DEFAULTS.bytes,
    audit_files: AuditFiles = AUDIT_DEFAULTS.files,
    otlp: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Send traces there, OTLP over gRPC. Default: as the OTEL_... variables say."
        ),
    ] = None,
    replaced: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Counts of 'fieldmark serve', for the metrics.")
    ] = None,
    certificate: Certificate = None,
    certificate_key: CertificateKey = None,
    keys: Keys = None,
    client_ca: ClientCa = None,
    rate: Rate = DEFAULTS["rate"],
    burst: Burst = DEFAULTS["burst"],
    connections: Connections = DEFAULTS["connections"],
    health: Health = False,
    reflection: Reflection = False,
    envoy: Binary = None,
    expiry: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A certificate of an Envoy before it, for its metrics. Again for each."),
    ] = None,
    control: Annotated[
        Path | None, typer.Option(metavar="SOCKET", help="Where 'fieldmark serve' tells it to move to another Triton.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No log on stderr.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the addresses as one line of JSON when ready.")] = False,
) -> None:
    """Answer fieldmark.v1: image bytes in; labels, and whether it looks adversarial, out. Until Ctrl-C or SIGTERM.

    It logs one JSON object a line on stderr. It listens on loopback; with a certificate and keys, an Envoy that
    is started before it listens instead, on any address.
    """
    given = locals()
    settings = {name: given[name] for name in _DEFAULTS.__dataclass_fields__ if given[name] is not None}
    try:
        ending = tuple(file for file in (certificate, client_ca, *(expiry or ())) if file is not None)
        options = GatewayOptions(**settings | {"expiry": ending})
    except ValueError as problem:
        raise OptionError(str(problem)) from None
    # Behind an Envoy of somebody else the gateway counts the images of streams itself.
    door = find_door(given, options.host, options.port, limits_of(options), kept=("rate", "burst"))
    from serving.gateway.server import require_libraries
    from serving.gateway.upstream import TritonAddress

    require_libraries()
    kept = retention_options(given)
    header, opened = _read_access(triton_header), Bundle.open(bundle) if bundle else None
    with _triton(triton, opened, triton_python) as (url, server, started):
        address = TritonAddress(url=url, header=header, tls=triton_tls)
        front = _front(door) if door is not None else None
        work = _Work(
            options=options,
            address=address,
            bundle=started or opened,
            server=server,
            front=front,
            kept=kept,
            control=control,
        )
        asyncio.run(_serve(work, None if quiet else sys.stderr, json))


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What runs: a gateway before a Triton (`server`, if it is ours); `front` makes the Envoy before both, if any.

    `kept` is what is kept of requests.
    """

    options: GatewayOptions
    address: Any
    bundle: Bundle | None
    server: Any
    front: Callable[[Any], Any] | None
    kept: Any
    control: Path | None


def _front(door: Door) -> Callable[[Any], Any]:
    """What makes the Envoy before a gateway that runs."""
    from serving.envoy.process import EnvoyServer

    def make(gateway: Any) -> EnvoyServer:
        behind = door.before(gateway.url, limits_of(gateway.options))
        return EnvoyServer(behind, binary=door.binary, on_log=gateway.journal.copy)

    return make


def _read_access(file: Path | None) -> tuple[str, str] | None:
    from serving.gateway.upstream import read_header

    return read_header(file) if file else None


@contextlib.contextmanager
def _triton(where: str, insisted: Bundle | None, python: Path | None) -> Iterator[tuple[str, Any, Bundle | None]]:
    """(address, the server if it is ours, its bundle) of a Triton: started here for a folder, else the one named."""
    if where.startswith(UNIX) or (not Path(where).exists() and os.sep not in where):
        yield where, None, None
        return
    from serving.triton.server import TritonServer
    from serving.workspace import private_folder

    opened = Bundle.open(Path(where))
    if insisted is not None and insisted.bundle_id != opened.bundle_id:
        raise OptionError(f"--bundle is not the bundle at {where}", hint="Leave --bundle out.")
    with private_folder() as folder, TritonServer(opened, sockets=folder, triton_python=python) as server:
        yield server.grpc_url, server, opened


async def _serve(work: _Work, log: Any, json: bool) -> None:
    from serving.gateway.orders import orders
    from serving.gateway.server import Gateway

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    options = work.options
    if work.front is not None:  # then only Envoy is to reach it
        options = dataclasses.replace(options, host="127.0.0.1", port=0)
    gateway = Gateway(options, work.address, bundle=work.bundle, log=log, retention=work.kept)
    with gateway.journal.libraries(), contextlib.ExitStack() as last:
        async with gateway:  # what it still answers when it drains goes out through Envoy, which ends last
            envoy = last.enter_context(work.front(gateway)) if work.front is not None else None
            if work.control is not None:
                last.enter_context(orders(work.control, gateway, asyncio.get_running_loop()))
            _announce(gateway, envoy.url if envoy else gateway.url, json)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), WATCH_SECONDS)
                for process in (work.server, envoy):
                    if process is not None:
                        process.check()
                if gateway.death:
                    raise ServerError(f"the gateway's prober died ({gateway.death})", hint="Start it again.")


def _announce(gateway: Any, url: str, json: bool) -> None:
    from serving.gateway.server import address_of

    facts = {
        "url": url,
        "metrics_url": f"http://{address_of(gateway.options.metrics_host, gateway.metrics_port)}/metrics",
        "networks": list(gateway.manifest.networks),
        "bundle_id": gateway.manifest.bundle_id,
        "pid": os.getpid(),
        "limits": limits_of(gateway.options),
    }
    if json:
        print(jsonlib.dumps(facts), flush=True)
        return
    say(
        Console(),
        f"fieldmark.v1 at {url}, metrics at {facts['metrics_url']}",
        f"bundle {gateway.manifest.bundle_id[:12]}: {', '.join(facts['networks'])}. Ctrl-C stops it.",
    )
