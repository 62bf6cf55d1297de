"""What the tests of this room share: a bundle as `fieldmark export` makes it, of a tiny trained run."""

from pathlib import Path

import pytest
from rich.console import Console

from bundle import Bundle


@pytest.fixture(scope="session")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from export.bundling import export_run
    from robustness.fitting import DetectorSettings

    out = tmp_path_factory.mktemp("bundle") / "tiny"
    settings = DetectorSettings(attacks=("fgsm-8",), alpha=0.1)
    return export_run(tiny_run, out, settings, Console(quiet=True), data=None, replace=False)
