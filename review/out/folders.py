"""Folders with images that other tools import: FiftyOne's, Label Studio's, and the one that `fieldmark attack` writes.

An image leaves only when it is one: its bytes are those that were sent, and they are decoded once to see.
"""

import csv
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from bundle.attack_index import COLUMNS, INDEX
from bundle.errors import ImageError, ImageGone, ReviewError
from bundle.formats import KINDS
from bundle.image import ImageSpec
from review.follower import bytes_of, image_of
from review.out.records import decided
from review.sources.source import Source
from review.store.database import Database
from review.store.decisions import ATTACK, CLEAN, VERDICTS
from review.store.queue import Filter
from review.store.sample import clean_images

SUFFIXES = tuple(suffix for names in KINDS.values() for suffix in names)
REVIEWED = "reviewed"  # the name of the family of attacks
Decided = tuple[sqlite3.Row, list[sqlite3.Row]]
Copied = Iterator[tuple[sqlite3.Row, list[sqlite3.Row], str]]


class ImageFolder:
    """Copies the images of items into a folder; `missing` counts those that are gone or no images."""

    def __init__(self, source: Source, spec: ImageSpec, folder: Path) -> None:
        self.source, self.spec, self.folder = source, spec, folder
        self.missing = 0

    def copy(self, items: Iterator[Decided]) -> Copied:
        """Each item whose image was copied, its decisions, and the file's name in the folder."""
        self.folder.mkdir(parents=True)
        for item, decisions in items:
            try:
                data = bytes_of(self.source, item, self.spec.max_bytes)
                self.spec.decode(data)
            except (ImageGone, ImageError):
                self.missing += 1
                continue
            suffix = Path(image_of(item)).suffix.lower()
            name = f"{item['id']:08d}{suffix if suffix in SUFFIXES else '.img'}"
            (self.folder / name).write_bytes(data)
            yield item, decisions, name


def write_fiftyone(folder: Path, database: Database, wanted: Filter, source: Source, spec: ImageSpec) -> int:
    """`fiftyone.types.FiftyOneImageClassificationDataset`: data/ and labels.json, the decision as the label."""
    images = ImageFolder(source, spec, folder / "data")
    labels: dict[str, Any] = {}
    for item, decisions, name in images.copy(decided(database, wanted)):
        labels[Path(name).stem] = {
            "label": item["state"],
            "attributes": {
                "predicted": item["label"],
                "probability": item["probability"],
                "p_value": item["p_value"],
                "score": item["score"],
                "layer": item["layer"],
                "origin": item["origin"],
                "received": item["received"],
                "reviewers": ", ".join(each["reviewer"] for each in decisions),
                "note": "; ".join(each["note"] for each in decisions if each["note"]),
            },
        }
    classes = sorted({each["label"] for each in labels.values()})
    _write_json(folder / "labels.json", {"classes": classes, "labels": labels})
    return images.missing


def write_label_studio(folder: Path, database: Database, wanted: Filter, source: Source, spec: ImageSpec) -> int:
    """tasks.json, the interface as labeling.xml, and images/, for a Label Studio whose local files begin here."""
    images = ImageFolder(source, spec, folder / "images")
    tasks = [
        {
            "data": {
                "image": f"/data/local-files/?d=images/{name}",
                **{key: item[key] for key in ("label", "p_value", "layer", "origin", "received")},
            },
            "annotations": [
                {"result": [_choice(each["verdict"]), *_note(each["note"])], "was_cancelled": False}
                for each in decisions
            ],
            "meta": {"key": item["key"], "bundle_id": item["bundle_id"]},
        }
        for item, decisions, name in images.copy(decided(database, wanted))
    ]
    _write_json(folder / "tasks.json", tasks)
    choices = "".join(f"<Choice value={quoteattr(verdict)}/>" for verdict in VERDICTS)
    (folder / "labeling.xml").write_text(
        '<View><Image name="image" value="$image"/><Text name="answer" value="$label"/>'
        f'<Choices name="verdict" toName="image" choice="single">{choices}</Choices>'
        '<TextArea name="note" toName="image"/></View>\n',
        encoding="utf-8",
    )
    return images.missing


def write_attacks(folder: Path, database: Database, wanted: Filter, source: Source, spec: ImageSpec) -> int:
    """What everybody calls an attack, as `fieldmark attack` writes a family: reviewed/ and index.csv; and beside it
    clean/, the clean images of the latest random sample that was decided whole. Others that were decided to be clean
    are left out: they were looked at because of their p-values, and no detector can be judged by such.

    What is true of the pictures nobody has said: `label` is what the network answered.
    """
    attacks = (each for each in decided(database, wanted) if each[0]["state"] == ATTACK)
    try:
        drawn = clean_images(database).items
    except ReviewError:
        drawn = ()
    families: list[tuple[str, Iterator[Decided]]] = [(REVIEWED, attacks)]
    if drawn:
        families.append((CLEAN, ((item, []) for item in drawn)))
    missing = 0
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / INDEX).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for family, items in families:
            images = ImageFolder(source, spec, folder / family)
            for item, _, name in images.copy(items):
                writer.writerow((item["network"], family, f"{family}/{name}", item["key"], item["label"]))
            missing += images.missing
    return missing


def _choice(verdict: str) -> dict[str, Any]:
    return {"from_name": "verdict", "to_name": "image", "type": "choices", "value": {"choices": [verdict]}}


def _note(note: str) -> list[dict[str, Any]]:
    return [{"from_name": "note", "to_name": "image", "type": "textarea", "value": {"text": [note]}}] if note else []


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


Writer = Callable[[Path, Database, Filter, Source, ImageSpec], int]
FOLDERS: dict[str, Writer] = {
    "fiftyone": write_fiftyone,
    "label-studio": write_label_studio,
    "attacks": write_attacks,
}
