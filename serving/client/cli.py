"""`fieldmark classify`: images over gRPC, to a service of fieldmark.v1 or to a Triton that serves a bundle."""

import json as jsonlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bundle import Bundle
from bundle.console import lay_out, readable, say
from bundle.errors import OptionError, printable
from bundle.verbs import App

if TYPE_CHECKING:
    from serving.client.classify import Answer

KEY = "FIELDMARK_KEY"

app = App()


@app.callback()
def verbs() -> None:
    """Keeps `classify` a command of its own name while it is the only one here."""


@app.command()
def classify(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...")],
    url: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", help="A service of fieldmark.v1, or a Triton's gRPC; unix:PATH is a Triton's."
        ),
    ] = "localhost:8010",
    network: Annotated[
        str | None,
        typer.Option(help="full or attention; else the one that the bundle names.", show_default=False),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="False-positive rate of is_adversarial, instead of the bundle's.")
    ] = None,
    top: Annotated[int, typer.Option(help="Labels to give for each image, best first.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object an image, one a line.")] = False,
    explain: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw attention and the most similar prototypes here.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Insist on this bundle, and take prototype images from it.")
    ] = None,
    tls: Annotated[
        bool, typer.Option("--tls", help=f"Over TLS, as to a service for strangers; a key is taken from ${KEY}.")
    ] = False,
    ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Authority of the service's certificate, if not a usual one.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, max=86400, help="Seconds to wait for an answer.")] = 30.0,
) -> None:
    """Classify images over gRPC: label, probability, and whether each looks adversarial."""
    from serving.client.endpoint import Question, open_endpoint
    from serving.gateway.calls import Tls

    _check_picture(explain, len(images))
    expected = Bundle.open(bundle) if bundle else None
    question = Question(network=network, alpha=alpha, top=top, explain=explain is not None)
    secured = Tls(ca=ca) if tls or ca else None
    with open_endpoint(url, key=os.environ.get(KEY, ""), tls=secured, timeout=timeout, expected=expected) as endpoint:
        asked, answers = endpoint.ask(images, question), []
        for answer in asked.each:
            answers.append(answer)
            if json:
                _print_record(answer)
    if not json:
        served = f"bundle {endpoint.bundle_id[:12]} at {endpoint.url}"
        _print_table(answers, f"network {asked.network}, alpha {asked.alpha:g}, {served}")
    if explain and any(answer.prediction for answer in answers):
        _draw(explain, answers, asked.alpha)
    if any(answer.error for answer in answers):
        raise typer.Exit(1)


def _print_record(answer: "Answer") -> None:
    from serving.client.classify import as_record

    print(jsonlib.dumps(as_record(answer, readable(answer.path))), flush=True)


def _print_table(answers: "list[Answer]", caption: str) -> None:
    table = Table(box=SIMPLE_HEAD, caption=escape(printable(caption)), caption_justify="left", padding=(0, 1, 0, 0))
    table.add_column("file", overflow="fold")
    table.add_column("label", overflow="fold")
    for number in ("probability", "instance_score", "p_value"):
        table.add_column(number, justify="right", no_wrap=True)
    table.add_column("is_adversarial", no_wrap=True)
    for answer in answers:
        if (found := answer.prediction) is None:
            continue
        table.add_row(
            escape(printable(readable(answer.path))),
            escape(printable(found.label)),
            f"{found.probability:.3f}",
            f"{found.instance_score:.3f}",
            f"{found.p_value:.4f}",
            "[bold red]true[/]" if found.is_adversarial else "false",
        )
        for label, probability in found.top[1:]:
            table.add_row("", escape(printable(label)), f"{probability:.3f}")
    if table.rows:
        lay_out(Console(), table)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    for answer in answers:
        if answer.error:
            errors.print(f"[bold red]error:[/] {escape(printable(answer.error))}")


def _check_picture(explain: Path | None, count: int) -> None:
    """What can be wrong with --explain, said before anything is sent."""
    if explain is None:
        return
    from serving.client.explain import MAX_ROWS

    if explain.suffix.lower() != ".png":
        raise OptionError(f"--explain {explain} does not end in .png, and the picture is a PNG")
    if explain.is_dir():
        raise OptionError(f"--explain {explain} is a folder")
    if count > MAX_ROWS:
        raise OptionError(f"--explain draws at most {MAX_ROWS} images, and {count} are given")


def _draw(explain: Path, answers: "list[Answer]", alpha: float) -> None:
    from serving.client.explain import draw_explanations

    drawn = [answer for answer in answers if answer.prediction]
    draw_explanations(explain, drawn, [readable(Path(answer.path.name)) for answer in drawn], alpha)
    say(Console(stderr=True), f"picture: {readable(explain)}")
