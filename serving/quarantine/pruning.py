"""What must go so that a quarantine keeps within its bounds: the oldest first, and only what is named like ours."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from serving.quarantine.entry import RECORD, is_day, split_name
from serving.quarantine.store import Store

AGE, SIZE = "age", "size"  # why an entry goes


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """How many entries were removed, by why, and the bytes of the files of ours that are left."""

    removed: Counter[str]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class _Files:
    """The files of one entry, or what is left of it; sizes in bytes by name."""

    day: str
    stem: str
    sizes: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


def prune(store: Store, *, most: int, now: datetime, days: float) -> Pruned:
    """Remove entries older than `days`, then the oldest until at most `most` bytes are left."""
    found = sorted(_ours(store), key=lambda each: (each.day, each.stem))
    oldest = now - timedelta(days=days)
    limit = (f"{oldest:%Y-%m-%d}", f"{oldest:%H%M%S}")
    held, removed = sum(each.bytes for each in found), Counter[str]()
    for each in found:
        why = AGE if (each.day, each.stem) < limit else SIZE
        if why == SIZE and held <= most:
            break
        # Its record goes first: what is half removed is no entry any more.
        for name in sorted(each.sizes, key=lambda name: not name.endswith(RECORD)):
            store.remove(each.day, name)
        held -= each.bytes
        removed[why] += 1
    today = f"{now:%Y-%m-%d}"
    for day in filter(is_day, store.folders()):
        if day < today:
            store.tidy(day)
    return Pruned(removed=removed, bytes=held)


def _ours(store: Store) -> Iterator[_Files]:
    for day in filter(is_day, store.folders()):
        sizes: dict[str, dict[str, int]] = {}
        for name, size in store.files(day).items():
            if named := split_name(name):
                sizes.setdefault(named[0], {})[name] = size
        yield from (_Files(day=day, stem=stem, sizes=files) for stem, files in sizes.items())
