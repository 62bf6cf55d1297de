"""The objects of a table that have no score, whichever run tried them: a list beside the rows that `score` takes."""

from scoring.columns import ERROR, arrow, exact_paths
from scoring.table.delta import ScoreTable
from scoring.table.objects import Objects

FAILED = "_fieldmark/failed.txt"


def list_failed(table: ScoreTable, objects: Objects) -> int:
    """Write down where each object without a score is, a line each, or remove the list where all have one; returns how
    many have none. What is held are the rows of those that ever had none."""
    pc, rows = arrow().compute, table.dataset()
    failed = rows.to_table(columns=["id", "run", "path", "path_bytes"], filter=pc.field("status") == ERROR)
    if not len(failed):
        table.place.remove(FAILED)
        return 0
    runs = rows.to_table(columns=["id", "run"], filter=pc.field("id").isin(failed["id"].unique()))
    last = runs.group_by("id").aggregate([("run", "max")])
    newest = dict(zip(last["id"].to_pylist(), last["run_max"].to_pylist(), strict=True))
    keys = zip(failed["id"].to_pylist(), failed["run"].to_pylist(), strict=True)
    paths = [path for path, (number, run) in zip(exact_paths(failed), keys, strict=True) if newest[number] == run]
    if not paths:
        table.place.remove(FAILED)
        return 0
    places = sorted(objects.place_of(path) for path in paths if "\n" not in path and "\r" not in path)
    table.place.write(FAILED, "".join(f"{line}\n" for line in places).encode("utf-8", "surrogateescape"))
    return len(paths)
