"""The figures of the `make demo` that made a bundle."""

import json
from pathlib import Path
from typing import Any

from bundle.errors import OptionError


def read_demo(bundle_path: Path) -> dict[str, Any]:
    """Seconds of each stage, accuracy, flagged shares, AUROC, as the demo has written them beside its bundle."""
    path = bundle_path.parent / "report.json"
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for place in ("table", "failed_list"):  # on the machine where it ran
            del report["scored"][place]
        if report["reused"]:
            reused = ", ".join(report["reused"])
            report["note"] = f"stages {reused} were reused; their seconds are those of their first run"
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise OptionError(f"{path} cannot be read ({problem})", hint="Run 'make demo' again.") from None
    return report
