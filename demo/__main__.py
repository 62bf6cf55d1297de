"""`python -m demo`: draw or take a dataset, train, export, serve, classify clean and attacked images, score."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bundle import tensors
from bundle.console import lay_out, say
from bundle.files import write_text
from bundle.folder import Bundle
from bundle.manifest import MANIFEST_SCHEMA
from bundle.verbs import App
from demo.archive import make_archive, score_archive
from demo.endpoint import Answers, ask, look, served
from demo.figure import Panel, draw
from demo.stages import StageFailed, Stages, contents, fieldmark
from fieldmark import as_process, guarded
from serving.gateway.client import FieldmarkClient

ATTACKS = ("clean", "noise", "fgsm-8", "pgd10-2", "pgd10-8")
TITLES = ("clean", "Gaussian noise", "FGSM 8/255", "PGD-10 2/255", "PGD-10 8/255")
SHOWN = 6  # birds in demo.png
DEFAULT_PRESET = "small"


def demo(
    data: Annotated[Path | None, typer.Option(help="Your dataset: CUB, Cars, class folders or a manifest.")] = None,
    preset: Annotated[str, typer.Option(help="Training preset.")] = DEFAULT_PRESET,
    out: Annotated[Path | None, typer.Option(help="Where everything goes; build/demo[-NAME][-PRESET].")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Training epochs, instead of the preset's.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Input side in pixels, instead of the preset's.")] = None,
    weights: Annotated[str | None, typer.Option(help="'imagenet', 'none' or a file, instead of the preset's.")] = None,
    alpha: Annotated[float | None, typer.Option(help="False-positive rate of the alarm, instead of export's.")] = None,
    count: Annotated[int, typer.Option(min=2, help="Test images to attack, for each attack and network.")] = 300,
) -> None:
    """Run the whole job; finished stages are reused."""
    console = Console()
    names = [
        *([] if data is None else [data.resolve().stem if data.is_file() else data.resolve().name]),
        *([] if preset == DEFAULT_PRESET else [preset]),
    ]
    out = out or Path("build") / "-".join(["demo", *names])
    out.mkdir(parents=True, exist_ok=True)
    stages = Stages(out, console)
    run, bundle_path, attacked = out / "run", out / "bundle", out / "attacked"
    given = "" if data is None else f" {contents(data, without=out)}"
    if data is None:
        data = out / "birds"
        birds, key = data, "birds 20 64 0"
        stages.run("data", key, birds, lambda: fieldmark("data", "make", birds, "--force"))
        stages.run(
            "sheet", key, out / "birds.png", lambda: fieldmark("data", "show", birds, "--out", out / "birds.png")
        )
    wanted = {"--preset": preset, "--epochs": epochs, "--image-size": image_size, "--weights": weights}
    settings = [word for option, value in wanted.items() if value is not None for word in (option, str(value))]
    key = f"{data.resolve()} {' '.join(settings)}{given}"
    resume = "--resume" if stages.interrupted("train", key) else "--force"
    train: tuple[str | Path, ...] = ("train", data, "--out", run, *settings, resume)
    stages.run("train", key, run / "model.pt", lambda: fieldmark(*train))
    key = f"{key} {stages.stamp('train')} schema {MANIFEST_SCHEMA}"  # a bundle of an earlier version is made again
    rate = () if alpha is None else ("--alpha", str(alpha))
    export: tuple[str | Path, ...] = ("export", run, "--out", bundle_path, "--data", data, *rate, "--force")
    stages.run("export", " ".join([key, *rate]), bundle_path, lambda: fieldmark(*export))
    bundle = Bundle.open(bundle_path)
    networks = [name for name in tensors.NETWORKS if name in bundle.manifest.networks]
    main = bundle.manifest.main_network
    arguments = ("--out", attacked, "--data", data, "--attacks", ",".join(ATTACKS), "--count", str(count), "--force")
    stages.run("attack", f"{key} {count}", attacked, lambda: fieldmark("attack", run, *arguments))
    console.rule("[bold]serve and classify[/]", align="left")
    answers: dict[str, dict[str, Answers]] = {}
    with stages.timed("serve"), served(bundle_path) as endpoint:
        say(console, f"fieldmark.v1 at {endpoint['url']} (gRPC), before Triton {endpoint['triton_version']}")
        with FieldmarkClient(endpoint["url"]) as client:
            if client.describe().bundle_id != bundle.bundle_id:
                raise StageFailed("the endpoint serves another bundle")
            with stages.timed("classify"):
                for network in networks:
                    answers[network] = ask(client, attacked, network)
            birds_shown = _rows(client, answers[main], main, bundle)
    stages.seconds["serve"] = round(stages.seconds["serve"] - stages.seconds["classify"], 2)
    console.rule("[bold]score a folder[/]", align="left")
    with stages.timed("score"):
        archive = make_archive(attacked / main, out / "archive")
        scored = score_archive(archive, bundle_path, out / "scores")
    report = {
        "seconds": {**_setup_seconds(), **stages.seconds},
        "reused": stages.reused,
        "triton_version": endpoint["triton_version"],
        "bundle_id": bundle.bundle_id,
        "alpha": bundle.manifest.networks[main].detector.alpha,
        "networks": {network: _measure(by_attack) for network, by_attack in answers.items()},
        "scored": scored,
    }
    write_text(out / "report.json", json.dumps(report, indent=2) + "\n")
    draw(birds_shown, out / "demo.png", _note(report["networks"][main], len(birds_shown)))
    _print(report, console)
    say(
        console,
        "",
        f"figures  {out / 'report.json'}",
        f"picture  {out / 'demo.png'}",
        f"report   {bundle_path / 'report' / 'report.html'}: gates, attackers who know the detector, limits",
        f"bundle   {bundle_path}   serve it: fieldmark serve {bundle_path}",
        f"console  look at what was flagged, and decide: fieldmark review {out / 'scores'} --bundle {bundle_path}",
    )


def _measure(by_attack: dict[str, Answers]) -> dict[str, Any]:
    from robustness.metrics import auroc, fooled

    clean = by_attack["clean"]
    found: dict[str, float | None] = {}
    measured: dict[str, Any] = {
        attack: {
            "n": len(said.labels),
            "accuracy": round(said.accuracy, 4),
            "flagged": round(said.flagged, 4),
            "missed": round(said.missed, 4),
        }
        for attack, said in by_attack.items()
    }
    negatives, before = np.array(clean.scores), np.array(clean.right)
    for attack, said in by_attack.items():
        positives = np.array(said.scores)[fooled(before, np.array(said.right))]
        if attack != "clean":
            found[attack] = round(auroc(negatives, positives), 4) if len(positives) else None
    measured["auroc"] = found
    return measured


def _setup_seconds() -> dict[str, float]:
    """How long `make setup` took for both environments, as it has noted in them."""
    environment = Path(sys.prefix)
    try:
        notes = [each / ".whole" for each in (environment, environment.parent / ".venv-triton")]
        return {"setup": sum(float(note.read_text(encoding="utf-8")) for note in notes)}
    except (OSError, ValueError):
        return {}


def _rows(
    client: FieldmarkClient, by_attack: dict[str, Answers], network: str, bundle: Bundle
) -> list[tuple[str, list[tuple[str, Panel]]]]:
    """What demo.png shows: some birds, clean and attacked."""
    clean, attacked = by_attack["clean"], by_attack["pgd10-8"]
    step = max(1, len(clean.labels) // SHOWN)
    rows = []
    for index in range(step // 2, len(clean.labels), step)[:SHOWN]:
        panels = [
            (
                name,
                Panel(
                    pixels=bundle.manifest.image.read(said.paths[index]),
                    attention=look(client, said.paths[index], network),
                    prediction=said.predictions[index],
                ),
            )
            for name, said in (("clean", clean), ("attacked, PGD-10 8/255", attacked))
        ]
        rows.append((clean.labels[index], panels))
    return rows


def _note(measured: Mapping[str, Any], shown: int) -> str:
    """That a few images are no rate, and which rate they come from."""
    clean, attacked = measured["clean"], measured["pgd10-8"]
    return (
        f"{shown} of {clean['n']} test images, at equal steps; of all of them {clean['flagged']:.1%} are flagged as "
        f"they are, and {attacked['flagged']:.1%} when attacked"
    )


def _print(report: dict[str, Any], console: Console) -> None:
    for network, measured in report["networks"].items():
        table = Table(
            f"[bold]{network}[/] network", "accuracy", "flagged", "missed", "AUROC", box=SIMPLE_HEAD, padding=(0, 2)
        )
        for column in table.columns[1:]:
            column.justify = "right"
        for attack, title in zip(ATTACKS, TITLES, strict=True):
            auroc = measured["auroc"].get(attack)
            shares = [f"{measured[attack][column]:.1%}" for column in ("accuracy", "flagged", "missed")]
            table.add_row(title, *shares, "" if auroc is None else f"{auroc:.3f}")
        lay_out(console, table)
    n = next(iter(report["networks"].values()))["clean"]["n"]
    scored = report["scored"]
    say(
        console,
        f"{n} test images a row. flagged: p-value <= {report['alpha']:g}. missed: answered wrongly and not flagged. "
        "AUROC: images that fool the network against clean ones.",
        "Attacks are white-box on the network that answers, blind to the detector; it has seen their kinds, on other "
        "images.",
        f"scored {scored['rows']} files of a folder into a Delta table, {scored['errors']} unreadable.",
        f"seconds: {', '.join(f'{stage} {seconds:g}' for stage, seconds in report['seconds'].items())}",
    )


if __name__ == "__main__":
    app = App()
    app.command()(demo)
    as_process(lambda: guarded(app))
