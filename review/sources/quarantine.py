"""The gateway's quarantine, in a folder or an object store, as its own reader reads it."""

import os
from collections.abc import Iterator

from bundle.errors import FieldmarkError, ImageGone, QuarantineError, ReviewError
from review.sources.source import CALLERS, Stamp
from review.store.item import Item
from serving.quarantine.entry import Entry, is_day, split_name
from serving.quarantine.reader import entries
from serving.quarantine.store import open_store

MOST_NOTICES = 20


class QuarantineSource:
    """Tells of each entry once; of what is none, until it is one, there is a notice."""

    words, whole, tellings = CALLERS, False, 0

    def __init__(self, given: str) -> None:
        self.given = given
        self.place = given if "://" in given else os.path.abspath(given)
        self.totals: dict[str, int] = {}
        self._problems: dict[str, str] = {}  # by place
        self._told: set[str] = set()

    @property
    def notices(self) -> list[str]:
        """What was left out."""
        return [f"{problem}, and is left out" for problem in list(self._problems.values())[:MOST_NOTICES]]

    def news(self) -> Iterator[Item]:
        """Entries by day and name; what is no entry becomes a notice."""
        if "://" not in self.given and not os.path.isdir(self.given):
            raise ReviewError(f"{self.place} cannot be reached", hint="What was decided is safe. Bring it back.")
        try:
            for found in entries(self.given, known=self._told):
                if not found.passing:
                    self._told.add(found.place)
                try:
                    item, problem = None if found.entry is None else _item(found.entry), found.problem
                except ValueError as wrong:  # what its writer never writes
                    item, problem = None, f"{found.place} is no record ({wrong})"
                if item is None:
                    self._problems[found.place] = problem
                    continue
                self._problems.pop(found.place, None)
                yield item
        except QuarantineError as problem:
            raise ReviewError(problem.what, hint="What was decided is safe. Bring it back.") from None

    def forget(self) -> None:
        """Tell of every entry again."""
        self._told.clear()

    def read(self, image: str, most: int, was: Stamp) -> bytes:
        """The bytes as they were sent; a digest tells whether they are."""
        day, _, name = image.partition("/")
        if not is_day(day) or split_name(name) is None:
            raise ImageGone("the entry names an image outside the quarantine, so it is not opened")
        try:
            data = open_store(self.given).read(day, name, most)
        except FieldmarkError as problem:
            raise ImageGone(f"the image cannot be read ({problem.what})") from None
        if data is None:
            raise ImageGone("the image is gone: the oldest are removed by age, and by size")
        return data


def _item(entry: Entry) -> Item:
    return Item(
        key=f"{entry.day}/{entry.record}",
        image=f"{entry.day}/{entry.image}",
        received=entry.received,
        label=entry.label,
        probability=entry.probability,
        score=entry.score,
        p_value=entry.p_value,
        alpha=entry.alpha,
        reason=entry.reason,
        drawn=entry.drawn,
        origin=entry.caller,
        network=entry.network,
        bundle_id=entry.bundle_id,
        layers=tuple(each.squared_distance for each in entry.layers),
        sha256=entry.sha256,
        request_id=entry.request_id,
    )
