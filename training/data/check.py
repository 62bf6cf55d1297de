"""What is wrong with a dataset's images: damaged ones, the same photograph in two parts, or twice in one.

`fieldmark data check` decodes everything; training looks at what would spoil it: bad files, and copies across parts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from bundle.errors import DatasetError
from bundle.image import ImageSpec
from training.data.dataset import Dataset, open_dataset
from training.data.division import PARTS
from training.data.look import COPY, SAME_COLOURS, Keys, Look, alike, look, same_bytes

NAMED = 10  # bad files that an error names before it counts the others


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Lists are complete. A set of copies holds the key of each image that shows the same photograph."""

    bad: dict[str, str]
    same: tuple[Keys, ...]
    """The same bytes."""
    near: tuple[Keys, ...]
    """The same photograph in another size or quality, by perceptual hash; the same bytes among them are left out."""
    parts: dict[str, str]
    """The part of every image in these sets."""
    labels: dict[str, str]
    """Its class."""
    torn: dict[str, tuple[str, ...]]
    """Groups that the dataset itself gives to several parts, and which."""

    @property
    def across(self) -> tuple[Keys, ...]:
        """Sets of copies that stand in two parts."""
        return tuple(keys for keys in (*self.same, *self.near) if len({self.parts[key] for key in keys}) > 1)

    @property
    def contradicting(self) -> tuple[Keys, ...]:
        """Sets of copies that have two classes."""
        return tuple(keys for keys in (*self.same, *self.near) if len({self.labels[key] for key in keys}) > 1)

    @property
    def clean(self) -> bool:
        """Nothing is wrong. Near copies within one part harm nobody."""
        return not (self.bad or self.same or self.across or self.contradicting or self.torn)

    def sentences(self) -> list[str]:
        """What spoils a training or its figures, a sentence each."""
        said = []
        for sets, told, what, why in (
            (self.across, self.parts, "in two parts", "accuracy on them flatters, and p-values on them mean nothing"),
            (self.contradicting, self.labels, "in two classes", "one of the two is wrong"),
        ):
            if sets:
                first = sets[0][0]
                other = next(key for key in sets[0] if told[key] != told[first])
                said.append(
                    f"{len(sets)} photograph{'s' * (len(sets) != 1)} stand{'s' * (len(sets) == 1)} {what}, as {first} "
                    f"({told[first]}) and {other} ({told[other]}): {why}"
                )
        if self.torn:
            name, parts = next(iter(self.torn.items()))
            said.append(
                f"{len(self.torn)} group{'s' * (len(self.torn) != 1)} stand{'s' * (len(self.torn) == 1)} in two parts, "
                f"as the dataset gives them ({name!r} in {' and '.join(parts)}): figures on them flatter"
            )
        return said

    def lines(self, most: int) -> Iterator[str]:
        """Everything for a terminal, `most` of each kind."""
        told = {key: f"{part}, {self.labels[key]}" for key, part in self.parts.items()}
        for heading, entries in (
            ("cannot be read", [f"{key}: {reason}" for key, reason in self.bad.items()]),
            ("the same bytes", [_set(keys, told) for keys in self.same]),
            ("near copies", [_set(keys, told) for keys in self.near]),
        ):
            if entries:
                yield f"{heading}: {len(entries)}"
                yield from (f"  {entry}" for entry in entries[:most])
            if len(entries) > most:
                yield f"  and {len(entries) - most} more: --json lists all"
        yield from self.sentences()

    def document(self) -> dict[str, Any]:
        """The same for JSON, complete."""

        def told(sets: tuple[Keys, ...]) -> list[list[dict[str, str]]]:
            return [
                [{"path": key, "part": self.parts[key], "class": self.labels[key]} for key in keys] for keys in sets
            ]

        return {
            "bad": [{"path": key, "reason": reason} for key, reason in self.bad.items()],
            "same_bytes": told(self.same),
            "near_copies": told(self.near),
            "groups_in_two_parts": {name: list(parts) for name, parts in self.torn.items()},
            "clean": self.clean,
        }


def _set(keys: Keys, told: Mapping[str, str]) -> str:
    return " = ".join(f"{key} ({told[key]})" for key in keys)


def examine(dataset: Dataset, seen: Look | None) -> Findings:
    """Compare all images of a dataset: their bytes, and their hashes where they were looked at."""
    same = tuple(same_bytes(dataset.samples))
    whole = set(same)
    near = () if seen is None else tuple(keys for keys in alike(seen.prints, COPY, SAME_COLOURS) if keys not in whole)
    met = {key for keys in (*same, *near) for key in keys}
    return Findings(
        bad=dict(seen.bad) if seen is not None else {},
        same=same,
        near=near,
        parts={sample.key: part for part in PARTS for sample in dataset.parts[part] if sample.key in met},
        labels={sample.key: dataset.labels[sample.label] for sample in dataset.samples if sample.key in met},
        torn=_torn(dataset),
    )


def _torn(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    places: dict[str, dict[str, None]] = {}
    for part in PARTS:
        for sample in dataset.parts[part]:
            places.setdefault(sample.group, {})[part] = None
    return {name: tuple(found) for name, found in sorted(places.items()) if name and len(found) > 1}


def sound(dataset: Dataset, spec: ImageSpec, *, skip_bad: bool) -> Dataset:
    """The dataset without the images that `spec` cannot read; raises DatasetError with all of them unless they are
    to be skipped. What is left is divided by the same settings.
    """
    seen = dataset.looked
    suspects = dataset.samples if seen is None else [each for each in dataset.samples if each.key in seen.bad]
    bad = look(suspects, spec, hashed=False).bad
    if not bad:
        return dataset
    if not skip_bad:
        shown = "; ".join(f"{key}: {reason}" for key, reason in list(bad.items())[:NAMED])
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise DatasetError(
            f"{len(bad)} image{'s' * (len(bad) != 1)} of {dataset.root} cannot be read: {shown}{more}",
            hint="Repair or remove them ('fieldmark data check' lists all), or go on without them: --skip-bad.",
        )
    left = open_dataset(
        dataset.root,
        seed=dataset.seed,
        **asdict(dataset.shares),
        without=dataset.bad | bad,
        series=dataset.series,
    )
    return replace(left, looked=seen)
