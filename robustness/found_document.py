"""What is told of attacks that came as files: figures by head and family, and what must be said beside them.

docs/report.md says what every entry means.
"""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from bundle import tensors
from bundle.errors import OptionError, printable
from bundle.files import sha256_of
from bundle.image import ImageSpec
from robustness.attack_files import MOST_ROWS, AttackFolder, Attacks, Family
from robustness.fitting import Lessons, Parts, detector_taught
from robustness.found_attacks import ATTACK_FREE, FOLDS, LEFT_OUT, TAUGHT, Negatives, judge, others_than
from robustness.metrics import FEW
from training.attacks.attacker import Attackers
from training.attacks.names import CLEAN
from training.data import Dataset
from training.data.choice import spread
from training.data.loading import images_array
from training.run import Run, image_spec

FOUND_SCHEMA = 1
CLEAN_IMAGES = 2000  # of the test part, where the folder has no clean ones
WORDS = {LEFT_OUT: "left out", TAUGHT: "taught", ATTACK_FREE: "no attack taught"}
ALWAYS = (
    "found attacks are those that somebody looked at, mostly because they were flagged: their flagged share says "
    "nothing of those that nobody found",
    f"taught: by the other {FOLDS - 1} of {FOLDS} parts of the same folder; images of one campaign resemble each "
    "other, so it says how well more of the same is found",
)
OTHER_CAMERA = (
    "the clean images beside them are those of the run's own test part: where the attacks came from another camera, "
    "AUROC tells cameras apart as well; decide a random sample of the same camera and export again"
)


def found_document(
    run: Run, attackers: Attackers, dataset: Dataset, folder: AttackFolder, bundle: Path | None
) -> dict[str, Any]:
    """Of the bundle's own detectors, or of such as export would fit. Raises OptionError where the run has no detector,
    or there is nothing clean beside the attacks.
    """
    record, network = run.read_record(), attackers.network
    heads = [head for head in network.config.heads if head in tensors.NETWORKS]
    if not heads:
        raise OptionError(f"{run.path} is a substitute to attack from; it has no detector", hint="Name another run.")
    attackers.to_device()
    spec = image_spec(record.config)
    parts: Parts | None = None
    test_part = cache(partial(_test_part, dataset, spec))  # read for one head, and only if the folder's will not do
    found, clean, told = {}, {}, list(ALWAYS)
    for head in heads:
        attacks = folder.attacks(head, spec)
        if not attacks.families:
            told.append(f"{head}: the folder holds no attack on it")
            continue
        negatives = _own_clean(attacks) or test_part()
        parts = Parts.of(dataset, spec) if parts is None else parts
        taught = detector_taught(bundle, attackers, head, parts, record.labels)
        found[head] = judge(
            network, head, taught, negatives, parts.calibration[0], attacks.families, seed=attackers.seed
        )
        clean[head] = {"source": "folder" if negatives.folder else "test", "images": len(negatives.images)}
        told += sentences(head, folder, attacks, negatives, taught.lessons)
    if not found:
        raise OptionError(
            f"{folder.path} holds attacks on {', '.join(map(printable, folder.networks))} alone, none of which "
            f"{run.path} has",
            hint=f"Its networks are: {', '.join(heads)}.",
        )
    return {
        "schema": FOUND_SCHEMA,
        "weights_sha256": sha256_of(run.path / "model.pt"),
        "attacked_images": folder.path.resolve().name,
        "seed": attackers.seed,
        "clean": clean,
        "heads": found,
        "sentences": list(dict.fromkeys(told)),
    }


def sentences(
    head: str, folder: AttackFolder, attacks: Attacks, negatives: Negatives, lessons: Lessons
) -> Iterator[str]:
    """What must be said beside one head's figures."""
    several = len(folder.networks) > 1
    if not several and head not in folder.networks:
        yield f"{head}: these attacks were on {printable(folder.networks[0])}, and are judged here as they are"
    if folder.cut:
        yield f"the index lists more than {MOST_ROWS:,} images; those after them are left out"
    if attacks.clean is not None and negatives.folder:
        yield from _of_family(f"{head}: {CLEAN}" if several else CLEAN, attacks.clean)
    elif attacks.clean is not None:
        yield f"the folder's {len(attacks.clean.images)} clean images are too few to tell anything; {FEW} are the least"
    strange = {source for family in attacks.families.values() for source in family.sources}
    if not negatives.folder and not strange <= set(negatives.sources):
        yield OTHER_CAMERA
    for name, family in attacks.families.items():
        label = f"{head}: {printable(name)}" if several else printable(name)
        yield from _of_family(label, family)
        if name in lessons.fooled:
            others = ", ".join(others_than(name, lessons)) or "clean images alone"
            yield f"{label}: it taught the detector; left out, the weights are learnt again from {others}"


def _of_family(label: str, family: Family) -> Iterator[str]:
    count = len(family.images)
    if not count:
        yield f"{label}: none of its {family.tried:,} images can be read, so it is not judged"
        return
    if count < FEW:
        yield f"{label}: {count} images are too few to tell anything; {FEW} are the least"
    if family.tried < family.total:
        yield f"{label}: {family.tried:,} of {family.total:,} images, evenly over them"
    if family.unread:
        yield f"{label}: {family.unread:,} of {family.tried:,} images are gone, or are none"


def table(heads: Mapping[str, Mapping[str, Any]]) -> Table:
    """For a terminal: a row a family and way of teaching."""
    titles = ("network", "attack", "images", "lessons", "AUROC", "95 %", "flagged", "95 %")
    found = Table(*(Column(title, overflow="fold") for title in titles), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head, families in heads.items():
        for name, measured in families.items():
            for way, words in WORDS.items():
                if (each := measured[way]) is not None:
                    area = [f"{each['auroc']:.3f}", "{:.2f} to {:.2f}".format(*each["interval"])]
                    flagged = _share(each["flagged"])
                    found.add_row(head, escape(printable(name)), f"{measured['images']:,}", words, *area, *flagged)
    return found


def _own_clean(attacks: Attacks) -> Negatives | None:
    """The folder's own clean images, which came from where the attacks did; None where they are too few."""
    clean = attacks.clean
    if clean is None or len(clean.images) < FEW:
        return None
    return Negatives(images=clean.images, sources=clean.sources, folder=True)


def _test_part(dataset: Dataset, spec: ImageSpec) -> Negatives:
    """Clean images of the run's own test part; raises OptionError where it has none."""
    if not dataset.parts["test"]:
        raise OptionError(
            "the dataset has no test part, and the folder not enough clean images",
            hint=f"Attacks are told from clean images that nothing was fitted on; {FEW} are the least.",
        )
    chosen = spread(dataset.parts["test"], CLEAN_IMAGES)
    images, _ = images_array(chosen, spec)
    return Negatives(images=images, sources=tuple(sample.key for sample in chosen), folder=False)


def _share(flagged: Mapping[str, Any]) -> list[str]:
    low, high = flagged["interval"]
    return [f"{flagged['count']:,} of {flagged['of']:,}", f"{100 * low:.0f} to {100 * high:.0f} %"]
