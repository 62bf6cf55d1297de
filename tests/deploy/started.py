"""The command line of a container, read as the command itself reads it: an unknown flag or a bad value fails here."""

from pathlib import Path
from typing import Any

import typer

from serving.gateway.cli import app as gateway_app
from serving.gateway.options import GatewayOptions
from serving.upkeep.cli import serve
from serving.upkeep.options import ServeOptions

# What `serve` says itself to the gateway that it starts.
_OWN = {"port": "port", "metrics_port": "gateway_metrics_port", "drain_seconds": "drain_seconds", "host": "host"}
_DOOR = ("insecure", "certificate", "certificate_key", "keys", "client_ca", "health", "reflection")


def parse(arguments: list[str]) -> GatewayOptions:
    """The options of the gateway that `fieldmark ARGUMENTS` ends up with, where `serve` or `gateway` is the verb."""
    return GatewayOptions(
        **{name: value for name, value in flags(arguments).items() if name in GatewayOptions.__dataclass_fields__}
    )


def flags(arguments: list[str]) -> dict[str, Any]:
    """Every flag by name, as given or by default; an open door is one in so many words."""
    verb, *rest = arguments
    if verb == "gateway":
        found = _read(gateway_app, "gateway", rest)
    else:
        assert verb == "serve"
        app = typer.Typer(add_completion=False)
        app.command()(serve)
        app.callback()(lambda: None)
        given = _read(app, "serve", rest)
        found = _read(gateway_app, "gateway", ["127.0.0.1:8001", *(given["gateway_options"] or ())])
        found |= {name: given[theirs] for name, theirs in _OWN.items()}
        found |= {name: given[name] for name in _DOOR}
        # It knows what must not stand behind the --.
        ServeOptions(path=given["bundle"], gateway_options=tuple(given["gateway_options"] or ()))
    guarded = all(found[each] for each in ("certificate", "certificate_key", "keys"))
    assert found["insecure"] != guarded
    return {name: value for name, value in found.items() if value is not None}


def _read(app: typer.Typer, name: str, arguments: list[str]) -> dict[str, Any]:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    params: dict[str, Any] = command.make_context(name, list(arguments)).params
    return params


def modules(command: list[str]) -> list[Path]:
    """The files that `python3 -m MODULE` of a command would run."""
    root = Path(__file__).parents[2]
    names = [command[index + 1] for index, word in enumerate(command) if word == "-m"]
    return [root.joinpath(*name.split(".")).with_suffix(".py") for name in names]
