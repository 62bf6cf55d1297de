"""The gateway's quarantine: a folder a day, in it the bytes of an image and, last, what was said of it as JSON.

A name without its JSON is an image that is being written; JSON without its image is one that was removed by age since.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bundle.errors import ImageGone, ReviewError
from bundle.files import open_regular
from review.sources.source import DAY, read_file
from review.store.item import FLAGGED, Item

MAX_ENTRY_BYTES = 256 * 1024
MOST_NOTICES = 20
_ENTRY = re.compile(r"\d{6}\.\d{3}-[A-Za-z0-9_-]{1,80}\.json")


class QuarantineSource:
    """Tells of each entry once. `share` is that of the unflagged images that are kept, where entries do not say it."""

    def __init__(self, given: str, *, share: float | None = None) -> None:
        self.root = Path(given)
        self.place = os.path.abspath(given)
        self.total: int | None = None
        self.notices: list[str] = []
        self._share = share
        self._told: set[str] = set()

    def news(self) -> Iterator[Item]:
        """Entries by day and name."""
        try:
            days = sorted(name for name in os.listdir(self.root) if DAY.fullmatch(name))
        except OSError as problem:
            raise ReviewError(
                f"{self.root} cannot be reached ({problem.strerror})", hint="What was decided is safe. Bring it back."
            ) from None
        for day in days:
            try:
                names = sorted(name for name in os.listdir(self.root / day) if _ENTRY.fullmatch(name))
            except OSError:  # the day was removed by age
                continue
            for name in names:
                entry = f"{day}/{name}"
                if entry not in self._told:
                    self._told.add(entry)
                    item = self._item(entry)
                    if item is not None:
                        yield item

    def read(self, image: str, most: int) -> bytes:
        """The bytes as they were sent."""
        if os.path.isabs(image) or ".." in image.split("/"):
            raise ImageGone("the entry names an image outside the quarantine, so it is not opened")
        return read_file(self.root / image, most, inside=self.root)

    def _item(self, entry: str) -> Item | None:
        try:
            with open_regular(self.root / entry) as stream:
                data = stream.read(MAX_ENTRY_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as problem:
            self._refuse(entry, problem.strerror or str(problem))
            return None
        try:
            if len(data) > MAX_ENTRY_BYTES:
                raise ValueError(f"it has more than {MAX_ENTRY_BYTES:,} bytes")
            return self._parsed(entry, json.loads(data))
        except (ValueError, KeyError, TypeError, RecursionError) as problem:
            self._refuse(entry, f"missing {problem}" if isinstance(problem, KeyError) else str(problem))
            return None

    def _parsed(self, entry: str, plain: dict[str, Any]) -> Item:
        image = str(plain["image"])
        if "/" in image or image in ("", ".", ".."):
            raise ValueError("its image is no plain file name")
        layers = plain["layers"]
        return Item(
            key=entry.removesuffix(".json"),
            image=f"{entry.partition('/')[0]}/{image}",
            received=str(plain["received"]),
            label=str(plain["label"]),
            probability=float(plain["probability"]),
            score=float(plain["score"]),
            p_value=float(plain["p_value"]),
            alpha=float(plain["alpha"]),
            reason=str(plain.get("reason", FLAGGED)),
            share=plain.get("share", self._share),
            origin=str(plain.get("caller") or ""),
            network=str(plain["network"]),
            bundle_id=str(plain["bundle_id"]),
            layers=tuple(float(value) for value in (layers.values() if isinstance(layers, dict) else layers)),
            sha256=str(plain.get("sha256", "")),
            request_id=str(plain.get("request_id", "")),
        )

    def _refuse(self, entry: str, why: str) -> None:
        if len(self.notices) < MOST_NOTICES:
            self.notices.append(f"the entry {entry} cannot be read ({why[:200]}), and is left out")
