"""manifest.json: everything a reader must know of a bundle, in one canonical JSON document.

The bundle id is the SHA-256 of the canonical document, so it changes with every file, label or limit.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from bundle import tensors
from bundle.errors import BundleCorrupt, BundleUnsupported
from bundle.image import ImageSpec
from bundle.records import RecordError, from_plain, to_plain
from bundle.tensors import TensorSpec

SCHEMA = 1
AGAIN = "Fetch or export the bundle again."
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Size in bytes and hex SHA-256 of one file."""

    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not _HEX64.fullmatch(self.sha256):
            raise ValueError("sha256 is not 64 hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class DetectorInfo:
    """What the detector inside a graph was made of. `alpha` is the default false-positive rate of `is_adversarial`."""

    file: str
    layers: tuple[str, ...]
    alpha: float
    calibration_n: int

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0:
            raise ValueError(f"alpha {self.alpha} is not between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class NetworkInfo:
    """One served graph. `parity` holds the largest absolute difference from PyTorch for each output."""

    model: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    detector: DetectorInfo
    parity: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class PrototypeInfo:
    """A prototype and the training patch it was projected onto. `box`: left, top, right, bottom in pixels."""

    label: int
    source: str
    image: str
    row: int
    column: int
    box: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole document; labels are in the order of the graph's classes."""

    schema: int
    name: str
    labels: tuple[str, ...]
    image: ImageSpec
    networks: dict[str, NetworkInfo]
    prototypes: tuple[PrototypeInfo, ...]
    training: dict[str, Any]
    files: dict[str, FileEntry]

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.networks) - set(tensors.NETWORKS)):
            raise ValueError(f"unknown network {unknown[0]!r}")
        if len(self.labels) < 2:
            raise ValueError("fewer than two labels")
        for name, network in self.networks.items():
            for path in (network.model, network.detector.file):
                if path not in self.files:
                    raise ValueError(f"networks.{name} names {path!r}, which is not in files")

    def to_json(self) -> str:
        """Canonical form: sorted keys, no spaces, UTF-8, a newline at the end."""
        plain = to_plain(self)
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"

    @property
    def bundle_id(self) -> str:
        """Hex SHA-256 of the canonical document."""
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()


def parse_manifest(text: str, where: str) -> Manifest:
    """Read a manifest; raises BundleUnsupported for another schema, BundleCorrupt for anything malformed."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise BundleCorrupt(f"{where} is not valid JSON ({problem})", hint=AGAIN) from None
    if not isinstance(document, dict) or not isinstance(document.get("schema"), int):
        raise BundleCorrupt(f"{where} has no schema number", hint=AGAIN)
    if document["schema"] != SCHEMA:
        raise BundleUnsupported(
            f"{where} has schema {document['schema']}, and this version reads schema {SCHEMA}",
            hint="Upgrade fieldmark, or export the bundle with this version.",
        )
    try:
        return from_plain(Manifest, document)
    except RecordError as problem:
        raise BundleCorrupt(f"{where}: {problem}", hint=AGAIN) from None
