"""`fieldmark roll out|back|shadow|status`: what a running `fieldmark serve` is told."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bundle import Bundle
from bundle.console import say
from bundle.errors import printable
from bundle.verbs import App
from serving.control import tell
from serving.upkeep.place import control_path
from serving.upkeep.roller import BACK, OUT, SHADOW, STATUS

app = App()
verbs = App(help="Move a running service to another bundle, or back.")
app.add_typer(verbs, name="roll")

SECONDS = 600.0  # that an order may take: a bundle is copied, and a server started
Service = Annotated[
    str,
    typer.Argument(metavar="PORT|SOCKET", help="The port of its fieldmark.v1, or the place of its --control."),
]
Json = Annotated[bool, typer.Option("--json", help="Print what has come of it as one line of JSON.")]


@app.callback()
def _root() -> None:
    """Keep `roll` a named verb, whatever else this application holds."""


@verbs.command()
def out(
    service: Service,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    other_labels: Annotated[
        bool, typer.Option("--other-labels", help="Even if it has other labels, or fewer networks.")
    ] = False,
    json: Json = False,
) -> None:
    """Move to a bundle, without a failed request; it is refused unless every network of it answers."""
    opened = Bundle.open(bundle)  # what is wrong with it is said here, before anybody is asked
    _show(_order(service, OUT, path=str(opened.path.absolute()), other_labels=other_labels), json)


@verbs.command()
def back(service: Service, json: Json = False) -> None:
    """Move back to the bundle that answered before."""
    _show(_order(service, BACK), json)


@verbs.command()
def shadow(
    service: Service,
    bundle: Annotated[Path | None, typer.Argument(metavar="[BUNDLE]", help="None ends it.")] = None,
    share: Annotated[float, typer.Option(help="Of the requests, above 0 and up to 1.")] = 0.1,
    json: Json = False,
) -> None:
    """Have a bundle answer copies of requests, and count what it would have answered otherwise. Callers notice nothing.

    'roll out' of the same bundle moves to it at once: it is running already.
    """
    path = str(Bundle.open(bundle).path.absolute()) if bundle else None
    _show(_order(service, SHADOW, path=path, share=share), json)


@verbs.command()
def status(service: Service, json: Json = False) -> None:
    """What answers, what did before, what the shadow would have answered, and what was refused last."""
    _show(_order(service, STATUS), json)


def _order(service: str, verb: str, **facts: Any) -> dict[str, Any]:
    place = control_path(int(service)) if service.isdecimal() else Path(service)
    return tell(place, verb, seconds=SECONDS, **facts)


def _show(facts: dict[str, Any], json: bool) -> None:
    if json:
        print(jsonlib.dumps(facts), flush=True)
        return
    lines = [f"answers   {facts['bundle_id'][:12]}  {facts['name']}"]
    if facts["previous"]:
        lines.append(f"before    {facts['previous'][:12]}")
    if found := facts.get("shadow"):
        lines += _shadow_lines(found)
    if facts["working"]:
        lines.append(f"in work   {facts['working']}")
    if refused := facts["refused"]:
        lines.append(f"refused   {refused['bundle']}: {refused['cause']}")
    say(Console(), *map(printable, lines))


def _shadow_lines(found: dict[str, Any]) -> list[str]:
    if "share" not in found:
        return [f"shadow    {found['bundle_id'][:12]}, which the gateway does not reach"]
    compared = found["same"] + found["different"]
    return [
        f"shadow    {found['bundle_id'][:12]}, {found['share']:.3g} of the requests",
        f"          {compared} compared: {found['label']} with another label, {found['flag']} with another flag; "
        f"p-values differ by at most {found['largest_p_value_difference']:.3g}",
        f"          {found['dropped']} dropped under load, {found['failed']} that it did not answer",
    ]
