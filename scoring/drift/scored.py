"""A finished set of scores and the calibration that it answers to, read and verified together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle import Bundle, detector_file
from bundle.errors import ScoringError
from bundle.manifest import FETCH_AGAIN, PER_CLASS
from scoring.columns import OK, Scored, arrow
from scoring.local.jobs import read_state
from scoring.local.shards import read_scores
from scoring.table.current import Current, is_table

COLUMNS = ("path", "status", "label", "instance_score", "is_adversarial")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """scores : (n,) float32 ascending; classes : (n,) int64, predicted, positions in the labels, or None."""

    scores: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True)
class ScoredSet:
    """The m rows of a set that have a score, in its order; `total` counts the others too.

    scores : (m,) float32; flags : (m,) bool at `alpha`; classes : (m,) int64, positions in `labels`; positions : (m,)
    int64 of the rows in the set; paths : m texts.
    """

    scores: npt.NDArray[np.float32]
    flags: npt.NDArray[np.bool_]
    classes: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    paths: Any
    labels: Sequence[str]
    network: str
    alpha: float
    total: int


def read_set(place: str, bundle: Bundle) -> ScoredSet:
    """Read what `fieldmark score` has finished with `bundle`, a folder of shards or a table; raises ScoringError for
    anything else."""
    read = _read_table if is_table(place) else _read_shards
    job, table, total = read(place, bundle)
    path, labels = place, bundle.manifest.labels
    answered = arrow().compute.equal(table["status"], OK)
    rows = table.filter(answered)
    if not rows.num_rows:
        raise ScoringError(f"{path} holds no scores: none of its {total:,} files could be decoded")
    if any(rows[name].null_count for name in COLUMNS):
        raise ScoringError(f"{path} is damaged: a row is {OK!r} and has no score", hint="Score it anew with --restart.")
    named = rows["label"].dictionary_encode().combine_chunks()
    if strangers := set(named.dictionary.to_pylist()) - set(labels):
        raise ScoringError(f"{path} is damaged: the bundle has no label {min(strangers)!r}")
    places = np.array([labels.index(label) for label in named.dictionary.to_pylist()])
    return ScoredSet(
        # The graph flags what is no number, since no calibration score reaches it: it is the most suspicious.
        scores=np.nan_to_num(rows["instance_score"].to_numpy(), nan=np.inf, posinf=np.inf, neginf=-np.inf),
        flags=rows["is_adversarial"].to_numpy(),
        classes=places[named.indices.to_numpy()],
        positions=np.flatnonzero(answered.to_numpy()),
        paths=rows["path"],
        labels=labels,
        network=job.network,
        alpha=job.alpha,
        total=total,
    )


def _read_shards(place: str, bundle: Bundle) -> tuple[Scored, Any, int]:
    """A folder's rows, in the source's order, and how many they are."""
    path = Path(place)
    state = read_state(path)
    _check_same(place, state.job, bundle)
    if not state.complete:
        raise ScoringError(
            f"{path} is not finished: {state.safe_in(path)}", hint="Run its 'fieldmark score' again to finish it."
        )
    table = read_scores(path, COLUMNS)
    return state.job, table, table.num_rows


def _read_table(place: str, bundle: Bundle) -> tuple[Scored, Any, int]:
    """The rows that hold in a table and have a score, and how many there are with the others.

    They come in the order of their ids, which are given in the source's order, night after night.
    """
    current = Current.read(place)
    _check_same(place, current.begun, bundle)
    found = list(current.batches(COLUMNS))
    order = np.argsort(np.concatenate([places for places, _ in found]))
    table = arrow().concat_tables([table for _, table in found]).take(order)
    return current.begun, table, table.num_rows + current.errors


def _check_same(place: str, job: Scored, bundle: Bundle) -> None:
    """Raise ScoringError where another bundle, or a network that it has not got, gave the scores."""
    if job.bundle_id != bundle.bundle_id:
        raise ScoringError(
            f"{place} was scored with bundle {job.bundle_id[:12]}, and {bundle.path} is {bundle.bundle_id[:12]}",
            hint="Give the bundle that scored it.",
        )
    if job.network not in bundle.manifest.networks:
        raise ScoringError(f"{place} names network {job.network!r}, which the bundle does not carry", hint=FETCH_AGAIN)


def read_calibration(bundle: Bundle, network: str) -> Calibration:
    """The calibration scores of a network's detector, and their classes where the bundle has them."""
    info, labels = bundle.manifest.networks[network].detector, bundle.manifest.labels
    with detector_file.opened(bundle.file(info.file)) as file:
        scores, classes = file.calibration().astype(np.float32), file.calibration_classes(len(labels))
        behind = len(scores)
        if info.calibration == PER_CLASS:
            if classes is None:
                raise ValueError("its calibration is per class and has no calibration_classes")
            behind = int(np.bincount(classes, minlength=len(labels)).min())
        if behind != info.calibration_n:
            raise ValueError(f"{behind:,} scores are behind a p-value, and the manifest says {info.calibration_n:,}")
    if classes is not None:
        classes = np.array([labels.index(label) for label in labels])[classes]  # labels need not differ
    return Calibration(scores=scores, classes=classes)
