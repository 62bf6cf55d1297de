"""Change what a model repository serves: add a bundle as the next version, go back to an old one, drop the oldest.

Nobody ever finds half a change, and a writer that is killed leaves a repository that can be served: a new version is
made under a hidden name and renamed; then the configurations, which alone decide what is served, are exchanged one
right after the other; then what no configuration names any more is removed. Killed between two configurations, each
network serves a whole version, though not of the same bundle (our clients refuse that); the same command ends it.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bundle import Bundle
from bundle.engines import TENSORRT as RUNTIME
from bundle.engines import EngineSet
from bundle.errors import EngineError, OptionError, RepositoryError
from bundle.files import atomic_folder, check_place, full_disk, leftovers, lock_for_this_process, remove_folder
from bundle.manifest import Manifest
from bundle.tensors import TensorSpec
from serving.triton.config import TENSORRT, Settings, settle
from serving.triton.repository import (
    CONFIG,
    WARM_UP,
    Repository,
    engines_of,
    exchange_configs,
    fill_version,
    ordered,
    read_config,
    served_by,
    verify_version,
    version_folders,
    warm_up_file,
    write_repository,
    write_warm_up,
)

_ELSEWHERE = "Choose another --out."


def roll_out(
    out: Path,
    bundle: Bundle | None,
    asked: Mapping[str, Any],
    *,
    engines: EngineSet | None = None,
    version: int | None = None,
    keep: int | None = None,
) -> Repository:
    """Serve `bundle` from the repository at `out` as its next version, or as the one that it already is; or, without a
    bundle, serve `version` again. `asked` are the settings to change; `keep` versions stay, and the served one.

    Raises RepositoryError, EngineError, OptionError or DiskFull; then what was served before is served.
    """
    if bundle is None and version is None:
        raise OptionError("there is nothing to do", hint="Give a BUNDLE to add, or --version N to go back to one.")
    out = Path(os.path.realpath(out))
    if bundle is not None and _absent_or_empty(out):
        if version not in (None, 1):
            raise OptionError(f"there is no repository at {out}, and so no version {version}")
        _create(out, bundle, settle(None, asked), engines)
    else:
        with _locked(out), full_disk(out):
            try:
                _change(Repository.open(out), bundle, asked, engines, version, keep)
            except BaseException:
                with contextlib.suppress(Exception):  # the first problem is the one to tell
                    _sweep(Repository.open(out))
                raise
    return Repository.open(out)


def _create(out: Path, bundle: Bundle, settings: Settings, engines: EngineSet | None) -> None:
    _check_engines(bundle, settings, engines)
    check_place(out)
    if out.exists():
        try:
            out.rmdir()  # a whole repository takes its name
        except OSError as problem:
            what = "is a mount point" if problem.errno == errno.EBUSY else f"cannot be replaced ({problem.strerror})"
            raise OptionError(f"{out} {what}", hint=f"Choose a folder in it: --out {out}/models.") from None
    with atomic_folder(out) as folder:
        write_repository(bundle, folder, settings, engines=engines)


def _change(
    repository: Repository,
    bundle: Bundle | None,
    asked: Mapping[str, Any],
    engines: EngineSet | None,
    version: int | None,
    keep: int | None,
) -> None:
    settings = settle(repository.settings, asked)
    number, versions = _chosen(repository, bundle, engines, version), dict(repository.versions)
    _sweep(repository)
    if bundle is not None and not number:
        _check_engines(bundle, settings, engines)
        _refuse_misfit(repository, bundle)
        number = _add(repository, bundle, settings, engines)
        versions[number] = bundle.bundle_id
    for network in repository.networks:
        verify_version(repository.path / network / str(number), network, settings)
    if keep is not None:
        kept = {number, *sorted(versions)[-keep:]}
        versions = {each: bundle_id for each, bundle_id in versions.items() if each in kept}
    exchange_configs(repository.path, settings, number, versions)
    _sweep(Repository.open(repository.path))


def _chosen(repository: Repository, bundle: Bundle | None, engines: EngineSet | None, version: int | None) -> int:
    """The version that is asked for, 0 for a bundle that is none yet."""
    if version is not None and version not in repository.versions:
        have = ", ".join(map(str, sorted(repository.versions)))
        raise OptionError(f"{repository.path} has no version {version}", hint=f"It has: {have}.")
    if bundle is None:
        return version or 0
    same = [number for number, bundle_id in repository.versions.items() if bundle_id == bundle.bundle_id]
    if engines is not None:
        wanted = {network: engines_of(engines, network) for network in repository.networks}
        same = [
            number
            for number in same
            if all(repository.engines(network, number) == records for network, records in wanted.items())
        ]
    if version is not None and version not in same:
        raise OptionError(
            f"version {version} of {repository.path} is bundle {repository.versions[version][:12]}, and {bundle.path} "
            f"is {bundle.bundle_id[:12]}",
            hint="Leave out BUNDLE or --version.",
        )
    return version or max(same, default=0)


def _add(repository: Repository, bundle: Bundle, settings: Settings, engines: EngineSet | None) -> int:
    """Make the next version, which no configuration names as yet; returns its number."""
    number = 1 + max(max(version_folders(repository.path / network)) for network in repository.networks)
    for network in repository.networks:
        model = repository.path / network
        write_warm_up(model, number, bundle)
        with atomic_folder(model / str(number)) as folder:
            fill_version(folder, bundle, network, settings, engines)
    return number


def _sweep(repository: Repository) -> None:
    """Remove what neither the history nor a configuration names: of killed writers, or versions dropped by --keep."""
    for network in repository.networks:
        model = repository.path / network
        named = {*repository.versions, served_by(read_config(model / CONFIG))}
        for number in version_folders(model) - named:
            remove_folder(model / str(number))
        images = {warm_up_file(number) for number in named}
        unnamed = [path for path in (model / WARM_UP).glob("*") if path.name not in images]
        for path in (*leftovers(model), *unnamed):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _check_engines(bundle: Bundle, settings: Settings, engines: EngineSet | None) -> None:
    """Raise unless engines are given where they are needed, and are such that Triton can load."""
    if settings.backend != TENSORRT:
        if engines is not None:
            raise OptionError(f"--engines is for --backend tensorrt, and this is {settings.backend}")
        return
    if engines is None:
        raise OptionError(
            "--backend tensorrt needs --engines", hint="Build them: fieldmark engine BUNDLE --out ENGINES"
        )
    for record in engines.records:
        if record.runtime != RUNTIME:
            raise EngineError(
                f"{engines.file(record)} is an engine of {record.runtime}, and Triton's backend loads those of "
                f"{RUNTIME} alone",
                hint="Build it with --runtime tensorrt, or serve the bundle with --backend onnxruntime.",
            )
    for network in bundle.manifest.networks:
        if not engines_of(engines, network):
            raise EngineError(f"{engines.path} has no engine of the network {network!r}", hint="Build one for each.")


def _refuse_misfit(repository: Repository, bundle: Bundle) -> None:
    """Raise RepositoryError when clients of the history would misread the bundle's answers."""
    if what := _difference(repository.manifest, bundle.manifest):
        raise RepositoryError(
            f"{bundle.path} has {what}, so clients of {repository.path} would misread its answers", hint=_ELSEWHERE
        )


def _difference(old: Manifest, new: Manifest) -> str:
    """What of a new bundle its clients would not expect, as half a sentence; empty when nothing."""
    if old.labels != new.labels:
        return "other labels"
    if old.image != new.image:
        return "another image spec"
    if set(old.networks) != set(new.networks):
        return f"the networks {', '.join(ordered(new))} instead of {', '.join(ordered(old))}"
    for network in ordered(old):
        for before, after in zip(_tensors(old, network), _tensors(new, network), strict=True):
            if before != after:
                return f"{network}.{after.name} of shape {list(after.shape)} instead of {list(before.shape)}"
    return ""


def _tensors(manifest: Manifest, network: str) -> tuple[TensorSpec, ...]:
    info = manifest.networks[network]
    return (*info.inputs, *info.outputs)


def _absent_or_empty(path: Path) -> bool:
    return not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir()))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other writers out; raises OptionError when nothing can be written, RepositoryError when one is at work."""
    if not path.is_dir():
        what = "is not a folder" if os.path.lexists(path) else "does not exist"
        raise OptionError(f"{path} {what}, so there is no repository", hint="Give a BUNDLE and another --out.")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise OptionError(f"{path} cannot be written to", hint="Check its permissions, or choose another --out.")
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        busy = RepositoryError(f"another process is changing {path}", hint="Wait until it ends.")
        lock_for_this_process(handle, busy)
        yield
    finally:
        os.close(handle)
