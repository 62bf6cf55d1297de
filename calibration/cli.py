"""`fieldmark calibrate`."""

import contextlib
import json as jsonlib
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from bundle.console import advise, lay_out, readable, say
from bundle.errors import DatasetError, OptionError, printable
from bundle.false_alarms import coarser, is_alpha, resolution
from bundle.files import check_free
from bundle.folder import Bundle
from bundle.formats import passed_over
from bundle.manifest import MANIFEST
from bundle.verbs import App

if TYPE_CHECKING:
    from calibration.recalibration import Recalibration

app = App()


@app.callback()
def _root() -> None:
    """Keep `calibrate` a named verb."""


@app.command()
def calibrate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle; it stays as it is.")],
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    images: Annotated[
        Path | None,
        typer.Option(
            "--with",
            metavar="FOLDER",
            help="Clean images from where the bundle will work: a folder (recursive), or a text file with a path a "
            "line. No labels; none that it was trained on.",
        ),
    ] = None,
    review: Annotated[
        Path | None,
        typer.Option(
            "--from-review",
            metavar="DB",
            help="Instead of a folder: what 'fieldmark review' found clean of a random sample that was decided whole.",
        ),
    ] = None,
    moved: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="With --from-review of a score folder or a table: where the scored images lie now, if they moved.",
        ),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Default false-positive rate of is_adversarial, instead of the bundle's.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on without images that are damaged or there twice.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there already.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what the calibration was made with as JSON.")] = False,
) -> None:
    """Count p-values from clean images of your own: another bundle of the same weights, without labels or PyTorch."""
    from calibration.recalibration import recalibrate

    if (images is None) == (review is None):
        raise OptionError("one of --with and --from-review says which images are clean")
    if moved is not None and review is None:
        raise OptionError("--images belongs to --from-review", hint="Give a folder of clean images by --with.")
    if alpha is not None and not is_alpha(alpha):
        raise OptionError(f"--alpha {alpha:g} is not between 0 and 1")
    check_free(out, replace=force, marker=MANIFEST)
    if images is not None and images.resolve() in out.resolve().parents:
        raise OptionError(
            f"{out} lies in {images}, and its prototypes would be among the next calibration's images",
            hint="Choose a folder outside it.",
        )
    opened = Bundle.open(bundle)
    with _clean(opened, images, review, moved) as clean:
        if not json:
            _warn(opened, len(clean.paths), Console())
        made = recalibrate(opened, clean.paths, out, source=clean.name, alpha=alpha, skip_bad=skip_bad, replace=force)
        clean.taken(made.bundle.bundle_id)
    if json:
        told = asdict(made.provenance)
        document = told | {"bundle_id": made.bundle.bundle_id, "made_from": told["bundle_id"]}
        document["skipped"] = list(made.left_out)
        sys.stdout.write(jsonlib.dumps(document) + "\n")
        return
    console = Console()
    _show(made, console)
    if clean.words:
        say(console, clean.words)
    if opened.signed:
        say(console, f"the signature of {bundle} does not hold for it: fieldmark bundle sign {out} --key PRIVATE.pem")
    say(
        console,
        f"{out}: bundle {made.bundle.bundle_id}",
        "engines and scores of the old bundle do not fit it: build and score anew",
    )
    advise(console, f"fieldmark serve {out}")


@dataclass(frozen=True, kw_only=True)
class _Clean:
    """Clean images, what people call them, what is to be said of others; `taken` hears which bundle they made."""

    paths: list[Path]
    name: str
    words: str
    taken: Callable[[str], object] = lambda _: None


@contextlib.contextmanager
def _clean(bundle: Bundle, images: Path | None, review: Path | None, moved: Path | None) -> Iterator[_Clean]:
    if review is not None:
        from review.handover import clean_files

        with clean_files(review, bundle, moved) as handed:
            words = f"of the sample left out: {handed.left_out}" if handed.left_out else ""
            yield _Clean(paths=list(handed.paths), name=handed.name, words=words, taken=handed.taken)
        return
    if images is None:
        raise ValueError("there are no images")
    from scoring.sources import Source

    source, passed = Source.open(images), Counter[str]()
    source.check_any()
    files = list(source.files(passed))
    if unread := [file.problem for file in files if file.problem]:
        raise DatasetError(unread[0], hint="Calibrate with images that can be read.")
    paths = [Path(file.location) for file in files]
    _refuse_prototypes(paths)
    yield _Clean(paths=paths, name=printable(images.resolve().name), words=passed_over(passed))


def _refuse_prototypes(paths: Sequence[Path]) -> None:
    """A bundle below the folder has pictures of its prototypes, which are training images."""
    parts: dict[Path, Collection[str]] = {}  # of the bundles that were met, and nothing of other folders
    for path in paths:
        for folder in path.parents:
            if folder not in parts:
                parts[folder] = _parts(folder / MANIFEST)
            if parts[folder] and path.relative_to(folder).as_posix() in parts[folder]:
                raise DatasetError(
                    f"{readable(path)} is a prototype of the bundle in {readable(folder)}, and so a training image",
                    hint="Move the bundle out of the folder of clean images.",
                )


def _parts(manifest: Path) -> Collection[str]:
    try:
        return set(jsonlib.loads(manifest.read_bytes())["files"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # no bundle
        return ()


def _warn(bundle: Bundle, images: int, console: Console) -> None:
    """Before the work: that few images make a coarser calibration than the bundle has."""
    former = max(each.detector.calibration_n for each in bundle.manifest.networks.values())
    if words := coarser(images, former):
        say(console, words)


def _show(made: "Recalibration", console: Console) -> None:
    told = made.provenance
    for sentence in made.left_out:
        say(console, f"left out: {sentence}")
    table = Table("network", "alpha", "images", "flagged before", "smallest p-value")
    for name, each in told.networks.items():
        before = f"{each.flagged_before:,} ({each.flagged_before / told.images:.1%})"
        table.add_row(name, f"{each.alpha:g}", f"{told.images:,}", before, f"{each.smallest_p_value:.2g}")
    lay_out(console, table)
    for name, each in told.networks.items():
        say(console, f"{name}: {resolution(each.n, each.alpha)}")
