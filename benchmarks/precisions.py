"""A bundle's run exported in every precision: how large it becomes, and what that costs."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bundle.folder import Bundle
from bundle.manifest import PRECISIONS
from demo.stages import fieldmark


def measure_precisions(bundle_path: Path) -> dict[str, Any]:
    """By precision and network: bytes of the graph, parity with PyTorch and quality, as the manifests have it."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fieldmark-bench-") as folder:
        for precision in PRECISIONS:
            words = ("--precision", precision, "--report", "none", "--max-accuracy-loss", "100")
            fieldmark("export", bundle_path.parent / "run", "--out", Path(folder) / precision, *words)
            bundle = Bundle.open(Path(folder) / precision)
            result[precision] = {
                name: {
                    "bytes": bundle.model(name).stat().st_size,
                    "parity": asdict(network.parity),
                    "quality": {key: asdict(quality) for key, quality in network.quality.items()},
                }
                for name, network in bundle.manifest.networks.items()
            }
    return result
