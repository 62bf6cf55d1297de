"""One image in quarantine: what is known of it, how it is named, and how it is read back without belief.

ROOT/2026-11-26/120503.417-<id>.jpg holds the image as it was sent, ROOT/2026-11-26/120503.417-<id>.json what was
answered. The second is written last: without it there is no entry. docs/quarantine.md specifies both.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from bundle.errors import QuarantineError, printable
from bundle.records import RecordError, from_plain, to_plain

ENTRY_SCHEMA = 1
FLAGGED, SAMPLE = "flagged", "sample"
RECORD = ".json"
MAX_RECORD_BYTES = 64 * 1024
MAX_TEXT = 1000  # characters
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_NAME = re.compile(r"(\d{6}\.\d{3}-[0-9a-f]{32})(\.[a-z]{2,5})")
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class LayerEvidence:
    """Squared Mahalanobis distance of the image's features in one layer, as fieldmark.v1 gives it."""

    layer: str
    squared_distance: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image that was answered. `received` is a time of UTC, `caller` the name of the key that it came with."""

    received: str
    request_id: str
    caller: str
    bundle_id: str
    network: str
    label: str
    probability: float
    score: float
    p_value: float
    alpha: float
    flagged: bool
    layers: tuple[LayerEvidence, ...]


@dataclass(frozen=True, kw_only=True)
class Entry(Case):
    """A case that is kept. `reason` is FLAGGED or, for what is not, SAMPLE.

    `drawn` says that it is in the random sample of all images, whatever the flag. `image` is the file's name beside the
    record, `sha256` and `bytes` are that file's.
    """

    schema: int
    id: str
    reason: str
    drawn: bool
    image: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        if self.schema != ENTRY_SCHEMA:
            raise ValueError(f"schema {self.schema} is not {ENTRY_SCHEMA}, which this version reads")
        if self.reason != (FLAGGED if self.flagged else SAMPLE):
            raise ValueError(f"reason {self.reason[:80]!r} does not fit flagged")
        for name, value in vars(self).items():
            if isinstance(value, str) and (len(value) > MAX_TEXT or printable(value) != value):
                raise ValueError(f"{name} is too long, or not printable")
        if not 0 <= self.p_value <= 1 or not 0 <= self.probability <= 1:
            raise ValueError("p_value or probability is not between 0 and 1")
        if not _HEX64.fullmatch(self.sha256) or self.bytes < 0:
            raise ValueError("sha256 or bytes is not that of a file")
        _, stem = place_of(self.received, self.id)
        found = _NAME.fullmatch(self.image)
        if not found or found[1] != stem or found[2] == RECORD:
            raise ValueError(f"image {self.image[:80]!r} is not {stem} with an image's suffix")

    @property
    def day(self) -> str:
        """The folder that it is in."""
        return place_of(self.received, self.id)[0]

    @property
    def record(self) -> str:
        """The name of its record's file."""
        return place_of(self.received, self.id)[1] + RECORD


def place_of(received: str, identity: str) -> tuple[str, str]:
    """(folder, name without suffix) of an entry; raises ValueError for a time or an id of another form."""
    time = datetime.fromisoformat(received)
    if time.utcoffset() != UTC.utcoffset(None):
        raise ValueError(f"received {received[:80]!r} is no time of UTC")
    stem = f"{time:%H%M%S}.{time.microsecond // 1000:03d}-{identity}"
    if not _NAME.fullmatch(stem + RECORD):
        raise ValueError(f"id {identity[:80]!r} is not 32 hexadecimal digits")
    return f"{time:%Y-%m-%d}", stem


def is_day(name: str) -> bool:
    """Whether a folder's name is one of ours."""
    return bool(_DAY.fullmatch(name))


def split_name(name: str) -> tuple[str, str] | None:
    """(name without suffix, suffix) of a file of ours, or None."""
    found = _NAME.fullmatch(name)
    return (found[1], found[2]) if found else None


def write_record(entry: Entry) -> bytes:
    """The record's bytes: one JSON object, ASCII."""
    return json.dumps(to_plain(entry), indent=1).encode() + b"\n"


def read_record(data: bytes, day: str, name: str) -> Entry:
    """The entry of a record found under this name; raises QuarantineError for what is none."""
    try:
        entry = from_plain(Entry, json.loads(data))
        if (entry.day, entry.record) != (day, name):
            raise ValueError(f"it belongs to {entry.day}/{entry.record}")
    except (ValueError, RecursionError, RecordError) as problem:
        raise QuarantineError(f"{day}/{printable(name)} is no record ({printable(str(problem))})") from None
    return entry
