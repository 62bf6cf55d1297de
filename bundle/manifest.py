"""manifest.json: everything a reader must know of a bundle, in one canonical JSON document.

The file holds the canonical form byte for byte, and the bundle id is its SHA-256. So `sha256sum manifest.json` gives
the id, and it changes with every file, label or limit.
"""

import functools
import hashlib
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from bundle import tensors
from bundle.canonical import canonical_json, read_json
from bundle.errors import BundleCorrupt, BundleUnsupported
from bundle.image import ImageSpec
from bundle.records import KEY, RecordError, from_plain, to_plain
from bundle.tensors import TensorSpec

MANIFEST_SCHEMA = 2
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
FETCH_AGAIN = "Fetch or export the bundle again."
MAX_FILES = 100_000
MAX_TOTAL_BYTES = 2**36  # of all files together: 64 GiB, a minute or two of hashing
MAX_PARTS = 16  # of one path
MARGINAL, PER_CLASS = "marginal", "per-class"
DEFAULT_NETWORK = "default_network"  # the one key of `training` that a reader depends on
PRECISIONS = FP32, FP16, BF16, INT8 = "fp32", "fp16", "bf16", "int8"
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Size in bytes and hex SHA-256 of one file."""

    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if self.bytes < 0:
            raise ValueError(f"a file cannot have {self.bytes} bytes")
        if not _HEX64.fullmatch(self.sha256):
            raise ValueError("sha256 is not 64 hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class DetectorInfo:
    """What the detector inside a graph was made of. `alpha` is the default false-positive rate of `is_adversarial`,
    over all images (`marginal`) or among those of each predicted class (`per-class`); no p-value is below
    1 / (calibration_n + 1).
    """

    file: str
    columns: tuple[str, ...] = field(metadata={KEY: "layers"})  # of `layer_scores`
    alpha: float
    calibration: str
    calibration_n: int

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("a detector needs at least one layer")
        if not 0.0 < self.alpha < 1.0:
            raise ValueError(f"alpha {self.alpha} is not between 0 and 1")
        if self.calibration not in (MARGINAL, PER_CLASS):
            raise ValueError(f"calibration {self.calibration[:80]!r} is neither {MARGINAL!r} nor {PER_CLASS!r}")
        if self.calibration_n < 1:
            raise ValueError("calibration_n is not positive")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far one output lies from PyTorch's over all its values: the largest and the mean difference, as they are and
    divided by PyTorch's value, or by the mean of these where that is larger.
    """

    max_abs: float
    mean_abs: float
    max_rel: float
    mean_rel: float

    def __post_init__(self) -> None:
        if min(self.max_abs, self.mean_abs, self.max_rel, self.mean_rel) < 0:
            raise ValueError("a difference is negative")


@dataclass(frozen=True, kw_only=True)
class Parity:
    """A graph, run by `runtime`, against the network in PyTorch in float32, on `images` real images: the shares of them
    that get the same most probable class and the same flag, and the difference of every output by name.
    """

    runtime: str
    images: int
    argmax_agreement: float
    flag_agreement: float
    outputs: dict[str, Difference]

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError("parity needs at least one image")
        _check_shares(argmax_agreement=self.argmax_agreement, flag_agreement=self.flag_agreement)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A graph on `images` validation images: the share answered rightly, the share flagged, and by attack the AUROC of
    `instance_score` between attacked ones that fool it and all clean ones. Attacks see PyTorch's float32 network.
    """

    images: int
    accuracy: float
    flagged: float
    auroc: dict[str, float]

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError("quality needs at least one image")
        _check_shares(accuracy=self.accuracy, flagged=self.flagged, **self.auroc)


@dataclass(frozen=True, kw_only=True)
class NetworkInfo:
    """One served graph. `precision` is that of the backbone's arithmetic; a narrower one than fp32 brings the `quality`
    of both by name.
    """

    model: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    detector: DetectorInfo
    parity: Parity
    quality: dict[str, Quality]

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision[:80]!r} is none of {', '.join(PRECISIONS)}")
        if unknown := sorted(set(self.parity.outputs) - {tensor.name for tensor in self.outputs}):
            raise ValueError(f"parity names {unknown[0][:80]!r}, which is no output")
        if set(self.quality) != ({FP32, self.precision} if self.precision != FP32 else set()):
            raise ValueError(f"quality is not of {FP32!r} and the network's own narrower precision")


@dataclass(frozen=True, kw_only=True)
class PrototypeInfo:
    """A prototype and the training patch it was projected onto. `box`: left, top, right, bottom in pixels."""

    label: int
    source: str
    image: str
    row: int
    column: int
    box: tuple[int, ...]

    def __post_init__(self) -> None:
        if min(self.label, self.row, self.column) < 0:
            raise ValueError("label, row and column cannot be negative")
        if len(self.box) != 4 or not (0 <= self.box[0] < self.box[2] and 0 <= self.box[1] < self.box[3]):
            raise ValueError("box is not left, top, right, bottom")


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
        if len(self.labels) < 2:
            raise ValueError("fewer than two labels")
        for text in (self.name, *self.labels):
            if not text or not _printable(text):
                raise ValueError(f"a name or label is empty or holds control characters: {text[:80]!r}")
        for path in self.files:
            if not _safe(path):
                raise ValueError(f"files: unsafe path {path[:80]!r}")
        if len(self.files) > MAX_FILES:
            raise ValueError(f"files: {len(self.files):,} of them are more than the limit of {MAX_FILES:,}")
        if (total := sum(entry.bytes for entry in self.files.values())) > MAX_TOTAL_BYTES:
            raise ValueError(f"files: {total:,} bytes are more than the limit of {MAX_TOTAL_BYTES:,}")
        if not self.networks:
            raise ValueError("no networks")
        if unknown := sorted(set(self.networks) - set(tensors.NETWORKS)):
            raise ValueError(f"unknown network {unknown[0][:80]!r}")
        for name, network in self.networks.items():
            sizes = {
                tensors.IMAGE: (self.image.height, self.image.width, 3),
                tensors.PROBABILITIES: (len(self.labels),),
                tensors.LAYER_SCORES: (len(network.detector.columns),),
            }
            tensors.check_tensors(name, network.inputs, network.outputs, sizes)
            for path in (network.model, network.detector.file):
                if path not in self.files:
                    raise ValueError(f"networks.{name} names {path[:80]!r}, which is not in files")
        for index, prototype in enumerate(self.prototypes):
            if prototype.label >= len(self.labels):
                raise ValueError(f"prototypes[{index}] has label {prototype.label}, and there are {len(self.labels)}")
            if prototype.image not in self.files:
                raise ValueError(f"prototypes[{index}] names {prototype.image[:80]!r}, which is not in files")
        if DEFAULT_NETWORK in self.training and self.training[DEFAULT_NETWORK] not in list(self.networks):
            raise ValueError(f"training.{DEFAULT_NETWORK} names no network of this bundle")
        if tensors.FULL in self.networks and not self.prototypes:
            raise ValueError(f"the network {tensors.FULL!r} needs prototypes")

    def to_json(self) -> str:
        """Canonical form: sorted keys, no spaces, UTF-8, a newline at the end."""
        return canonical_json(to_plain(self))

    @property
    def main_network(self) -> str:
        """The network that answers unless another is asked for: the one that training found better, else `full`, where
        the bundle has it.
        """
        default: str = self.training.get(DEFAULT_NETWORK) or next(n for n in tensors.NETWORKS if n in self.networks)
        return default

    @functools.cached_property
    def bundle_id(self) -> str:
        """Hex SHA-256 of the canonical document."""
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()


def parse_manifest(text: str, where: str) -> Manifest:
    """Read a manifest; raises BundleUnsupported for another schema, BundleCorrupt for anything malformed."""
    try:
        document = read_json(text)
    except (ValueError, RecursionError) as problem:
        raise BundleCorrupt(f"{where} is not valid JSON ({problem})", hint=FETCH_AGAIN) from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise BundleCorrupt(f"{where} has no schema number", hint=FETCH_AGAIN)
    if schema != MANIFEST_SCHEMA:
        raise BundleUnsupported(
            f"{where} has schema {schema}, and this version reads schema {MANIFEST_SCHEMA}",
            hint="Upgrade fieldmark." if schema > MANIFEST_SCHEMA else "Export the run again with this version.",
        )
    try:
        manifest = from_plain(Manifest, document)
        if manifest.to_json().encode("utf-8") != text.encode("utf-8"):
            raise RecordError("", "not in canonical form (sorted keys, no spaces, one newline at the end)")
    except UnicodeEncodeError:  # an escaped half of a surrogate pair
        raise BundleCorrupt(f"{where} holds text that is not Unicode", hint=FETCH_AGAIN) from None
    except RecordError as problem:
        raise BundleCorrupt(f"{where}: {problem}", hint=FETCH_AGAIN) from None
    return manifest


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{name[:80]} is {share}, and a share lies between 0 and 1")


def _printable(text: str) -> bool:
    """No control characters, which could write over a terminal, and no halves of surrogate pairs."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def _safe(path: str) -> bool:
    """A plain relative path of ordinary parts, spelt in the one way that names it."""
    pure = PurePosixPath(path)
    return (
        _printable(path)
        and "\\" not in path
        and not pure.is_absolute()
        and ".." not in pure.parts
        and path == pure.as_posix() != "."
        and pure.parts[0] not in (MANIFEST, SIGNATURE)
        and len(pure.parts) <= MAX_PARTS
        and all(len(part.encode("utf-8")) <= 255 for part in pure.parts)
        and len(path.encode("utf-8")) <= 1024
    )
