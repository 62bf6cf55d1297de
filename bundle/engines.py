"""A set of engines on disk: graphs of one bundle compiled for GPUs, opened only when every byte is as recorded.

    ENGINES/engines.json                            which engines these are, in canonical JSON: docs/engines.md
    ENGINES/full/sm_86.0123456789abcdef.engine      network/target.start of its SHA-256.engine

A file that engines.json does not list is no part of the set: an engine reads nothing beside itself, and a build that
was killed may have left some.
"""

import re
from dataclasses import dataclass, fields
from pathlib import Path

from bundle import tensors
from bundle.canonical import canonical_json, read_json
from bundle.errors import EngineError
from bundle.files import open_regular, sha256_of
from bundle.manifest import PRECISIONS, FileEntry
from bundle.records import RecordError, from_plain, to_plain

ENGINES_SCHEMA = 1
ENGINES = "engines.json"
TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"
RUNTIMES = (TENSORRT, TENSORRT_RTX)
INSPECTOR, BUILDER, NETWORK = "inspector", "builder", "network"
MAX_BATCH = 4096  # the exported graphs promise no more
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
BUILD_AGAIN = "Build it again: fieldmark engine BUNDLE --out ENGINES --force"
_HEX64 = re.compile(r"[0-9a-f]{64}")
_TARGET = re.compile(r"sm_[1-9][0-9]{1,2}")
_VERSION = re.compile(r"[0-9A-Za-z.+_-]{1,64}")
_WORD = re.compile(r"[0-9A-Za-z_.:-]{1,80}")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Batch sizes that an engine takes: every one from `min` to `max`; it is tuned for `opt`."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max <= MAX_BATCH:
            raise ValueError(f"profile {self} is not 1 <= min <= opt <= max <= {MAX_BATCH}")

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """How many layers of each type compute in each data type. `source` tells who says so: the engine itself
    (`inspector`); on a machine without its GPU the `builder`, which lists what it made; where it does not, the strongly
    typed `network` that it was given.
    """

    source: str
    layers: dict[str, dict[str, int]]

    def __post_init__(self) -> None:
        if self.source not in (INSPECTOR, BUILDER, NETWORK):
            raise ValueError(f"unknown source {self.source[:80]!r}")
        for kind, counts in self.layers.items():
            for word in (kind, *counts):
                if not _WORD.fullmatch(word):
                    raise ValueError(f"{word[:80]!r} is no name of a layer or data type")
            if not counts or min(counts.values()) < 1:
                raise ValueError(f"{kind} counts fewer than one layer")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that an engine is made of, so that two of one recipe stand for one another. `version` is the runtime's;
    `target` the compute capability it runs on, `sm_86` for 8.6; `graph_sha256` the ONNX graph it is built from.
    """

    network: str
    runtime: str
    version: str
    target: str
    precision: str
    profile: Profile
    graph_sha256: str

    def __post_init__(self) -> None:
        if self.network not in tensors.NETWORKS:
            raise ValueError(f"unknown network {self.network[:80]!r}")
        if self.runtime not in RUNTIMES:
            raise ValueError(f"unknown runtime {self.runtime[:80]!r}")
        if not _VERSION.fullmatch(self.version):
            raise ValueError(f"{self.version[:80]!r} is no version")
        if not is_target(self.target):
            raise ValueError(f"{self.target[:80]!r} is no target such as sm_86")
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision[:80]!r}")
        if not _HEX64.fullmatch(self.graph_sha256):
            raise ValueError("graph_sha256 is not 64 hexadecimal digits")

    @property
    def recipe(self) -> "Recipe":
        """This alone, also of an engine's record."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)})


@dataclass(frozen=True, kw_only=True)
class EngineRecord(Recipe):
    """One engine: its recipe, and what came of it, a file of so many `bytes` and `sha256`. They stand side by side."""

    file: str
    bytes: int
    sha256: str
    evidence: Evidence

    def __post_init__(self) -> None:
        super().__post_init__()
        FileEntry(bytes=self.bytes, sha256=self.sha256)
        if self.file != engine_file(self.network, self.target, self.sha256):
            raise ValueError(f"file is not {engine_file(self.network, self.target, self.sha256)!r}")


@dataclass(frozen=True, kw_only=True)
class Engines:
    """The whole document: at most one engine for each network and target, ordered by both."""

    schema: int
    bundle_id: str
    engines: tuple[EngineRecord, ...]

    def __post_init__(self) -> None:
        if not _HEX64.fullmatch(self.bundle_id):
            raise ValueError("bundle_id is not 64 hexadecimal digits")
        places = [(record.network, record.target) for record in self.engines]
        if places != sorted(set(places)):
            raise ValueError("engines are not in the order of network and target, each once")

    def to_json(self) -> str:
        """Canonical form, as the manifest's."""
        return canonical_json(to_plain(self))


class EngineSet:
    """A verified set of engines. Use `EngineSet.open`; attributes are read-only by convention."""

    def __init__(self, path: Path, document: Engines) -> None:
        self.path = path
        self.document = document
        self.records = document.engines

    @classmethod
    def open(cls, path: Path, bundle_id: str | None = None) -> "EngineSet":
        """Read engines.json and verify size and SHA-256 of every engine, and that they were built of the bundle
        `bundle_id` if one is given; raises EngineError.
        """
        document = read_engines(path)
        if bundle_id is not None and document.bundle_id != bundle_id:
            raise EngineError(
                f"the engines at {path} were built from the bundle {document.bundle_id}, not from {bundle_id}",
                hint="Build them from this bundle: fieldmark engine BUNDLE --out ENGINES",
            )
        for record in document.engines:
            verify(path, record)
        return cls(path, document)

    def find(self, network: str, target: str) -> EngineRecord:
        """The engine of a network for a target; raises EngineError when the set has none."""
        for record in self.records:
            if (record.network, record.target) == (network, target):
                return record
        have = ", ".join(f"{record.network} for {record.target}" for record in self.records)
        raise EngineError(f"{self.path} has no engine of {network} for {target}", hint=f"It has: {have or 'none'}.")

    def file(self, record: EngineRecord) -> Path:
        """Path of an engine."""
        return self.path / record.file


def is_target(text: str) -> bool:
    """Whether a text names a compute capability as this format does: `sm_86`."""
    return _TARGET.fullmatch(text) is not None


def engine_file(network: str, target: str, sha256: str) -> str:
    """The one name of an engine's file. It holds the content's digest, so that no build overwrites another's file."""
    return f"{network}/{target}.{sha256[:16]}.engine"


def read_engines(path: Path) -> Engines:
    """Read the engines.json of the folder `path` without looking at the engines; raises EngineError."""
    where = path / ENGINES
    try:
        with open_regular(where, follow=False) as stream:
            data = stream.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as problem:
        raise EngineError(
            f"{path} has no readable {ENGINES} ({problem.strerror})",
            hint="Give the folder that 'fieldmark engine --out' wrote.",
        ) from None
    if len(data) > MAX_DOCUMENT_BYTES:
        raise EngineError(f"{where} is larger than {MAX_DOCUMENT_BYTES:,} bytes", hint=BUILD_AGAIN)
    try:
        plain = read_json(data.decode("utf-8"))
        schema = plain.get("schema") if isinstance(plain, dict) else None
        if not isinstance(schema, int) or isinstance(schema, bool):
            raise RecordError("", "no schema number")
        if schema != ENGINES_SCHEMA:
            raise EngineError(
                f"{where} has schema {schema}, and this version reads schema {ENGINES_SCHEMA}",
                hint="Upgrade fieldmark, or build the engines with this version.",
            )
        document = from_plain(Engines, plain)
        if document.to_json().encode("utf-8") != data:
            raise RecordError("", "not in canonical form (sorted keys, no spaces, one newline at the end)")
    except (ValueError, RecursionError) as problem:  # RecordError and every Unicode error are ValueErrors
        raise EngineError(f"{where} is damaged ({problem})", hint=BUILD_AGAIN) from None
    return document


def verify(path: Path, record: EngineRecord) -> None:
    """Raise EngineError unless the record's file in the folder `path` is a plain file of its size and SHA-256."""
    file = path / record.file
    try:
        if file.is_symlink() or file.parent.is_symlink():
            raise EngineError(f"{file} is reached by a link", hint="Do not use this engine.")
        with open_regular(file, follow=False):
            size = file.stat().st_size
        if size != record.bytes:
            raise EngineError(f"{file} has {size:,} bytes, and {ENGINES} says {record.bytes:,}", hint=BUILD_AGAIN)
        if sha256_of(file) != record.sha256:
            raise EngineError(f"{file} does not match its SHA-256 in {ENGINES}", hint=BUILD_AGAIN)
    except OSError as problem:
        raise EngineError(f"{file} cannot be read ({problem.strerror})", hint=BUILD_AGAIN) from None
