"""What the tests of this room share: bundles as `fieldmark export` makes them, of a tiny trained run."""

from pathlib import Path

import pytest
from rich.console import Console

from bundle import Bundle
from bundle.manifest import PRECISIONS


@pytest.fixture(scope="session")
def bundles(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """One bundle a precision; a tiny network's accuracy is a coin's, so any loss of it is allowed."""
    from export.bundling import export_run
    from export.plan import ExportSettings
    from export.staging import GraphSettings
    from robustness.fitting import DetectorSettings

    folder = tmp_path_factory.mktemp("precisions")
    return {
        precision: export_run(
            tiny_run,
            folder / precision,
            ExportSettings(
                detector=DetectorSettings(attacks=("fgsm-8",), alpha=0.1),
                graphs=GraphSettings(precision=precision, max_accuracy_loss=100),
            ),
            Console(quiet=True),
        )
        for precision in PRECISIONS
    }
