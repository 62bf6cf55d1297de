"""What is on the disk: the two environments."""

import subprocess
from typing import Any

ENVIRONMENTS = {"server": ".venv-triton", "development": ".venv"}


def measure_footprint() -> dict[str, Any]:
    """MB of each environment, as the disk has them; nan where one is not there."""
    return {name: _megabytes(path) for name, path in ENVIRONMENTS.items()}


def _megabytes(path: str) -> float:
    done = subprocess.run(["du", "-sk", path], capture_output=True, text=True, check=False)
    return round(int(done.stdout.split()[0]) / 1024, 1) if done.returncode == 0 else float("nan")
