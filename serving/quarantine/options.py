"""Everything that can be set on a quarantine, in one record. docs/quarantine.md lists the flags."""

import math
from dataclasses import dataclass

GIB = 1024**3
DEFAULT_BYTES = GIB
DEFAULT_DAYS = 30.0


@dataclass(frozen=True, kw_only=True)
class QuarantineOptions:
    """Where flagged images are kept (a folder, or a URL of fsspec's), how many others, and for how long."""

    root: str
    sample: float = 0.0  # share of all images that is kept whatever the flag
    bytes: int = DEFAULT_BYTES  # of all files
    days: float = DEFAULT_DAYS  # until an entry is removed

    def __post_init__(self) -> None:
        if not self.root:
            raise ValueError("--quarantine names no place")
        if not 0 <= self.sample <= 1:
            raise ValueError(f"--quarantine-sample {self.sample:g} is not between 0 and 1")
        if not 0 < self.bytes < 2**60:
            raise ValueError(f"--quarantine-bytes {self.bytes} is not a positive number")
        if not (math.isfinite(self.days) and 0 < self.days <= 36500):
            raise ValueError(f"--quarantine-days {self.days:g} is not between 0 and 36500")
