"""A folder of attacked images: index.csv, and the images that it lists by attack.

`fieldmark review --export attacks` and `fieldmark attack` write such folders; strangers may, so nothing outside of one
is opened.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from bundle.attack_index import COLUMNS, INDEX
from bundle.errors import DatasetError, ImageError
from bundle.files import open_regular
from bundle.image import ImageSpec
from robustness.fitting import Images
from training.attacks.names import CLEAN, NOISE
from training.data.choice import spread

MOST_ROWS, MOST = 1_000_000, 2000  # of an index; images of a family that are opened, evenly over it
HINT = "Give a folder that 'fieldmark review --export attacks' or 'fieldmark attack' wrote."
Row = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Family:
    """The `images` : (n, H, W, 3) uint8 of one name, and what each was made of or came as, `sources` : n. Of `total`
    that are listed `tried` were opened, and some of those are gone or no images.
    """

    images: Images
    sources: tuple[str, ...]
    total: int
    tried: int

    @property
    def unread(self) -> int:
        """How many were opened in vain."""
        return self.tried - len(self.images)


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """What a folder has for one head: families by the name of their attack, and `clean` images where there are any."""

    families: dict[str, Family]
    clean: Family | None


@dataclass(frozen=True, kw_only=True)
class AttackFolder:
    """A folder and the `rows` of its index; `cut` where there are more of them than MOST_ROWS."""

    path: Path
    rows: tuple[Row, ...]
    cut: bool

    @classmethod
    def read(cls, path: Path) -> "AttackFolder":
        """Without opening an image; raises DatasetError where it is no such folder, or lists no attack."""
        index = path / INDEX
        try:
            with open_regular(index) as stream:
                lines = io.StringIO(stream.read().decode("utf-8"), newline="")  # a name may hold other ends of lines
            reader = csv.DictReader(lines, strict=True)
            rows = list(islice(reader, MOST_ROWS + 1))
        except OSError as problem:
            reason = (problem.strerror or "unreadable").lower()
            raise DatasetError(f"{index} cannot be read ({reason})", hint=HINT) from None
        except (ValueError, csv.Error) as problem:
            raise DatasetError(f"{index} is no list of attacked images ({problem})", hint=HINT) from None
        if not set(COLUMNS).issubset(reader.fieldnames or ()):
            raise DatasetError(f"{index} has not the columns {', '.join(sorted(COLUMNS))}", hint=HINT)
        for number, row in enumerate(rows, start=2):
            if None in row or None in row.values():
                raise DatasetError(f"{index}:{number} has too few or too many cells", hint=HINT)
        if all(row["attack"] in (CLEAN, NOISE) for row in rows):
            raise DatasetError(f"{path} holds no attacked image: its index lists none", hint=HINT)
        return cls(path=path, rows=tuple(rows[:MOST_ROWS]), cut=len(rows) > MOST_ROWS)

    @property
    def networks(self) -> tuple[str, ...]:
        """Which the images were sent to, or made against."""
        return tuple(dict.fromkeys(row["network"] for row in self.rows))

    def attacks(self, head: str, spec: ImageSpec) -> Attacks:
        """Of several networks those on this head; raises DatasetError where none of its attacked images can be read.

        Noise is a control and no attack, and clean images are no attack either.
        """
        several = len(self.networks) > 1
        listed: dict[str, list[Row]] = {}
        for row in self.rows:
            if row["attack"] != NOISE and (row["network"] == head or not several):
                listed.setdefault(row["attack"], []).append(row)
        families = {name: self._family(rows, spec) for name, rows in listed.items()}
        clean = families.pop(CLEAN, None)
        if families and not any(len(family.images) for family in families.values()):
            raise DatasetError(
                f"{self.path} holds no attacked image that can be read", hint="Export the decided attacks again."
            )
        return Attacks(families=families, clean=clean)

    def _family(self, rows: Sequence[Row], spec: ImageSpec) -> Family:
        """At most MOST images of a list, evenly over it; those that lie outside the folder are not opened."""
        chosen = spread(tuple(rows), MOST)
        root, found, sources = self.path.resolve(), [], []
        for row in chosen:
            try:
                path = (root / row["path"]).resolve()
                if not path.is_relative_to(root):
                    continue
                with open_regular(path) as stream:
                    found.append(spec.decode(stream.read(spec.max_bytes + 1)))
            except (OSError, ValueError, ImageError):
                continue
            sources.append(row["source"])
        images = np.stack(found) if found else np.empty((0, spec.height, spec.width, 3), np.uint8)
        return Family(images=images, sources=tuple(sources), total=len(rows), tried=len(chosen))
