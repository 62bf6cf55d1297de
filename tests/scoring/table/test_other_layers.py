"""A table that a bundle with other layers goes on with: one column, as long as each row's bundle has layers."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars
import pytest
from deltalake import DeltaTable

from bundle import Bundle
from bundle.errors import ReviewError, ScoringError
from review.sources.source import open_source
from scoring.drift.scored import read_set
from scoring.table.current import Current
from tests.conftest import LAYERS
from tests.scoring.conftest import Score
from tests.scoring.table.test_table import ROWS, rows_in

ONE = ("grid",)
HOLDS = "qualify row_number() over (partition by id order by run desc, status = 'gone') = 1 and status <> 'gone'"


@pytest.fixture
def other(make_toy_bundle: Callable[..., Bundle], tmp_path: Path) -> Bundle:
    return make_toy_bundle(tmp_path / "other", name="other", layers=ONE)


@pytest.fixture
def table(score: Score, photos: Path, other: Bundle, tmp_path: Path) -> Path:
    """Two nights: the first with the layers colour and grid; for the second an image is gone, and of the layers grid is
    left."""
    score(photos, tmp_path / "table")
    (photos / "b" / "12.png").unlink()
    score(photos, tmp_path / "table", bundle=other, another_bundle=True)
    return tmp_path / "table"


def test_a_row_has_the_layers_of_its_bundle(table: Path, toy_bundle: Bundle, other: Bundle) -> None:
    rows = rows_in(table)
    assert len(rows) == 2 * ROWS
    lengths = {(row["bundle_id"], len(row["layer_scores"])) for row in rows if row["status"] == "ok"}
    assert lengths == {(toy_bundle.bundle_id, len(LAYERS)), (other.bundle_id, len(ONE))}
    first, second = ([row for row in rows if row["run"] == run and row["status"] == "ok"] for run in (1, 2))
    grid = {row["id"]: row["layer_scores"][LAYERS.index("grid")] for row in first}
    assert [row["layer_scores"] for row in second] == [[pytest.approx(grid[row["id"]], rel=1e-5)] for row in second]


def test_it_goes_on_with_the_second_bundle_alone(
    score: Score, table: Path, photos: Path, toy_bundle: Bundle, other: Bundle
) -> None:
    assert score(photos, table, bundle=other).rows == 0
    with pytest.raises(ScoringError, match="was scored with bundle"):
        score(photos, table)
    assert score(photos, table, bundle=toy_bundle, another_bundle=True).rows == ROWS - 1
    rows = [row for row in rows_in(table) if row["status"] == "ok"]
    assert {row["run"]: len(row["layer_scores"]) for row in rows} == {1: 2, 2: 1, 3: 2}


def test_engines_read_both(table: Path, toy_bundle: Bundle, other: Bundle) -> None:
    both = [(toy_bundle.bundle_id, len(LAYERS), ROWS - 1), (other.bundle_id, len(ONE), ROWS - 2)]
    with duckdb.connect() as engine:
        engine.register("birds", DeltaTable(table).to_pyarrow_dataset())
        question = "select bundle_id, len(layer_scores), count(*) from birds where status = 'ok' group by all"
        assert sorted(engine.sql(question).fetchall()) == sorted(both)
        question = f"select bundle_id, count(*) from (select * from birds {HOLDS}) group by all"
        assert engine.sql(question).fetchall() == [(other.bundle_id, ROWS - 1)]
    frame = polars.read_delta(str(table)).filter(polars.col("status") == "ok")
    counted = frame.group_by("bundle_id", polars.col("layer_scores").list.len().alias("layers")).len()
    assert sorted(counted.rows()) == sorted(both)


def test_drift_and_flags_take_the_rows_that_hold(table: Path, toy_bundle: Bundle, other: Bundle) -> None:
    assert len(read_set(str(table), other).scores) == ROWS - 2
    with pytest.raises(ScoringError, match="was scored with bundle"):
        read_set(str(table), toy_bundle)
    for command in (["flags", str(table), "--fdr", "0.5"], ["drift", str(table), "--bundle", str(other.path)]):
        run = subprocess.run(
            [sys.executable, "-m", "fieldmark", *command, "--json"], capture_output=True, text=True, check=False
        )
        assert run.returncode in (0, 4), run.stderr
        assert str(ROWS - 2) in json.dumps(json.loads(run.stdout)), "the rows of the first bundle are not counted"


def test_both_can_be_reviewed_one_after_the_other(
    score: Score, table: Path, photos: Path, toy_bundle: Bundle, other: Bundle
) -> None:
    items = list(open_source(str(table), other).news())
    assert len(items) == ROWS - 2
    assert {(item.bundle_id, len(item.layers)) for item in items} == {(other.bundle_id, len(ONE))}
    with pytest.raises(ReviewError, match="was scored with bundle"):
        open_source(str(table), toy_bundle)
    score(photos, table, another_bundle=True)
    (lengths,) = {len(item.layers) for item in open_source(str(table), toy_bundle).news()}
    assert lengths == len(LAYERS)


def test_what_could_not_be_read_with_the_second_has_no_score_of_the_first(
    score: Score, photos: Path, other: Bundle, tmp_path: Path
) -> None:
    score(photos, tmp_path / "table")
    (photos / "a" / "00.png").write_bytes(b"no image any more")
    score(photos, tmp_path / "table", bundle=other, another_bundle=True)
    current = Current.read(str(tmp_path / "table"))
    assert (len(current.ids), current.errors, {*current.runs.tolist()}) == (ROWS - 2, 2, {2})
    found: list[Any] = [
        row for _, rows in current.batches(["layer_scores"]) for row in rows["layer_scores"].to_pylist()
    ]
    assert {len(row) for row in found} == {len(ONE)}
