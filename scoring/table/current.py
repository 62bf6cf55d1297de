"""What holds in a table now: of each object the row of the last run that wrote one, unless that says it is gone.

A catalogue may give an id to another path. Then a run has two rows of it: the old path is gone, the new one's holds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import ScoringError
from scoring.columns import OK, arrow
from scoring.table.data_file import GONE
from scoring.table.delta import ScoreTable
from scoring.table.place import Place
from scoring.table.runs import RUNS, Begun, key_of, read_inventory, runs_of

Integers = npt.NDArray[np.int64]


def is_table(text: str) -> bool:
    """Whether a Delta table is there."""
    return bool(Place(text).names("_delta_log"))


def last_begun(table: ScoreTable) -> Begun | None:
    """The last run that the table knows; raises ScoringError where its list is not there."""
    number = table.last_run()
    if not number:
        return None
    for begun in runs_of(table.place, number):
        inventory = read_inventory(table.place, begun)
        if inventory is not None and table.holds(key_of(begun, inventory)):
            return begun
    raise ScoringError(
        f"{table.place.url} has {number:,} runs of fieldmark, and the list of the last one is not in {RUNS}",
        hint="Bring the folder back, or use another table.",
    )


@dataclass(frozen=True, kw_only=True)
class Current:
    """The objects that have a score, ascending by id, and what `begun` says of the last run.

    ids, runs : (m,) int64; p_values : (m,) float32; flags : (m,) bool at the run's alpha; `errors` counts objects
    without a score.
    """

    begun: Begun
    dataset: Any
    ids: Integers
    runs: Integers
    p_values: npt.NDArray[np.float32]
    flags: npt.NDArray[np.bool_]
    errors: int

    @classmethod
    def read(cls, text: str) -> "Current":
        """Read a table's ids and p-values; raises ScoringError for what is no table of scores."""
        table = ScoreTable(Place(text))
        dataset = table.dataset()
        begun = last_begun(table)
        if begun is None:
            raise ScoringError(f"{text} is a table of something else", hint="Give one that 'fieldmark score' made.")
        rows = dataset.to_table(columns=["id", "run", "status", "p_value", "is_adversarial"])
        ids, runs = rows["id"].to_numpy(), rows["run"].to_numpy()
        there = arrow().compute.not_equal(rows["status"], GONE).to_numpy()
        order = np.lexsort((there, runs, ids))
        last = order[np.flatnonzero(np.append(np.diff(ids[order]) != 0, len(order) > 0))]
        scored = last[arrow().compute.equal(rows["status"].take(last), OK).to_numpy()]
        if not len(scored):
            raise ScoringError(f"{text} holds no scores", hint="None of its objects has one.")
        taken = rows.select(["p_value", "is_adversarial"]).take(scored)
        return cls(
            begun=begun,
            dataset=dataset,
            ids=ids[scored],
            runs=runs[scored],
            p_values=taken["p_value"].to_numpy(),
            flags=taken["is_adversarial"].to_numpy(),
            errors=int(there[last].sum()) - len(scored),
        )

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[Integers, Any]]:
        """Some columns of the rows that hold, piece by piece: their places in `ids`, and a pyarrow.Table."""
        pa = arrow()
        for batch in self.dataset.to_batches(columns=list(dict.fromkeys(("id", "run", "status", *columns)))):
            if not batch.num_rows:
                continue
            ids, runs = batch.column("id").to_numpy(), batch.column("run").to_numpy()
            places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
            answered = pa.compute.equal(batch.column("status"), OK).to_numpy(zero_copy_only=False)
            holds = (self.ids[places] == ids) & (self.runs[places] == runs) & answered
            if holds.any():
                yield places[holds], pa.Table.from_batches([batch]).filter(pa.array(holds)).select(list(columns))
