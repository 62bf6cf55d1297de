"""A dataset cut down to its first classes by name, for a machine that the whole would take for weeks."""

import csv
import io
import os
from pathlib import Path

from bundle.errors import OptionError
from bundle.files import write_text
from training.data import open_dataset
from training.data.manifest import COLUMNS

HEAD = (",".join(COLUMNS) + "\r\n").encode()  # as every manifest from here begins


def first_classes(data: Path, count: int, out: Path) -> Path:
    """Write OUT/NAME-COUNT.csv, a manifest of the first `count` classes of the dataset at `data`, and beside it a link
    to the images; returns the manifest. Neighbours by name are look-alikes more often than a sample would be. Its test
    part is the dataset's; the rest is divided anew.
    """
    dataset = open_dataset(data)
    if not 2 <= count <= len(dataset.labels):
        raise OptionError(
            f"{count} classes of {dataset.name} cannot be taken: it has {len(dataset.labels)}",
            hint="Leave --classes out, or take from 2 to as many.",
        )
    root = dataset.root if dataset.root.is_dir() else dataset.root.parent
    name = f"{dataset.name}-{count}"
    kept = set(sorted(dataset.labels)[:count])
    rows = [
        (f"{name}/{sample.key}", label, "test" if part == "test" else "", sample.group, *(sample.box or ("",) * 4))
        for part, samples in dataset.parts.items()
        for sample in samples
        if (label := dataset.labels[sample.label]) in kept
    ]
    text = io.StringIO()
    csv.writer(text).writerows([COLUMNS, *sorted(rows)])
    images, manifest = out / name, out / f"{name}.csv"
    _check_ours(images, not images.is_symlink())
    _check_ours(manifest, not manifest.is_file() or not manifest.read_bytes().startswith(HEAD))
    out.mkdir(parents=True, exist_ok=True)
    images.unlink(missing_ok=True)
    images.symlink_to(root.resolve(), target_is_directory=True)
    write_text(manifest, text.getvalue())
    return manifest


def _check_ours(path: Path, foreign: bool) -> None:
    """What an earlier call has made is made anew, and nothing else."""
    if os.path.lexists(path) and foreign:
        raise OptionError(f"{path} is there, and not from here", hint="Move it away, or choose another --out.")
