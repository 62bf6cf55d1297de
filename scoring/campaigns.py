"""Flagged rows, listed, and counted by day, label and folder: a campaign is denser than the rest."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle.errors import OptionError
from bundle.files import atomic_file, check_place
from scoring.columns import arrow, exact_paths
from scoring.flags import Flagged
from scoring.table.current import Current

GROUPS = ("day", "label", "folder")
LISTS = (".csv", ".parquet")
LISTED = ("id", "path", "label", "probability", "p_value", "adjusted", "instance_score", "day", "run")


@dataclass(frozen=True, kw_only=True)
class Group:
    """The rows of one day, label or folder: how many, how many of them at the run's alpha, and at the rate."""

    name: str
    rows: int
    at_alpha: int
    flagged: int


@dataclass(frozen=True)
class Campaigns:
    """By kind of group its groups, those with the largest share first; `listed` : the flagged rows, most suspicious
    first, a pyarrow.Table with the columns LISTED."""

    groups: Mapping[str, tuple[Group, ...]] = field(default_factory=dict)
    listed: Any = None


def gather(current: Current, flagged: Flagged) -> Campaigns:
    """One pass over the table's rows; what is held are the counts of the groups, and the flagged rows."""
    pa = arrow()
    counts: dict[str, tuple[Counter[str], Counter[str], Counter[str]]] = {
        kind: (Counter(), Counter(), Counter()) for kind in GROUPS
    }
    columns = ["path", "path_bytes", "label", "day"]
    more = ["probability", "p_value", "instance_score", "run", "id"]
    pieces = []
    for places, table in current.batches([*columns, *more]):
        hits = flagged.flagged[places]
        names = {
            "day": [day.isoformat() for day in table["day"].to_pylist()],
            "label": table["label"].to_pylist(),
            "folder": [os.path.dirname(path) for path in exact_paths(table)],
        }
        for kind, values in names.items():
            everything, alpha, hit = counts[kind]
            everything.update(values)
            alpha.update(value for value, flag in zip(values, current.flags[places], strict=True) if flag)
            hit.update(value for value, flag in zip(values, hits, strict=True) if flag)
        if hits.any():
            adjusted = pa.array(flagged.adjusted[places])
            pieces.append(table.append_column("adjusted", adjusted).filter(pa.array(hits)).select(list(LISTED)))
    listed = (
        pa.concat_tables(pieces).sort_by([("p_value", "ascending"), ("instance_score", "descending")])
        if pieces
        else None
    )
    return Campaigns({kind: _ranked(*found) for kind, found in counts.items()}, listed)


def _ranked(everything: Counter[str], alpha: Counter[str], hit: Counter[str]) -> tuple[Group, ...]:
    """Densest first; of equal ones the larger."""
    found = [Group(name=name, rows=rows, at_alpha=alpha[name], flagged=hit[name]) for name, rows in everything.items()]
    return tuple(
        sorted(found, key=lambda group: (-group.flagged / group.rows, -group.at_alpha / group.rows, -group.rows))
    )


def check_list(path: Path) -> None:
    """Raise OptionError where no list can be written; asked before the table is read."""
    if path.suffix.lower() not in LISTS:
        raise OptionError(f"--out {path} ends in neither {' nor '.join(LISTS)}")
    check_place(path)


def write_list(path: Path, listed: Any) -> None:
    """Write the flagged rows as CSV or Parquet; an empty list where none are."""
    pa = arrow()
    import pyarrow.csv as csv

    table = pa.table({name: [] for name in LISTED}) if listed is None else listed
    with atomic_file(path) as temporary:
        if path.suffix.lower() == ".csv":
            csv.write_csv(table, temporary)
        else:
            pa.parquet.write_table(table, temporary, compression="zstd")
