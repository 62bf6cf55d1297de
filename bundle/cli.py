"""`fieldmark bundle show|verify|sign`."""

import json as jsonlib
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from bundle.console import lay_out, say
from bundle.errors import printable
from bundle.false_alarms import resolution
from bundle.folder import Bundle, describe, sign_bundle
from bundle.verbs import App

app = App()
verbs = App(help="Show, verify or sign a bundle.")
app.add_typer(verbs, name="bundle")


@app.callback()
def _root() -> None:
    """Keep `bundle` a named verb, whatever else this application holds."""


@verbs.command()
def show(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    json: Annotated[bool, typer.Option("--json", help="Print the whole manifest as JSON.")] = False,
) -> None:
    """Verify a bundle and print what it holds."""
    bundle = Bundle.open(path)
    if json:
        sys.stdout.write(describe(bundle) + "\n")
        return
    manifest, console = bundle.manifest, Console()
    size = f"{manifest.image.width}x{manifest.image.height} px"
    # A bundle comes from elsewhere: what it says of itself is text, neither markup nor control characters.
    name = escape(printable(manifest.name))
    console.print(f"[bold]{name}[/]  {len(manifest.labels)} labels, {size}", highlight=False, soft_wrap=True)
    say(console, f"bundle id  {bundle.bundle_id}")
    say(console, _signature(bundle))
    for key, value in manifest.training.items():
        if key == "config":  # every number of the training run; --json has it
            continue
        say(console, *map(printable, _lines(key, value)))
    table = _table("network", "output", "type", "shape", "largest\ndifference", "mean\ndifference")
    table.caption, table.caption_justify = "differences from PyTorch; layer_scores are squared distances", "left"
    for name, network in manifest.networks.items():
        for tensor in network.outputs:
            shape = "x".join(["N", *map(str, tensor.shape)])
            found = network.parity.outputs.get(tensor.name)
            differences = ("not measured", "") if found is None else (f"{found.max_abs:.1e}", f"{found.mean_abs:.1e}")
            table.add_row(name, tensor.name, tensor.dtype, shape, *differences)
    lay_out(console, table)
    table = _table("network", "precision", "images compared", "same class as PyTorch", "same flag")
    for name, network in manifest.networks.items():
        parity = network.parity
        same = (f"{share:.1%}" for share in (parity.argmax_agreement, parity.flag_agreement))
        table.add_row(name, network.precision, str(parity.images), *same)
    lay_out(console, table)
    table = _table("network", "detector layers", "alpha", "calibration", "calibration\nimages")
    for name, network in manifest.networks.items():
        detector = network.detector
        table.add_row(
            name,
            escape("\n".join(_by_layer(detector.columns))),
            f"{detector.alpha:g}",
            detector.calibration,
            str(detector.calibration_n),
        )
    lay_out(console, table)
    for name, network in manifest.networks.items():
        say(console, f"{name}: {resolution(network.detector.calibration_n, network.detector.alpha)}")
    if not any(network.quality for network in manifest.networks.values()):
        return
    table = _table("network", "precision", "validation\nimages", "accuracy", "clean flagged", "AUROC by attack")
    for name, network in manifest.networks.items():
        for precision, quality in network.quality.items():
            areas = "\n".join(f"{printable(attack)} {area:.3f}" for attack, area in quality.auroc.items())
            shares = (f"{share:.1%}" for share in (quality.accuracy, quality.flagged))
            table.add_row(name, escape(printable(precision)), str(quality.images), *shares, escape(areas))
    lay_out(console, table)


@verbs.command()
def verify(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="PUBLIC.pem",
            help="Require a signature by this Ed25519 key. Default: $FIELDMARK_PUBLIC_KEY, else none is required.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check every file of a bundle against its manifest, and the manifest's signature."""
    bundle = Bundle.open(path, key=key)
    total = sum(entry.bytes for entry in bundle.manifest.files.values())
    if json:
        facts = {
            "bundle": str(path),
            "bundle_id": bundle.bundle_id,
            "files": len(bundle.manifest.files),
            "bytes": total,
            "signed": bundle.signed,
            "signed_by": None if bundle.key is None else str(bundle.key),
        }
        sys.stdout.write(jsonlib.dumps(facts) + "\n")
        return
    say(
        Console(),
        f"{path}: {len(bundle.manifest.files)} files, {total / 1e6:.1f} MB, all match; {_signature(bundle)}. "
        f"id {bundle.bundle_id}",
    )


@verbs.command()
def sign(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    key: Annotated[Path, typer.Option(metavar="PRIVATE.pem", help="Ed25519 private key, not encrypted.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a signature that is there already.")] = False,
) -> None:
    """Verify a bundle and write the signature of its manifest into it, as manifest.sig. Its id stays the same."""
    bundle = sign_bundle(path, key, replace=force)
    say(Console(), f"{path}: signed. id {bundle.bundle_id}")


def _by_layer(columns: Sequence[str]) -> list[str]:
    """A detector's columns, those of one layer in one line."""
    layers = groupby(columns, lambda column: column.partition("/")[0])
    return [printable(" ".join(each)) for _, each in layers]


def _signature(bundle: Bundle) -> str:
    if bundle.key is not None:
        return f"signed by the key {printable(str(bundle.key))}"
    return "signed (not checked: no key was given)" if bundle.signed else "not signed"


def _table(*titles: str) -> Table:
    """A table in which what does not fit goes on in the next line: nothing is cut."""
    return Table(*(Column(title, overflow="fold") for title in titles), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _lines(key: str, value: object) -> list[str]:
    """What the training record says under a key; sentences in it have lines of their own."""
    if not isinstance(value, dict):
        return [f"{key}  {text}" for text in _sentences(value) or [_plain(value)] if text]
    whole = {name: found for name, item in value.items() if (found := _sentences(item))}
    short = _plain({name: item for name, item in value.items() if name not in whole})
    lines = [f"  {name}: {text}" for name, found in whole.items() for text in found]
    return [f"{key}  {short}", *lines] if short or lines else []


def _sentences(value: object) -> list[str]:
    """The sentences that a value is; none where it is a name or a number, or several."""
    if isinstance(value, str):
        return [value] if ", " in value else []
    if isinstance(value, (list, tuple)) and any(isinstance(each, str) and " " in each for each in value):
        return [_plain(each) for each in value]
    return []


def _plain(value: object) -> str:
    """A value of the training record without JSON's quotes and braces; empty where it says nothing."""
    if value is None:
        return ""
    if isinstance(value, dict):
        told = {key: _plain(item) for key, item in value.items()}
        return ", ".join(
            f"{key} ({told[key]})" if isinstance(item, dict) else f"{key} {told[key]}"
            for key, item in value.items()
            if told[key]
        )
    if isinstance(value, (list, tuple)):
        return " ".join(map(_plain, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else jsonlib.dumps(value, ensure_ascii=False)
