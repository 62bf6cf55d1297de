"""`fieldmark envoy`: the configuration for whoever runs an Envoy of his own before a gateway, or before a console."""

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from bundle.console import say
from bundle.errors import MissingExtra, OptionError
from bundle.files import atomic_file, check_place, write_text
from bundle.verbs import App
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
    envoy_options,
)
from serving.envoy.options import DEFAULT_ENVOY_PORT, DEFAULTS, EnvoyOptions
from serving.gateway.options import flag

if TYPE_CHECKING:
    from serving.envoy.inside import Inside

_EXPORTS = "Leave it out: an export may take its time, and only --idle-seconds ends what stands still."
_NOT_OF_CONSOLES = {  # flag -> the hint for whoever gives it with --console
    "rate": "Leave it out: who has a reviewer's key may ask as often as a page needs.",
    "burst": "Leave it out: who has a reviewer's key may ask as often as a page needs.",
    "image_bytes": "Leave it out: nobody sends images to a console, and it bounds its forms itself.",
    "concurrency": "Leave it out: before a console no request is shed.",
    "timeout": _EXPORTS,
    "stall_seconds": _EXPORTS,
    "health": "Leave it out: a console has no service whose health could be asked for.",
    "reflection": "Leave it out: a console has pages, and no proto.",
}

app = App()


@app.callback()
def verbs() -> None:
    """Keeps `envoy` a command of its own name while it is the only one here."""


@app.command()
def envoy(
    context: typer.Context,
    gateway: Annotated[
        str,
        typer.Argument(metavar="HOST:PORT", help="Where the gateway, or the console, listens, seen from Envoy."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it, as JSON. It holds the keys.")],
    certificate: Certificate = None,
    certificate_key: CertificateKey = None,
    keys: Keys = None,
    client_ca: ClientCa = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = DEFAULTS["host"],
    port: Annotated[int, typer.Option(help="Port to listen on.")] = DEFAULT_ENVOY_PORT,
    rate: Rate = DEFAULTS["rate"],
    burst: Burst = DEFAULTS["burst"],
    connections: Connections = DEFAULTS["connections"],
    image_bytes: Annotated[int, typer.Option(help="As the gateway's.")] = DEFAULTS["image_bytes"],
    concurrency: Annotated[int, typer.Option(help="As the gateway's.")] = DEFAULTS["concurrency"],
    timeout: Annotated[float, typer.Option(help="As the gateway's.")] = DEFAULTS["timeout"],
    stall_seconds: Annotated[float, typer.Option(help="As the gateway's.")] = DEFAULTS["stall_seconds"],
    idle_seconds: Annotated[float, typer.Option(help="As the gateway's.")] = DEFAULTS["idle_seconds"],
    connection_seconds: Annotated[float, typer.Option(help="As the gateway's.")] = DEFAULTS["connection_seconds"],
    renewals: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write files here, by which Envoy notices renewed certificates."),
    ] = None,
    health: Health = False,
    reflection: Reflection = False,
    console: Annotated[
        bool,
        typer.Option(
            "--console",
            help="HOST:PORT is a console ('fieldmark review --behind-envoy'): browsers ask for a key and its name.",
        ),
    ] = False,
    binary: Binary = None,
) -> None:
    """Write the configuration of an Envoy of your own: TLS, keys and limits before a gateway, or before a console.

    Where Envoy is installed, it looks at it first. The files of certificates are named in it as they are given here.
    """
    given = locals()
    options = envoy_options({name: given[name] for name in EnvoyOptions.__dataclass_fields__})
    check_place(out)
    from serving.envoy.configuration import configuration
    from serving.envoy.console import before_console
    from serving.envoy.tls import certificates

    if console:
        _check_flags(context)
    inside = before_console(options) if console else None
    _let_envoy_look(options, binary, renewed=renewals is not None, inside=inside)

    if renewals is not None:
        for name, document in certificates(options).items():
            write_text(renewals / name, json.dumps(document, indent=2) + "\n")
    with atomic_file(out) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(configuration(options, renewals, inside), indent=2) + "\n", encoding="utf-8")
    held = "digests of the keys" if console else "the keys"
    say(Console(), f"{out} holds {held}: keep it. Run it: envoy -c {out}")


def _check_flags(context: typer.Context) -> None:
    """Raise OptionError for a limit that a console's door has not: of images, and of calls."""
    for name, hint in _NOT_OF_CONSOLES.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise OptionError(f"{flag(name)} is of a gateway, and --console says that it is none", hint=hint)


def _let_envoy_look(options: EnvoyOptions, binary: Path | None, *, renewed: bool, inside: "Inside | None") -> None:
    from serving.envoy.process import find_envoy, validate

    with contextlib.suppress(MissingExtra):  # his own Envoy may live elsewhere
        validate(options, binary or find_envoy(), renewed=renewed, inside=inside)
