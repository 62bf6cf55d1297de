"""`fieldmark train` and `fieldmark attack`."""

import json as jsonlib
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from bundle import tensors
from bundle.console import advise, say
from bundle.errors import MissingExtra, OptionError
from bundle.verbs import App

if TYPE_CHECKING:
    from training.run import Run, RunRecord

MAX_SEED = 2**32 - 1
ATTACKS = "clean,noise,fgsm-8,pgd10-2,pgd10-8"
app = App()


@app.callback()
def _root() -> None:
    """Keep the verbs named."""


@app.command()
def train(
    data: Annotated[
        Path,
        typer.Argument(
            help="CUB-200-2011, Stanford Cars-196, a folder of class folders, or a manifest (.csv, .parquet)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    preset: Annotated[
        str,
        typer.Option(
            help="Starting point of all settings: small, vgg16-96, ap-resnet34-fast; docs/own-images.md has all."
        ),
    ] = "small",
    system: Annotated[
        str | None, typer.Option(help="maxsep (default), ap, ap-triplet, ap-pcl, protopnet, gap.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training part, warm-up included.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the square input in pixels.")] = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Largest image that is decoded, here and wherever the bundle is served.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="small, vgg16, vgg19, resnet34 or densenet121.")] = None,
    weights: Annotated[str | None, typer.Option(help="'imagenet', 'none', or a torchvision state dict.")] = None,
    adversarial: Annotated[str | None, typer.Option(help="Adversarial training: fast, n-fgsm or none.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting: --set loss.cluster=0 --set ema=0.99"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and augmentation.")] = None,
    division_seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of the division: runs that share it share their parts.")
    ] = 0,
    validation: Annotated[float | None, typer.Option(help="Share of the training images; 0.1.")] = None,
    calibration: Annotated[
        float | None, typer.Option(help="The same; 0.19, or more where few images would not support alpha 0.05.")
    ] = None,
    test: Annotated[
        float | None, typer.Option(help="Share of all images, where the data have no test part; 0.2.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on without images that cannot be read; RUN/bad.csv lists them.")
    ] = False,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Devices to train on together; a batch is divided.")] = 1,
    precision: Annotated[
        str, typer.Option(help="Lightning Fabric's names: 32-true or bf16-mixed; auto: what is fast here.")
    ] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Decoding processes for sets larger than memory.")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a run that is there already.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a system's heads, project its prototypes, and keep the best epoch on validation."""
    try:
        from training.data import Shares, check_outside, open_dataset
        from training.data.check import examine, sound
        from training.fit import check_start, train_run
        from training.parallel import AUTO, Devices, default_precision
        from training.presets import preset as preset_named
        from training.run import BAD, Run, image_spec
    except ImportError as problem:
        raise MissingExtra.named("training", "fieldmark train", problem) from None
    config = preset_named(
        preset,
        system=system,
        texts=set_ or (),
        epochs=epochs,
        batch_size=batch_size,
        image_size=image_size,
        max_pixels=max_pixels,
        backbone=backbone,
        weights=weights,
        adversarial=adversarial,
        seed=seed,
    )
    if config.weights == "none":
        config = replace(config, weights=None)
    run, console = Run(out), Console(stderr=json)
    shares = Shares(validation=validation, calibration=calibration, test=test)
    if run.finished and resume:
        run.check_settings(config)
        run.check_division(division_seed, shares)
        say(console, f"{out} is finished; nothing to do")
        if json:
            _print_json(run, run.read_record(), 0.0)
        return
    begun = (out / "run.json").exists()
    replaced = begun and not resume
    if replaced and not force:
        raise OptionError(f"{out} holds a run already", hint="Pass --resume to go on, or --force to start anew.")
    if out.exists() and any(out.iterdir()) and not begun:
        raise OptionError(f"{out} is not empty and holds no run", hint="Choose another --out.")
    if resume and begun:
        precision = run.precision(precision)  # as it was begun, wherever it goes on
    precision = default_precision(config.backbone, accelerator) if precision == AUTO else precision
    using = Devices(accelerator=accelerator, precision=precision, devices=devices, workers=workers)
    check_start(config, using)
    if resume and begun:
        run.check_division(division_seed, shares)
        dataset = run.read_record().dataset.open(data)  # divided as it was, and without what was bad then
    else:
        dataset = open_dataset(data, seed=division_seed, **asdict(shares))
        dataset = sound(dataset, image_spec(config), skip_bad=skip_bad)
    check_outside(dataset, out)
    if not dataset.parts["validation"]:
        raise OptionError(
            f"{dataset.name} leaves no images for validation, by which the best epoch is chosen",
            hint="Choose a larger --validation, or add images.",
        )
    counts = ", ".join(f"{len(samples)} {name}" for name, samples in dataset.parts.items())
    say(console, f"{dataset.name}: {len(dataset.labels)} classes; {counts}", dataset.division)
    say(console, *(f"note: {each}" for each in (*dataset.notes, *examine(dataset, dataset.looked).sentences())))
    if dataset.bad:
        say(console, f"note: {len(dataset.bad)} images that cannot be read are left out; {out / BAD} lists them")
    started = time.perf_counter()
    record = train_run(run, dataset, config, using, console, resume=resume)
    seconds = time.perf_counter() - started
    if json:
        _print_json(run, record, seconds)
        return
    say(console, *(f"warning: {sentence}" for sentence in record.results["outcome"]))
    right = ", ".join(f"{head} {share:.1%}" for head, share in record.results["validation"].items())
    served = set(record.results["validation"]) <= set(tensors.NETWORKS)
    following = f"fieldmark export {out} --out BUNDLE" if served else f"fieldmark evaluate RUN --source sub={out}"
    say(console, f"{out}: validation accuracy {right}, {seconds:.0f} s")
    advise(console, following)


def _print_json(run: "Run", record: "RunRecord", seconds: float) -> None:
    told = {key: record.results[key] for key in ("validation", "outcome")}
    facts = {"run": str(run.path), "seconds": seconds, **told}
    sys.stdout.write(jsonlib.dumps(facts) + "\n")


@app.command()
def attack(
    run: Annotated[Path, typer.Argument(help="A finished training run.")],
    out: Annotated[Path, typer.Option(help="Folder for the images and index.csv.")],
    data: Annotated[Path | None, typer.Option(help="The dataset, if it has moved since training.")] = None,
    attacks: Annotated[
        str,
        typer.Option(
            help="Comma-separated: clean, noise, fgsm-8, pgd10-8:dlr, pgd10-8:random, apgd-8, autoattack-8, "
            f"pgd10-8@SOURCE. Default: {ATTACKS.replace(',', ', ')}.",
            show_default=False,
        ),
    ] = ATTACKS,
    source: Annotated[
        list[str] | None, typer.Option(metavar="NAME=RUN", help="A run to transfer attacks from, as ATTACK@NAME.")
    ] = None,
    network: Annotated[str, typer.Option(help="full, attention or both.")] = "both",
    part: Annotated[str, typer.Option(help="Part of the dataset to attack.")] = "test",
    count: Annotated[int, typer.Option(min=1, help="Images at most, spread over the classes.")] = 400,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of noise and random starts.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there already.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """White-box attacks on a run, written as PNG files an attacker could upload."""
    try:
        from training.attacks.attacker import Attackers
        from training.attacks.files import AttackOrder, write_attacks
        from training.attacks.transfer import open_sources
        from training.run import Run
    except ImportError as problem:
        raise MissingExtra.named("training", "fieldmark attack", problem) from None
    record, model = Run(run).load_network()
    heads = model.config.heads if network == "both" else (network,)
    if unknown := set(heads) - set(model.config.heads):
        hint = f"Choose one of: {', '.join(model.config.heads)}, both."
        raise OptionError(f"unknown network {unknown.pop()!r} of {run}", hint=hint)
    names = tuple(dict.fromkeys(name.strip() for name in attacks.split(",") if name.strip()))
    if not names:
        raise OptionError("--attacks names nothing", hint="Name some, such as: clean,pgd10-8")
    root = data if data is not None else Path(record.dataset.root)
    attackers = Attackers(network=model, sources=open_sources(tuple(source or ()), record), seed=seed)
    order = AttackOrder(attacks=names, heads=heads, part=part, count=count)
    written = write_attacks(record, attackers, root, out, order, replace=force)
    if json:
        facts = {"out": str(out), "images": written, "attacks": names, "networks": heads, "part": part}
        sys.stdout.write(jsonlib.dumps(facts) + "\n")
        return
    say(Console(), f"{out}: {written} images and index.csv")
