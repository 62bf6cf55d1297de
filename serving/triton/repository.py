"""Triton model repositories: one model per network, named as the network is, one version folder per bundle.

    REPOSITORY/full/config.pbtxt     which version is served and how, the bundle's whole manifest, the history
              /full/labels.txt       one label a line, for Triton's own classification extension
              /full/warmup/1.raw     the bytes of one image of version 1, if its bundle has prototypes
              /full/1/model.onnx     what the backend loads: `serving.triton.config`
              /full/1/manifest.json  the manifest of the bundle that version 1 is
              /full/2/...
              /attention/...

There is no state beside the configurations and the version folders. `write_repository` fills a new folder: that is
what `fieldmark serve` and the production image use. `serving.triton.rollout` changes what is there.
"""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle import Bundle, tensors
from bundle.engines import ENGINES, ENGINES_SCHEMA, EngineRecord, Engines, EngineSet, read_engines
from bundle.errors import EngineError, ImageError, OptionError, RepositoryError
from bundle.files import atomic_file, exchange_texts, flush, open_regular, sha256_of, write_text
from bundle.manifest import MANIFEST, Manifest, parse_manifest
from bundle.records import RecordError, from_plain
from serving.client.prediction import check_processor
from serving.triton.config import (
    BUNDLE_ID,
    MODEL_FILES,
    PYTHON,
    SETTINGS,
    TENSORRT,
    VERSIONS,
    Served,
    Settings,
    check_accelerator,
    config_text,
    plan_files,
)

CONFIG = "config.pbtxt"
LABELS = "labels.txt"
WARM_UP = "warmup"  # Triton's name for it
ADAPTER = "model.py"
DAMAGED = "Write it anew from its bundles into another --out; what a server has loaded, it goes on serving."
MAX_CONFIG_BYTES = 64 * 1024 * 1024
NUMBER = re.compile(r"[1-9]\d{0,17}")
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository as it is. `versions` : number -> bundle id, the history; `manifest` is that of `served`."""

    path: Path
    settings: Settings
    versions: dict[int, str]
    served: int
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> "Repository":
        """Read and check the history of a repository; raises RepositoryError, or OptionError for none of ours.

        The history is that of the first network: its configuration is the first to be exchanged.
        """
        networks = _networks(path)
        where = path / networks[0] / CONFIG
        config = read_config(where)
        try:
            settings = from_plain(Settings, json.loads(config.parameters[SETTINGS].string_value))
            texts = from_plain(dict[str, str], json.loads(config.parameters[VERSIONS].string_value))
            if not all(map(NUMBER.fullmatch, texts)) or not all(map(_ID.fullmatch, texts.values())):
                raise RecordError(VERSIONS, "not version numbers and bundle ids")
            versions = {int(number): bundle_id for number, bundle_id in texts.items()}
            served = served_by(config)
            if versions.get(served) != config.parameters[BUNDLE_ID].string_value:
                raise RecordError(VERSIONS, f"version {served} is served, and is not the bundle that is named")
        except (ValueError, RecursionError) as problem:
            raise RepositoryError(f"{where} is damaged ({problem})", hint=DAMAGED) from None
        for network in networks:
            for number, bundle_id in versions.items():
                _check_version(path / network / str(number), bundle_id)
            for number in version_folders(path / network) - set(versions):
                _check_version(path / network / str(number), None)
        manifest = read_manifest(path / networks[0] / str(served))
        if odd := sorted(set(manifest.networks) ^ set(networks)):
            what = "is missing" if odd[0] in manifest.networks else "is no network of its bundle"
            raise RepositoryError(f"{path} is damaged: {odd[0]} {what}", hint=DAMAGED)
        return cls(
            path=path,
            settings=settings,
            versions=versions,
            served=served,
            manifest=manifest,
        )

    @property
    def networks(self) -> tuple[str, ...]:
        return ordered(self.manifest)

    def engines(self, network: str, number: int) -> tuple[EngineRecord, ...]:
        """The TensorRT engines of a network in a version; none for other backends."""
        return stored_engines(self.path / network / str(number)) if self.settings.backend == TENSORRT else ()

    def precisions(self, number: int) -> dict[str, str]:
        """Network -> precision of a version: its engines', else the manifest's (one of schema 1 says nothing)."""
        found = {
            name: "/".join(dict.fromkeys(each.precision for each in self.engines(name, number)))
            for name in self.networks
        }
        networks = json.loads(_manifest_bytes(self.path / self.networks[0] / str(number)))["networks"]
        return {network: text or str(networks[network].get("precision", "")) for network, text in found.items()}


def write_repository(
    bundle: Bundle, folder: Path, settings: Settings, *, engines: EngineSet | None = None, link: bool = False
) -> Path:
    """Write a repository with `bundle` as version 1 into the empty or absent `folder`, which nobody reads yet.

    With `link`, graphs are links into the bundle instead of copies of it.
    """
    for network in ordered(bundle.manifest):
        version = folder / network / "1"
        version.mkdir(parents=True)
        fill_version(version, bundle, network, settings, engines, link=link)
        write_text(folder / network / LABELS, "".join(f"{label}\n" for label in bundle.manifest.labels))
        write_warm_up(folder / network, 1, bundle)
    exchange_configs(folder, settings, 1, {1: bundle.bundle_id})
    return folder


def fill_version(
    folder: Path,
    bundle: Bundle,
    network: str,
    settings: Settings,
    engines: EngineSet | None,
    *,
    link: bool = False,
) -> None:
    """What one version of one network holds, into its empty folder; BundleUnsupported if nothing could run it."""
    if settings.on_cpu:
        check_processor(bundle.manifest, network)
    check_accelerator(bundle.manifest, network, settings)
    if settings.backend == TENSORRT and engines is not None:
        records = engines_of(engines, network)
        for target, name in plan_files(records).items():
            shutil.copyfile(engines.file(engines.find(network, target)), folder / name)
        document = Engines(schema=ENGINES_SCHEMA, bundle_id=bundle.bundle_id, engines=records)
        (folder / ENGINES).write_text(document.to_json(), encoding="utf-8")
    elif link:
        (folder / MODEL_FILES[settings.backend]).symlink_to(bundle.model(network).resolve())
    else:
        shutil.copyfile(bundle.model(network), folder / MODEL_FILES[settings.backend])
    if settings.backend == PYTHON:
        shutil.copyfile(Path(__file__).with_name("model.py"), folder / ADAPTER)
    (folder / MANIFEST).write_text(bundle.manifest.to_json(), encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        flush(path)


def write_warm_up(model: Path, number: int, bundle: Bundle) -> None:
    """The first prototype's image as the served graph takes it : (H, W, 3) uint8, rows from the top."""
    for prototype in bundle.manifest.prototypes[:1]:
        # A picture that no decoder reads is no reason not to serve; random data warm up as well, if less truly.
        with contextlib.suppress(ImageError):
            image = bundle.manifest.image.read(bundle.file(prototype.image))
            with atomic_file(model / WARM_UP / warm_up_file(number)) as temporary:
                temporary.write_bytes(image.tobytes())


def exchange_configs(path: Path, settings: Settings, number: int, versions: Mapping[int, str]) -> None:
    """Serve version `number`: exchange the configuration of every network.

    The first network's is exchanged first, so that its history is never older than that of the others.
    """
    manifest = next(read_manifest(folder) for folder in sorted(path.glob(f"*/{number}")))
    texts = {}
    for network in ordered(manifest):
        model = path / network
        warm_up = warm_up_file(number) if (model / WARM_UP / warm_up_file(number)).is_file() else ""
        engines = stored_engines(model / str(number)) if settings.backend == TENSORRT else ()
        served = Served(number=number, manifest=manifest, warm_up=warm_up, engines=engines)
        texts[model / CONFIG] = config_text(network, settings, served, versions)
    exchange_texts(texts)


def verify_version(folder: Path, network: str, settings: Settings) -> None:
    """Raise RepositoryError unless a version's files are those of its manifest, byte for byte."""
    manifest = read_manifest(folder)
    expected = {MODEL_FILES[settings.backend]: manifest.files[manifest.networks[network].model].sha256}
    if settings.backend == TENSORRT:
        records = stored_engines(folder)
        files = plan_files(records)
        expected = {files[record.target]: record.sha256 for record in records}
    try:
        for name, digest in expected.items():
            if sha256_of(folder / name) != digest:
                raise RepositoryError(f"{folder / name} is not the file that its version was given", hint=DAMAGED)
        if settings.backend == PYTHON:
            open_regular(folder / ADAPTER).close()
    except OSError as problem:
        raise RepositoryError(f"{problem.filename} cannot be read ({problem.strerror})", hint=DAMAGED) from None


def read_config(path: Path) -> Any:
    """The ModelConfig message of a file; raises RepositoryError, or OptionError when Fieldmark did not write it."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as protobuf

    try:
        with open_regular(path) as stream:
            text = stream.read(MAX_CONFIG_BYTES).decode("utf-8")
        config = text_format.Parse(text, protobuf.ModelConfig())
    except OSError as problem:
        raise RepositoryError(f"{path} cannot be read ({problem.strerror})", hint=DAMAGED) from None
    except (ValueError, text_format.ParseError) as problem:
        reason = str(problem).splitlines()[0][:200]
        raise RepositoryError(f"{path} is damaged ({reason})", hint=DAMAGED) from None
    if not all(name in config.parameters for name in (BUNDLE_ID, VERSIONS, SETTINGS)):
        raise OptionError(f"{path} was not written by 'fieldmark repository'", hint="Choose another --out.")
    return config


def served_by(config: Any) -> int:
    """The one version that a configuration serves; raises ValueError."""
    (number,) = config.version_policy.specific.versions
    return int(number)


def read_manifest(version: Path) -> Manifest:
    """The manifest of the bundle that a version is; raises BundleError or RepositoryError."""
    return parse_manifest(_manifest_bytes(version).decode("utf-8", "replace"), str(version / MANIFEST))


def stored_engines(version: Path) -> tuple[EngineRecord, ...]:
    """The records of the TensorRT engines that a version holds; raises RepositoryError."""
    try:
        return read_engines(version).engines
    except EngineError as problem:
        raise RepositoryError(problem.what, hint=DAMAGED) from None


def engines_of(engines: EngineSet, network: str) -> tuple[EngineRecord, ...]:
    """One network's engines of a set."""
    return tuple(record for record in engines.records if record.network == network)


def version_folders(model: Path) -> set[int]:
    """Numbers of the version folders of a model, whatever they are."""
    return {int(path.name) for path in model.iterdir() if NUMBER.fullmatch(path.name)}


def warm_up_file(number: int) -> str:
    """Name of a version's file in `warmup/`."""
    return f"{number}.raw"


def ordered(manifest: Manifest) -> tuple[str, ...]:
    """A bundle's networks in the order in which their configurations are exchanged."""
    return tuple(network for network in tensors.NETWORKS if network in manifest.networks)


def _networks(path: Path) -> tuple[str, ...]:
    """The models of a repository; raises OptionError where it holds anything else."""
    if not path.is_dir():
        raise OptionError(f"{path} is not a folder", hint="Choose another --out.")
    models = {entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    if strangers := sorted(models - set(tensors.NETWORKS)):
        raise OptionError(
            f"{path} holds {strangers[0]!r}, so it is not a repository that 'fieldmark repository' wrote",
            hint="Choose another --out; tritonserver takes several repositories.",
        )
    if not models:
        raise OptionError(f"{path} is not a repository that 'fieldmark repository' wrote", hint="Choose another --out.")
    return tuple(network for network in tensors.NETWORKS if network in models)


def _check_version(folder: Path, bundle_id: str | None) -> None:
    """Raise RepositoryError when a version's manifest is missing, or not that of the bundle which the history names."""
    found = hashlib.sha256(_manifest_bytes(folder)).hexdigest()
    if bundle_id not in (None, found):
        raise RepositoryError(
            f"{folder} is bundle {found[:12]}, and the history says {str(bundle_id)[:12]}", hint=DAMAGED
        )


def _manifest_bytes(version: Path) -> bytes:
    try:
        with open_regular(version / MANIFEST) as stream:
            return stream.read(MAX_CONFIG_BYTES)
    except OSError as problem:
        raise RepositoryError(
            f"{version} has no readable {MANIFEST} ({problem.strerror}), so the history is damaged", hint=DAMAGED
        ) from None
