"""Stanford Cars-196 as published (reader follows)."""

from pathlib import Path

from training.data.index import Index


def find(folder: Path) -> Path | None:
    return None


def read(root: Path) -> Index:
    raise NotImplementedError
