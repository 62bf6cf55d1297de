"""`fieldmark serve`: a bundle on a real Triton, the gateway before it, and both kept up."""

import contextlib
import json as jsonlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from bundle import Bundle
from bundle.errors import OptionError, printable
from serving.gateway.journal import shorten
from serving.gateway.keeping_flags import AuditFile, Place
from serving.upkeep.notify import ALIVE, READY, STOPPING, notify

if TYPE_CHECKING:
    from serving.server import TritonServer
    from serving.upkeep.gateway import GatewayProcess

Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port.")]
_SENTENCES = {
    "trouble": "{who}: {cause}; replacing it",
    "replaced": "{who} answers again, after {seconds} s",
    "not_replaced": "{who} could not be replaced: {cause}; another try in {again_seconds:g} s",
}


def serve(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    gateway_options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- OPTIONS]", help="Of 'fieldmark gateway', such as -- --concurrency 32."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of fieldmark.v1; 0 takes any free port.")] = 8010,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="Of Triton, on loopback. 0: any.")] = 8001,
    http_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Of Triton's HTTP, on loopback; off, since a large body ends it."),
    ] = None,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="Of Triton, on loopback. 0: any.")] = 8002,
    gateway_metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="On loopback. 0: any.")] = 8011,
    host: Annotated[
        str, typer.Option(help="Address of fieldmark.v1, as for 'fieldmark gateway'. Triton stays on loopback.")
    ] = "127.0.0.1",
    triton_python: Annotated[
        Path | None,
        typer.Option(
            help="Python of the server environment. Default: $FIELDMARK_TRITON_PYTHON, else this Python, else "
            ".venv-triton beside its environment."
        ),
    ] = None,
    start_timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait until the networks answer.")] = 120.0,
    drain_seconds: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds at the end for what is in work.")
    ] = 10.0,
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
    """Serve a bundle until Ctrl-C or SIGTERM: a real Triton, and fieldmark.v1 before it. Both are kept up.

    It is ready when every network has answered. What dies or answers nobody is replaced, and stderr says why.
    """
    from serving.server import TritonServer
    from serving.triton_command import collector_url
    from serving.upkeep.counting import counting
    from serving.upkeep.gateway import GatewayProcess
    from serving.upkeep.keeper import Service, keep
    from serving.upkeep.watch import TritonWatch

    kept = [
        *(("--quarantine", quarantine) if quarantine is not None else ()),
        *(("--audit-log", str(audit_log)) if audit_log is not None else ()),
    ]
    if not no_gateway:
        from serving.gateway.server import require_libraries

        require_libraries()
    elif asked := [*(gateway_options or ()), *kept]:
        raise OptionError(f"{asked[0]} is for the gateway, and --no-gateway is given")
    traces = collector_url(triton_otlp) if triton_otlp else ""
    talk = Console(stderr=True, soft_wrap=True, highlight=False)
    opened = Bundle.open(bundle)
    with asked_to_stop() as signals, counting(opened) as tally:

        def stopped() -> bool:
            notify(ALIVE)  # asked all the time, whatever is being waited for
            return bool(signals)

        server = TritonServer(
            opened,
            grpc_port=grpc_port,
            http_port=http_port,
            metrics_port=metrics_port,
            triton_python=triton_python,
            start_seconds=start_timeout,
            traces=traces,
            on_log=_listener("triton", log) if verbose else None,
        )
        gateway: GatewayProcess | None = None
        try:
            with talk.status("starting Triton"):
                server.start(cancelled=stopped)
            if not no_gateway and not signals:
                ours = ["--host", host, "--bundle", str(bundle), "--replaced", str(tally.path)]
                options = [*ours, *kept, *(gateway_options or ())]
                gateway = GatewayProcess(
                    server.grpc_url,
                    options if log else [*options, "--quiet"],
                    port=port,
                    metrics_port=gateway_metrics_port,
                    drain_seconds=drain_seconds,
                    on_log=_listener("gateway", log),
                )
                with talk.status("starting the gateway"):
                    gateway.start(stopped=stopped)
            if signals:
                talk.print("stopped before the server was ready; nothing was left behind")
                raise typer.Exit(128 + signals[0])
            _announce(server, gateway, json)
            notify(READY)
            services: list[Service] = [TritonWatch(server), *([gateway] if gateway else [])]

            def tell(event: str, facts: dict[str, object]) -> None:
                if event == "replaced":
                    tally.count(str(facts["who"]))
                _tell(event, facts, talk, log)

            keep(services, stopped, tell)
        finally:
            notify(STOPPING)
            with talk.status("answering what is in work, then stopping"):
                if gateway is not None:
                    gateway.stop()  # Triton goes on until it has its last answer
                server.stop()


@contextlib.contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP instead of dying of them, so that starting and stopping end in good order."""
    signals: list[int] = []
    previous: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means: stay
            previous[number] = signal.signal(number, lambda received, _: signals.append(received))
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _listener(event: str, log: bool) -> Callable[[str], None]:
    """What takes the lines of a process's log: passes them on, with `log` as JSON if they are not that already."""
    return (lambda line: _pass_on(as_json(event, line))) if log else _pass_on


def as_json(event: str, line: str) -> str:
    """A line of a process's log as a JSON object, with the event's name if it is none yet."""
    return line if line.startswith("{") else jsonlib.dumps({"time": _now(), "event": event, "text": shorten(line)})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _pass_on(line: str) -> None:
    with contextlib.suppress(OSError):  # a log that nobody reads any more must not stop the server
        sys.stderr.write(f"{line}\n")  # at once: threads that print write the end of a line by itself
        sys.stderr.flush()


def _tell(event: str, facts: dict[str, object], talk: Console, log: bool) -> None:
    if log:
        _pass_on(jsonlib.dumps({"time": _now(), "event": event, **facts}))
        return
    note = f" ({facts['note']})" if "note" in facts else ""
    with contextlib.suppress(OSError):
        talk.print(escape(printable(_SENTENCES[event].format(**facts) + note)))


def _announce(server: "TritonServer", gateway: "GatewayProcess | None", json: bool) -> None:
    facts: dict[str, Any] = {
        "grpc_url": server.grpc_url,
        "metrics_url": server.metrics_url,
        "networks": list(server.bundle.manifest.networks),
        "bundle_id": server.bundle.bundle_id,
        "triton_version": server.triton_version,
        "pid": os.getpid(),
        "triton_pid": server.pid,
    }
    if server.http_url:
        facts["http_url"] = server.http_url
    if gateway is not None:
        facts |= {"url": gateway.facts["url"], "gateway_metrics_url": gateway.facts["metrics_url"]}
        facts["gateway_pid"] = gateway.pid
    if json:
        print(jsonlib.dumps(facts), flush=True)
        return
    grid = Table.grid(padding=(0, 2))
    if gateway is not None:
        grid.add_row("fieldmark.v1", f"[bold]{escape(facts['url'])}[/]")
        grid.add_row("metrics", escape(facts["gateway_metrics_url"]))
    grid.add_row("Triton's gRPC", escape(server.grpc_url))
    if server.http_url:
        grid.add_row("Triton's HTTP", escape(server.http_url))
    grid.add_row("Triton's metrics", escape(server.metrics_url))
    grid.add_row("networks", ", ".join(server.bundle.manifest.networks))
    grid.add_row("bundle", server.bundle.bundle_id)
    grid.add_row("Triton", server.triton_version)
    name = escape(printable(server.bundle.manifest.name))
    Console(highlight=False).print(
        Panel(grid, title=f"serving [bold]{name}[/]", subtitle="Ctrl-C stops it", title_align="left", expand=False)
    )
