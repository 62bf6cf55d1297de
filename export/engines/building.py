"""The engine verb: graphs of a bundle become a set of engines, each built only where none that fits is there.

Every engine is written under the name of its content, engines.json last, and what no longer belongs is deleted after
that: whenever this process dies, the folder holds the old set or the new one.
"""

import hashlib
import time
from collections.abc import Callable
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
    Recipe,
    engine_file,
)
from bundle.errors import BundleCorrupt, EngineError
from bundle.files import atomic_file, write_text
from bundle.folder import Bundle
from bundle.manifest import BF16, FETCH_AGAIN, FP16, INT8
from export.engines.compiler import Compiler
from export.engines.folder import (
    TIMINGS,
    check_out,
    is_whole,
    locked,
    read_bytes,
    read_records,
    remove_empty,
    sweep,
    writing,
)
from export.engines.layers import CONVOLUTION

# precision of a bundle -> the type in which at least one convolution must compute
PROMISED = {FP16: "HALF", BF16: "BF16", INT8: "INT8"}


@dataclass(frozen=True, kw_only=True)
class EngineOrder:
    """Which engines there are to be: one of every network for every target. With `force` none of them is kept from
    before, and an engines.json that cannot be read is replaced.
    """

    networks: tuple[str, ...]
    targets: tuple[str, ...]
    profile: Profile
    force: bool = False


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
    order: EngineOrder,
    *,
    tell: Callable[[Outcome], None] = lambda outcome: None,
) -> tuple[EngineSet, tuple[Dropped, ...]]:
    """Make the set at `out` hold the engines of an order, and drop what the bundle has outgrown.

    Engines of this bundle for other targets stay. `tell` hears of each engine asked for as soon as it is there.
    """
    check_out(out, bundle)
    with writing(out), locked(out):
        old = read_records(out, force=order.force)
        found: dict[tuple[str, str], EngineRecord] = {}
        try:
            for network in order.networks:
                for target in order.targets:
                    outcome = _make(bundle, out, compiler, network, target, order.profile, () if order.force else old)
                    found[network, target] = outcome.record
                    tell(outcome)
            dropped = []
            for record in old:
                if (record.network, record.target) in found:
                    continue
                if not _fits(bundle, record):
                    dropped.append(Dropped(record=record, reason="it was built from another graph"))
                elif not is_whole(out, record):
                    dropped.append(Dropped(record=record, reason="it is damaged"))
                else:
                    found[record.network, record.target] = record
            engines = tuple(found[place] for place in sorted(found))
            text = Engines(schema=ENGINES_SCHEMA, bundle_id=bundle.bundle_id, engines=engines).to_json()
            if read_bytes(out / ENGINES) != text.encode("utf-8"):
                write_text(out / ENGINES, text)
        except BaseException:
            for written in {record.file for record in found.values()} - {record.file for record in old}:
                (out / written).unlink(missing_ok=True)
            remove_empty(out)
            raise
        sweep(out, engines)
        return EngineSet.open(out, bundle.bundle_id), tuple(dropped)


def read_graph(bundle: Bundle, network: str) -> bytes:
    """A network's ONNX graph as these runtimes want it: int8 around zero. Raises BundleCorrupt if it has changed."""
    path, info = bundle.model(network), bundle.manifest.networks[network]
    graph = read_bytes(path)
    if graph is None or hashlib.sha256(graph).hexdigest() != bundle.manifest.files[info.model].sha256:
        raise BundleCorrupt(f"{path} has changed since the bundle was verified", hint=FETCH_AGAIN)
    if info.precision != INT8:
        return graph
    import onnx

    from export.precision import signed

    return signed(onnx.load_from_string(graph)).SerializeToString()


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
        if record.recipe == recipe and is_whole(out, record):
            return Outcome(record=record, built=False, seconds=0.0)
    started = time.perf_counter()
    timings = out / TIMINGS / f"{compiler.runtime}-{compiler.version}-{target}.cache"
    made = compiler.compile(read_graph(bundle, network), bundle.model(network), target, profile, read_bytes(timings))
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


def _fits(bundle: Bundle, record: EngineRecord) -> bool:
    """Whether an engine was built from a graph of this bundle."""
    network = bundle.manifest.networks.get(record.network)
    return (
        network is not None
        and bundle.manifest.files[network.model].sha256 == record.graph_sha256
        and network.precision == record.precision
    )
