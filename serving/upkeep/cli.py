"""`fieldmark serve`: a bundle on a real Triton, the gateway before it, and both kept up."""

import json as jsonlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Column, Table

from bundle.errors import printable
from bundle.verbs import App
from serving.envoy.door import find_door
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
from serving.gateway.journal import Journal, shorten
from serving.gateway.retention_flags import AuditFile, Place
from serving.upkeep.keeper import keep
from serving.upkeep.notify import ALIVE, READY, STOPPING, notify
from serving.upkeep.options import ServeOptions
from serving.upkeep.service import Serving
from serving.workspace import private_folder

app = App()

_SENTENCES = {
    "trouble": "{who}: {cause}; replacing it",
    "replaced": "{who} answers again, after {seconds} s",
    "not_replaced": "{who} could not be replaced: {cause}; another try in {again_seconds:g} s",
    "rolled": "bundle {bundle_id:.12} answers now, and {before:.12} did before; it took {seconds} s",
    "refused": "{bundle} is refused: {cause}",
    "shadow": "bundle {bundle_id:.12} answers {share:.3g} of the requests in the shadow",
}


@app.callback()
def verbs() -> None:
    """Keeps `serve` a command of its own name while it is the only one here."""


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    gateway_options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- OPTIONS]", help="Of 'fieldmark gateway', such as -- --concurrency 32."),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Move to what BUNDLE becomes: a link set anew, or in a folder of bundles the last by name."
        ),
    ] = False,
    key: Annotated[Path | None, typer.Option(metavar="PUBLIC.pem", help="Every bundle must be signed by it.")] = None,
    other_labels: Annotated[
        bool, typer.Option("--other-labels", help="With --watch: also move to other labels, or fewer networks.")
    ] = False,
    port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="Of fieldmark.v1; 0 takes any free port.")
    ] = 8010,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="Open Triton's gRPC to everybody on this machine, here; else it is at a private socket. 0: any.",
        ),
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", min=0, max=65535, help="The same of Triton's HTTP; off, since a large body ends it."
        ),
    ] = None,
    metrics_port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="Of Triton's metrics, on loopback. 0: any.")
    ] = 8002,
    gateway_metrics_port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="On loopback. 0: any.")
    ] = 8011,
    host: Annotated[
        str, typer.Option(help="Address of fieldmark.v1, as for 'fieldmark gateway'. Triton stays on this machine.")
    ] = "127.0.0.1",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on an address that others reach, without TLS and keys.")
    ] = False,
    triton_python: Annotated[
        Path | None,
        typer.Option(
            help="Python of the server environment. Default: what FIELDMARK_TRITON_PYTHON names, else this Python, "
            "else .venv-triton beside its environment."
        ),
    ] = None,
    start_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="To wait until the networks answer.")
    ] = 120.0,
    drain_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, max=3600, help="At the end, for what is in work.")
    ] = 10.0,
    control: Annotated[
        Path | None,
        typer.Option(metavar="SOCKET", help="Where 'fieldmark roll' finds it. Default: a place by its --port."),
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
    quarantine: Place = None,
    audit_log: AuditFile = None,
    no_gateway: Annotated[bool, typer.Option("--no-gateway", help="Triton alone, without fieldmark.v1.")] = False,
    triton_otlp: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Send Triton's own spans there, OTLP over HTTP; those of the gateway: -- --otlp."
        ),
    ] = None,
    log: Annotated[
        bool, typer.Option("--log", help="The gateway's log and our own on stderr, one JSON object a line.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Pass on tritonserver's own log, on stderr; with --log as JSON.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the endpoints as one line of JSON when ready.")] = False,
) -> None:
    """Serve a bundle until Ctrl-C or SIGTERM: a real Triton, and fieldmark.v1 before it. All of it is kept up.

    It is ready when every network has answered. What dies or answers nobody is replaced, and stderr says why.
    'fieldmark roll' moves it to another bundle and back; --watch does so by itself. An address that others reach takes
    a certificate and keys, and an Envoy that is started before the gateway, or --insecure.
    """
    from serving.triton.command import collector_url

    given = locals()
    kept = [
        *(("--quarantine", quarantine) if quarantine is not None else ()),
        *(("--audit-log", str(audit_log)) if audit_log is not None else ()),
    ]
    if not no_gateway:
        from serving.gateway.server import require_libraries

        require_libraries()
    options = ServeOptions(
        path=bundle,
        door=find_door(given, host, port, {}),
        gateway=not no_gateway,
        gateway_options=(*(gateway_options or ()), *kept),
        start_seconds=start_timeout,
        traces=collector_url(triton_otlp) if triton_otlp else "",
        **{name: given[name] for name in _AS_THEY_ARE},
    )
    # Nothing here may wait for who reads stderr: it would keep nothing up, and hear no signal.
    with closing(Journal(sys.stderr)) as journal, asked(watch) as heard, private_folder() as folder:
        serving = Serving(
            options,
            folder,
            lambda event, facts: journal.copy(_told(event, facts, log)),
            on_log=_listener("gateway", journal, log),
            on_triton_log=_listener("triton", journal, log) if verbose else None,
        )

        def stopped() -> bool:
            notify(ALIVE)  # asked all the time, whatever is being waited for
            if heard.look_at_once and serving.roller is not None:
                heard.look_at_once = False
                serving.roller.look_at_once()
            return bool(heard.signals)

        def show(step: str) -> None:
            if sys.stderr and sys.stderr.isatty():
                journal.copy(step)

        try:
            serving.start(stopped, show)
            if heard.signals:
                journal.copy("stopped before the server was ready; nothing was left behind")
                raise typer.Exit(128 + heard.signals[0])
            _announce(serving, json)
            notify(READY)
            keep(serving.services, stopped, serving.tell)
        finally:
            notify(STOPPING)
            show("answering what is in work, then stopping")
            serving.stop()


_AS_THEY_ARE = (
    *("watch", "key", "other_labels", "host", "port", "insecure", "gateway_metrics_port", "grpc_port", "http_port"),
    *("metrics_port", "triton_python", "drain_seconds", "control", "log"),
)


@dataclass(kw_only=True)
class Heard:
    """What a process was told by signals: to stop, or to look for another bundle."""

    signals: list[int] = field(default_factory=list)
    look_at_once: bool = False


@contextmanager
def asked(watching: bool) -> Iterator[Heard]:
    """Collects SIGINT, SIGTERM and SIGHUP instead of dying of them, so that starting and stopping end in good order.

    SIGHUP asks who is `watching` to look at once, and everybody else to stop.
    """
    heard = Heard()

    def hear(received: int, _: object) -> None:
        if received == signal.SIGHUP and watching:
            heard.look_at_once = True
        else:
            heard.signals.append(received)

    previous: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup means: stay
        if number != signal.SIGHUP or watching or signal.getsignal(number) != signal.SIG_IGN:
            previous[number] = signal.signal(number, hear)
    try:
        yield heard
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _listener(event: str, journal: Journal, log: bool) -> Callable[[str], None]:
    """What takes the lines of a process's log: passes them on, with `log` as JSON if they are not that already."""
    return (lambda line: journal.copy(as_json(event, line))) if log else journal.copy


def as_json(event: str, line: str) -> str:
    """A line of a process's log as a JSON object, with the event's name if it is none yet."""
    return line if line.startswith("{") else jsonlib.dumps({"time": _now(), "event": event, "text": shorten(line)})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _told(event: str, facts: dict[str, object], log: bool) -> str:
    """What has happened as a line: for a person, with `log` for a machine."""
    if log:
        return jsonlib.dumps({"time": _now(), "event": event, **facts})
    note = f" ({facts['note']})" if "note" in facts else ""
    return printable(_SENTENCES[event].format(**facts) + note)


def _announce(serving: Serving, json: bool) -> None:
    facts, manifest = serving.facts(), serving.server.bundle.manifest
    if json:
        print(jsonlib.dumps(facts), flush=True)
        return
    grid = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))
    rows = {
        "fieldmark.v1": f"[bold]{escape(facts['url'])}[/]" if "url" in facts else None,
        "metrics": facts.get("gateway_metrics_url"),
        "Triton's gRPC": facts["grpc_url"],
        "Triton's HTTP": facts.get("http_url"),
        "Triton's metrics": facts["metrics_url"],
        "networks": ", ".join(manifest.networks),
        "bundle": facts["bundle_id"],
        "Triton": facts["triton_version"],
    }
    for name, value in rows.items():
        if value is not None:
            grid.add_row(name, value if name == "fieldmark.v1" else escape(value))
    name = escape(printable(manifest.name))
    Console(highlight=False).print(
        Panel(grid, title=f"serving [bold]{name}[/]", subtitle="Ctrl-C stops it", title_align="left", expand=False)
    )
