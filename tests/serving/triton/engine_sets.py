"""Sets of engines as `fieldmark engine` writes them, with bytes that only a GPU would tell from an engine."""

import hashlib
from pathlib import Path

from bundle import Bundle
from bundle.engines import (
    ENGINES,
    ENGINES_SCHEMA,
    TENSORRT,
    EngineRecord,
    Engines,
    EngineSet,
    Evidence,
    Profile,
    engine_file,
)


def write_engines(
    path: Path,
    bundle: Bundle,
    *,
    targets: tuple[str, ...] = ("sm_86",),
    profile: tuple[int, int, int] = (1, 8, 32),
    runtime: str = TENSORRT,
    networks: tuple[str, ...] = ("attention", "full"),
    precision: str = "fp16",
) -> EngineSet:
    records = []
    for network in networks:
        for target in sorted(targets):
            data = f"{bundle.bundle_id} {network} {target} {profile}".encode()
            digest = hashlib.sha256(data).hexdigest()
            file = path / engine_file(network, target, digest)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            records.append(
                EngineRecord(
                    network=network,
                    file=engine_file(network, target, digest),
                    runtime=runtime,
                    version="10.7.0",
                    target=target,
                    precision=precision,
                    profile=Profile(min=profile[0], opt=profile[1], max=profile[2]),
                    graph_sha256=bundle.manifest.files[bundle.manifest.networks[network].model].sha256,
                    bytes=len(data),
                    sha256=digest,
                    evidence=Evidence(source="network", layers={"CONVOLUTION": {"HALF": 1}}),
                )
            )
    document = Engines(schema=ENGINES_SCHEMA, bundle_id=bundle.bundle_id, engines=tuple(records))
    (path / ENGINES).write_text(document.to_json(), encoding="utf-8")
    return EngineSet.open(path, bundle.bundle_id)
