"""A folder as an analyst has it: clean and tampered images side by side, one of them damaged; and its scores."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bundle.files import atomic_folder
from demo.stages import StageFailed
from scoring.score_cli import SOME_FAILED


def make_archive(attacked: Path, archive: Path) -> Path:
    """Copy every image of one network's attack folders, and add one truncated file."""
    with atomic_folder(archive, replace=True) as folder:
        for source in sorted(attacked.iterdir()):
            shutil.copytree(source, folder / source.name)
        whole = next(folder.rglob("*.png")).read_bytes()
        (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    return archive


def score_archive(archive: Path, bundle: Path, table: Path) -> dict[str, Any]:
    """`fieldmark score` into a new Delta table; returns the summary it prints."""
    shutil.rmtree(table, ignore_errors=True)
    command = [sys.executable, "-m", "fieldmark", "score", archive, "--bundle", bundle, "--table", table, "--json"]
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != SOME_FAILED:  # the truncated one
        raise StageFailed("scoring the folder failed", hint="Its message stands above.")
    summary: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return summary
