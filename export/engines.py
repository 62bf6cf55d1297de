"""The engine verb: graphs of a bundle become a set of engines, each built only where none that fits is there.

Every engine is written under the name of its content, engines.json last, and what no longer belongs is deleted after
that: whenever this process dies, the folder holds the old set or the new one.
"""

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bundle.engines import (
    ENGINES,
    ENGINES_SCHEMA,
    EngineRecord,
    Engines,
    EngineSet,
    Evidence,
    Profile,
    engine_file,
    is_target,
    read_engines,
    verify,
)
from bundle.errors import BundleCorrupt, EngineError, OptionError
from bundle.files import atomic_file, check_place, full_disk, lock_for_this_process, open_regular, write_text
from bundle.folder import Bundle
from bundle.manifest import BF16, FETCH_AGAIN, FP16, INT8
from bundle.tensors import NETWORKS
from export.compiler import Compiler
from export.layers import CONVOLUTION

LOCK = ".engines.lock"
TIMINGS = "timings"
# precision of a bundle -> the type in which at least one convolution must compute
PROMISED = {FP16: "HALF", BF16: "BF16", INT8: "INT8"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that an engine is made of: two engines of one recipe stand for one another."""

    network: str
    runtime: str
    version: str
    target: str
    precision: str
    profile: Profile
    graph_sha256: str

    @classmethod
    def of(cls, record: EngineRecord) -> "Recipe":
        return cls(**{name: getattr(record, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """An engine of the set that was asked for: built now, in `seconds`, or kept from before."""

    record: EngineRecord
    built: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """An engine of the old set that is not in the new one, though nobody asked for its like."""

    record: EngineRecord
    reason: str


def build_engines(
    bundle: Bundle,
    out: Path,
    compiler: Compiler,
    *,
    networks: tuple[str, ...],
    targets: tuple[str, ...],
    profile: Profile,
    force: bool = False,
    tell: Callable[[Outcome], None] = lambda outcome: None,
) -> tuple[EngineSet, tuple[Dropped, ...]]:
    """Make the set at `out` hold an engine of every network for every target, and drop what the bundle has outgrown.

    Engines of this bundle for other targets stay. `tell` hears of each engine asked for as soon as it is there. With
    `force` none of those is kept from before, and an engines.json that cannot be read is replaced.
    """
    check_out(out, bundle)
    with _writing(out), _locked(out):
        old = _old(out, force)
        found: dict[tuple[str, str], EngineRecord] = {}
        try:
            for network in networks:
                for target in targets:
                    outcome = _make(bundle, out, compiler, network, target, profile, () if force else old)
                    found[network, target] = outcome.record
                    tell(outcome)
            dropped = []
            for record in old:
                if (record.network, record.target) in found:
                    continue
                if not _fits(bundle, record):
                    dropped.append(Dropped(record=record, reason="it was built from another graph"))
                elif not _whole(out, record):
                    dropped.append(Dropped(record=record, reason="it is damaged"))
                else:
                    found[record.network, record.target] = record
            engines = tuple(found[place] for place in sorted(found))
            text = Engines(schema=ENGINES_SCHEMA, bundle_id=bundle.bundle_id, engines=engines).to_json()
            if _read(out / ENGINES) != text.encode("utf-8"):
                write_text(out / ENGINES, text)
        except BaseException:
            for written in {record.file for record in found.values()} - {record.file for record in old}:
                (out / written).unlink(missing_ok=True)
            _remove_empty(out)
            raise
        _sweep(out, engines)
        return EngineSet.open(out, bundle.bundle_id), tuple(dropped)


def read_graph(bundle: Bundle, network: str) -> bytes:
    """A network's ONNX graph as these runtimes want it: int8 around zero. Raises BundleCorrupt if it has changed."""
    path, info = bundle.model(network), bundle.manifest.networks[network]
    graph = _read(path)
    if graph is None or hashlib.sha256(graph).hexdigest() != bundle.manifest.files[info.model].sha256:
        raise BundleCorrupt(f"{path} has changed since the bundle was verified", hint=FETCH_AGAIN)
    if info.precision != INT8:
        return graph
    import onnx

    from export.precision import signed

    return signed(onnx.load_from_string(graph)).SerializeToString()


def check_out(out: Path, bundle: Bundle) -> None:
    """Raise OptionError unless engines may be written at `out`: nothing, an empty folder, or a set of engines."""
    if out.resolve().is_relative_to(bundle.path.resolve()):
        raise OptionError(f"{out} lies in the bundle, which nobody may change", hint="Choose another --out.")
    check_place(out)
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise OptionError(f"{out} is not a folder", hint="Choose another --out, or remove it yourself.")
    for name in (ENGINES, TIMINGS, *NETWORKS):
        if (out / name).is_symlink():
            raise OptionError(f"{out / name} is a link", hint="Choose another --out, or remove it yourself.")
    if not (out / ENGINES).exists() and not (out / LOCK).exists() and any(out.iterdir()):
        raise OptionError(f"{out} holds other things and no {ENGINES}", hint="Choose another --out.")


def check_precision(network: str, target: str, precision: str, evidence: Evidence) -> None:
    """Raise EngineError when no convolution computes in the precision that the bundle promises."""
    promised = PROMISED.get(precision)
    convolutions = evidence.layers.get(CONVOLUTION, {})
    if promised is not None and promised not in convolutions:
        have = ", ".join(f"{count} in {dtype}" for dtype, count in convolutions.items()) or "none at all"
        raise EngineError(
            f"the engine of {network} for {target} has no convolution in {promised}, which a bundle in {precision} "
            f"promises; by the {evidence.source} it has {have}",
            hint="Choose another target, or use the bundle in fp32.",
        )


def _make(
    bundle: Bundle,
    out: Path,
    compiler: Compiler,
    network: str,
    target: str,
    profile: Profile,
    old: tuple[EngineRecord, ...],
) -> Outcome:
    info = bundle.manifest.networks[network]
    recipe = Recipe(
        network=network,
        runtime=compiler.runtime,
        version=compiler.version,
        target=target,
        precision=info.precision,
        profile=profile,
        graph_sha256=bundle.manifest.files[info.model].sha256,
    )
    for record in old:
        if Recipe.of(record) == recipe and _whole(out, record):
            return Outcome(record=record, built=False, seconds=0.0)
    started = time.perf_counter()
    timings = out / TIMINGS / f"{compiler.runtime}-{compiler.version}-{target}.cache"
    made = compiler.compile(read_graph(bundle, network), bundle.model(network), target, profile, _read(timings))
    check_precision(network, target, recipe.precision, made.evidence)
    sha256 = hashlib.sha256(made.data).hexdigest()
    record = EngineRecord(
        **vars(recipe),
        file=engine_file(network, target, sha256),
        bytes=len(made.data),
        sha256=sha256,
        evidence=made.evidence,
    )
    with atomic_file(out / record.file) as temporary:
        temporary.write_bytes(made.data)
    if made.timings is not None:
        with atomic_file(timings) as temporary:
            temporary.write_bytes(made.timings)
    return Outcome(record=record, built=True, seconds=time.perf_counter() - started)


def _read(path: Path) -> bytes | None:
    """A file that only makes things faster: what cannot be read is not there."""
    try:
        with open_regular(path, follow=False) as stream:
            return stream.read()
    except OSError:
        return None


def _old(out: Path, force: bool) -> tuple[EngineRecord, ...]:
    """Records of the set that is there, and of nothing else: what a killed run left is deleted."""
    records: tuple[EngineRecord, ...] = ()
    try:
        if os.path.lexists(out / ENGINES):
            records = read_engines(out).engines
    except EngineError:
        if not force:
            raise
        return ()  # its engines stay until there are new ones
    _sweep(out, records)
    return records


def _fits(bundle: Bundle, record: EngineRecord) -> bool:
    """Whether an engine was built from a graph of this bundle."""
    network = bundle.manifest.networks.get(record.network)
    return (
        network is not None
        and bundle.manifest.files[network.model].sha256 == record.graph_sha256
        and network.precision == record.precision
    )


def _whole(out: Path, record: EngineRecord) -> bool:
    try:
        verify(out, record)
    except EngineError:
        return False
    return True


def _sweep(out: Path, listed: tuple[EngineRecord, ...]) -> None:
    """Delete engines that are not listed and what a killed run left half-written; nothing that we do not name so."""
    keep = {record.file for record in listed}
    for leftover in out.glob(f".{ENGINES}.*.tmp"):
        leftover.unlink(missing_ok=True)
    for leftover in (out / TIMINGS).glob(".*.cache.*.tmp"):
        leftover.unlink(missing_ok=True)
    for network in NETWORKS:
        folder = out / network
        if folder.is_symlink() or not folder.is_dir():
            continue
        for path in folder.iterdir():
            name = path.name.removeprefix(".")
            is_engine = is_target(name.partition(".")[0]) and ".engine" in name
            if is_engine and f"{network}/{path.name}" not in keep and not path.is_dir():
                path.unlink(missing_ok=True)
    _remove_empty(out)


def _remove_empty(out: Path) -> None:
    for network in NETWORKS:
        with contextlib.suppress(OSError):  # absent, or not empty
            (out / network).rmdir()


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn what a disk says while `out` is written into DiskFull or EngineError."""
    with full_disk(out):
        try:
            yield
        except OSError as problem:
            if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise EngineError(
                f"cannot write {problem.filename or out} ({problem.strerror or problem})",
                hint="What was there before is still good; choose another --out, or mend the folder.",
            ) from None


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Make the folder and hold its lock; the kernel lets go of it however this process ends."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("ab") as stream:
        busy = EngineError(
            f"another fieldmark engine is building into {out}", hint="Wait until it ends, or use another --out."
        )
        lock_for_this_process(stream.fileno(), busy)
        yield
