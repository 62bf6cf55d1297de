"""`fieldmark repository`: a Triton model repository of one bundle after another, for a Triton that others run."""

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bundle import Bundle
from bundle.console import lay_out, readable, say
from bundle.engines import EngineSet
from bundle.errors import OptionError
from bundle.verbs import App

if TYPE_CHECKING:
    from serving.triton.repository import Repository

app = App()

RANDOM = "random data"


@app.callback()
def verbs() -> None:
    """Keeps `repository` a command of its own name while it is the only one here."""


@app.command()
def repository(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The repository; made if it is not there.")],
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="Serve it, as the next version if it is none yet.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="python, onnxruntime or tensorrt. Default: python, or what the repository has."),
    ] = None,
    version: Annotated[int | None, typer.Option(min=1, metavar="N", help="Go back to this version.")] = None,
    keep: Annotated[
        int | None, typer.Option(min=1, metavar="M", help="Delete all but the newest M versions and the served one.")
    ] = None,
    engines: Annotated[
        Path | None, typer.Option(metavar="ENGINES", help="For tensorrt: what 'fieldmark engine' wrote.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, gpu, or auto: each GPU, else the processor.")] = None,
    instances: Annotated[
        int | None, typer.Option(min=1, help="Instances of a network (of each GPU). Default: as suits the cores.")
    ] = None,
    cores: Annotated[
        int | None, typer.Option(min=1, help="Cores of the machine that serves. Default: those of this one.")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Largest batch. Default: 64, or what the engines take.")
    ] = None,
    queue_size: Annotated[
        int | None, typer.Option(min=0, help="Native backends: requests that may wait, for a second at most. 0: any.")
    ] = None,
    accelerator: Annotated[
        str | None, typer.Option(help="For onnxruntime on a GPU: tensorrt, or none (the default).")
    ] = None,
    engine_cache: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Of the server: where the accelerator keeps its engines. Default: /tmp."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what is served, and the history, as JSON.")] = False,
) -> None:
    """Write a Triton model repository: add a bundle as its next version, or go back to an old one with --version.

    Settings that are not given stay as they are in the repository.
    """
    from serving.triton.rollout import roll_out

    if bundle is None and version is None:
        raise OptionError("there is nothing to do", hint="Give a BUNDLE to add, or --version N to go back to one.")
    if engines is not None and bundle is None:
        raise OptionError("--engines belongs to a BUNDLE, and none is given")
    opened = None if bundle is None else Bundle.open(bundle)
    asked = {
        "backend": backend,
        "device": device,
        "instances": instances,
        "cores": cores,
        "max_batch": max_batch,
        "queue_size": queue_size,
        "accelerator": accelerator,
        "engine_cache": engine_cache,
    }
    found = None if engines is None or opened is None else EngineSet.open(engines, opened.bundle_id)
    written = roll_out(out, opened, asked, engines=found, version=version, keep=keep)
    if json:
        sys.stdout.write(jsonlib.dumps(facts(written)) + "\n")
    else:
        _show(facts(written))


def facts(repository: "Repository") -> dict[str, Any]:
    """A repository as JSON's own types."""
    from serving.triton.repository import CONFIG, read_config

    models = []
    for network in repository.networks:
        config = read_config(repository.path / network / CONFIG)
        group, batching = config.instance_group[0], config.dynamic_batching
        warm_up = next(iter(config.model_warmup[0].inputs.values()))
        models.append(
            {
                "model": network,
                "version": repository.served,
                "backend": config.backend,
                "accelerator": repository.settings.accelerator,
                "device": type(group).Kind.Name(group.kind).removeprefix("KIND_").lower(),
                "instances": group.count,
                "threads": repository.settings.threads,
                "max_batch": config.max_batch_size,
                "preferred_batches": list(batching.preferred_batch_size),
                "queue_size": batching.default_queue_policy.max_queue_size,
                "warm_up": warm_up.input_data_file or RANDOM,
            }
        )
    history = [
        {
            "version": number,
            "bundle_id": bundle_id,
            "precision": repository.precisions(number),
            "served": number == repository.served,
        }
        for number, bundle_id in sorted(repository.versions.items())
    ]
    return {
        "path": readable(repository.path),
        "version": repository.served,
        "bundle_id": repository.versions[repository.served],
        "models": models,
        "history": history,
    }


def _show(found: dict[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table("model", "version", "backend", "device", "instances x threads", "batches", box=SIMPLE_HEAD)
    for model in found["models"]:
        threads = f" x {model['threads']}" if model["threads"] else ""
        accelerated = "" if model["accelerator"] == "none" else f"\n+ {model['accelerator']}"
        table.add_row(
            model["model"],
            str(model["version"]),
            model["backend"] + accelerated,
            model["device"],
            f"{model['instances']}{threads}",
            " ".join(map(str, model["preferred_batches"])),
        )
    lay_out(console, table)
    known = any(any(entry["precision"].values()) for entry in found["history"])  # older manifests do not say
    table = Table("version", "bundle", *(["precision"] if known else []), "", box=SIMPLE_HEAD)
    for entry in found["history"]:
        each = entry["precision"]
        precision = next(iter(each.values())) if len(set(each.values())) == 1 else _listed(each)
        served = "[bold green]served[/]" if entry["served"] else ""
        table.add_row(str(entry["version"]), entry["bundle_id"][:12], *([precision] if known else []), served)
    lay_out(console, table)
    queue = found["models"][0]["queue_size"]
    warm_up = RANDOM if any(model["warm_up"] == RANDOM for model in found["models"]) else "an image of the bundle"
    console.print(f"requests that may wait: {queue or 'any number'}; warm-up with {warm_up}")
    say(console, f"repository: {found['path']}")


def _listed(precisions: dict[str, str]) -> str:
    return ", ".join(f"{network} {precision}" for network, precision in precisions.items())
