"""Catalogues: whoever has an id of his own keeps it, whatever path it is given."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from deltalake import DeltaTable

from bundle import Bundle
from scoring.campaigns import gather
from scoring.drift.scored import read_set
from scoring.flags import control
from scoring.table.current import Current
from tests.scoring.conftest import Score

PAGE = Path(__file__).parents[3] / "docs" / "scoring.md"
BEFORE = {5: "b/09.png", 6: "b/10.png", 7: "a/00.png"}


def catalogue(folder: Path, ids: dict[int, str]) -> Path:
    target = folder / "night.csv"
    target.write_text("id,path\n" + "".join(f"{number},photos/{path}\n" for number, path in ids.items()))
    return target


@pytest.mark.parametrize(
    "after",
    [
        {**BEFORE, 5: "a/01.png"},  # which comes before the old path
        {**BEFORE, 5: "b/19.png"},  # and behind it
        {**BEFORE, 5: "b/10.png", 6: "b/09.png"},
        {5: "b/10.png", 7: "a/00.png"},
        {5: "b/broken.png", 6: "b/10.png", 7: "a/00.png"},
    ],
)
def test_an_id_moves_to_another_path(
    score: Score, photos: Path, toy_bundle: Bundle, tmp_path: Path, after: dict[int, str]
) -> None:
    """Away, and back: the object is there all the time, once, in every way to read the table."""
    table = str(tmp_path / "table")
    sql = PAGE.read_text().partition("```sql\n")[2].partition("```")[0]
    for ids in (BEFORE, after, BEFORE):
        score(catalogue(tmp_path, ids), table)
        have = {number: path for number, path in ids.items() if "broken" not in path}
        current = Current.read(table)
        assert (current.ids.tolist(), current.errors) == (sorted(have), len(ids) - len(have))
        found = gather(current, control(current.p_values, 99, fdr=0.1))
        assert sum(group.rows for group in found.groups["day"]) == len(have)
        assert read_set(table, toy_bundle).paths.to_pylist() == [f"photos/{have[number]}" for number in sorted(have)]
        with duckdb.connect() as engine:
            engine.register("birds", DeltaTable(table).to_pyarrow_dataset())
            rows = engine.sql(f"select id, path from ({sql}) order by id").fetchall()
        assert rows == [(number, f"photos/{path}") for number, path in sorted(ids.items())]


def test_flags_after_an_id_has_moved_back(score: Score, photos: Path, tmp_path: Path) -> None:
    for ids in (BEFORE, {**BEFORE, 5: "a/01.png"}, BEFORE):
        score(catalogue(tmp_path, ids), tmp_path / "table")
    command = [sys.executable, "-m", "fieldmark", "flags", str(tmp_path / "table")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"of {len(BEFORE)} rows flagged" in done.stdout
