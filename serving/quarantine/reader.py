"""Reading a quarantine that others write, prune and may have tampered with, without waiting for any of them."""

import hashlib
from collections.abc import Container, Iterator
from dataclasses import dataclass

from bundle.errors import QuarantineError, printable
from serving.quarantine.entry import MAX_RECORD_BYTES, RECORD, Entry, is_day, read_record, split_name
from serving.quarantine.store import Store, open_store


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lies under one record's name, `place` (`DAY/NAME.json`): an entry, or the `problem` why there is none.

    `passing` says that another look may find one: the store did not answer, or the image was not there.
    """

    place: str
    entry: Entry | None = None
    problem: str = ""
    passing: bool = False


def entries(root: str, *, newest_first: bool = False, known: Container[str] = ()) -> Iterator[Found]:
    """What a quarantine holds, a folder's path or a URL, oldest first, read as it is asked for; `known` places are not
    read again.

    Images without a record are still being written, or being removed, and are passed over. Raises OptionError for a
    place that can be none, at once, and QuarantineError where the store does not answer.
    """
    return _walk(open_store(root), newest_first, known)


def read_image(root: str, entry: Entry) -> bytes:
    """The image's bytes as they were sent; raises QuarantineError if they are not there any more, or others."""
    data = open_store(root).read(entry.day, entry.image, entry.bytes)
    if data is None:
        raise QuarantineError(
            f"{entry.day}/{entry.image} is not there", hint="It has been removed meanwhile: the oldest go first."
        )
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise QuarantineError(f"{entry.day}/{entry.image} is not what its record says", hint="Somebody changed it.")
    return data


def _walk(store: Store, newest_first: bool, known: Container[str]) -> Iterator[Found]:
    for day in sorted(filter(is_day, store.folders()), reverse=newest_first):
        files = store.files(day)
        for name in sorted(files, reverse=newest_first):
            if name.endswith(RECORD) and not name.startswith(".") and f"{day}/{printable(name)}" not in known:
                found = _find(store, day, name, files)
                if found is not None:
                    yield found


def _find(store: Store, day: str, name: str, files: dict[str, int]) -> Found | None:
    place = f"{day}/{printable(name)}"
    if split_name(name) is None:
        return Found(place=place, problem=f"{place} is not named as records are")
    try:
        data = store.read(day, name, MAX_RECORD_BYTES)
    except QuarantineError as problem:
        return Found(place=place, problem=problem.what, passing=True)
    if data is None:  # removed since it was listed
        return None
    try:
        entry = read_record(data, day, name)
    except QuarantineError as problem:
        return Found(place=place, problem=problem.what)
    if entry.image not in files:
        return Found(place=place, problem=f"{place} has lost its image", passing=True)
    return Found(place=place, entry=entry)
