"""What waits for somebody's eyes: one image, and what was said of it."""

import hashlib
from dataclasses import dataclass

from serving.quarantine.entry import FLAGGED, SAMPLE

REASONS = (FLAGGED, SAMPLE)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image of a source. `image` is what the source calls it, `key` what it is called here, for good.

    `received` is a time in UTC (ISO 8601, milliseconds). `reason` says why it is here: it was flagged, or it was not
    and was drawn at random. `drawn` says that it is of the random sample of all that came in, flagged or not. `origin`
    is the name of its caller's key, or the folder of a scored file. `layers` are squared distances, one a column of the
    detector. `size` in bytes and `mtime_ns` are the file's when it was answered, where the source knows them.
    """

    key: str
    image: str
    received: str
    label: str
    probability: float
    score: float
    p_value: float
    alpha: float
    reason: str
    drawn: bool
    origin: str
    network: str
    bundle_id: str
    layers: tuple[float, ...]
    sha256: str = ""
    request_id: str = ""
    size: int | None = None
    mtime_ns: int | None = None

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise ValueError(f"reason {self.reason[:80]!r} is neither {FLAGGED!r} nor {SAMPLE!r}")
        if not 0 <= self.p_value <= 1 or not 0 < self.alpha < 1 or not 0 <= self.probability <= 1:
            raise ValueError("a p-value, alpha or probability lies outside 0 and 1")
        if self.reason == SAMPLE and not self.drawn:
            raise ValueError("it was neither flagged nor drawn")
        if len(self.received) < len("2026-01-01T00") or self.received[10] != "T":
            raise ValueError(f"received {self.received[:80]!r} is no time")


def chance(key: str, purpose: str) -> float:
    """A number in [0, 1) that is a function of a key, and looks drawn at random; another `purpose`, another draw."""
    digest = hashlib.sha256(f"{purpose}\0{key}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
