"""A false discovery rate over conformal p-values: against the definition, by what it promises, and what it prints."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle import Bundle
from bundle.errors import OptionError, ScoringError
from scoring.campaigns import gather
from scoring.drift.scored import read_set
from scoring.flags import BH, BY, METHODS, Flagged, Method, control
from scoring.table.current import Current
from tests.scoring.conftest import Score, save

COMMON = settings(deadline=None, derandomize=True, max_examples=80)
CLI = [sys.executable, "-m", "fieldmark"]


def naive(p_values: list[float], fdr: float, method: Method) -> list[bool]:
    """The step-up rule as it is written: the largest k with p_(k) <= k q / (m c)."""
    m = len(p_values)
    factor = 1 if method == BH else sum(1 / k for k in range(1, m + 1))
    ranked = sorted(p_values)
    passing = [k for k in range(1, m + 1) if ranked[k - 1] <= k * fdr / (m * factor) * (1 + 1e-6)]
    bar = ranked[passing[-1] - 1] if passing else -1.0
    return [p <= bar for p in p_values]


@COMMON
@given(
    counts=st.lists(st.integers(1, 20), min_size=1, max_size=60),
    fdr=st.sampled_from([0.05, 0.1, 0.3, 0.7]),
    method=st.sampled_from(list(METHODS)),
)
def test_it_is_the_step_up_rule(counts: list[int], fdr: float, method: Method) -> None:
    p_values = np.array(counts, np.float32) / np.float32(20)
    assert control(p_values, 19, fdr=fdr, method=method).flagged.tolist() == naive(p_values.tolist(), fdr, method)


def draw(random: np.random.Generator, n: int, clean: int, tampered: int) -> np.ndarray:
    """p-values of clean rows and, behind them, of tampered ones whose scores lie far above."""
    calibration = np.sort(random.normal(size=n))
    scores = np.concatenate([random.normal(size=clean), random.normal(6, 1, tampered)])
    return ((1 + n - np.searchsorted(calibration, scores, "left")) / (n + 1)).astype(np.float32)


@pytest.mark.parametrize("method", [BH, BY])
def test_the_false_share_is_what_was_asked_for(method: Method) -> None:
    """Mean over calibrations, as the promise is. With alpha alone two thirds of the flagged ones are false here."""
    random, shares, found = np.random.default_rng(3), [], 0
    for _ in range(200):
        flagged = control(draw(random, 500, 900, 100), 500, fdr=0.2, method=method).flagged
        shares.append(flagged[:900].sum() / max(1, flagged.sum()))
        found += int(flagged[900:].sum())
    assert np.mean(shares) <= 0.2 + 3 * np.std(shares) / np.sqrt(200)
    assert found > 0.9 * 200 * 100 if method == BH else found > 0.5 * 200 * 100


def flagged_of(p_values: list[float], n: int, fdr: float = 0.1) -> Flagged:
    return control(np.array(p_values, np.float32), n, fdr=fdr)


def test_too_few_calibration_images_are_told_and_what_would_do() -> None:
    """100 tampered among 10,000, n = 99: at least 1,000 rows would have to have p = 0.01."""
    few = flagged_of([0.01] * 150 + [0.5] * 9850, 99)
    assert (few.count, few.smallest, few.with_smallest, few.needed) == (0, 0.01, 150, 1000)
    assert few.n_needed == 666  # 10,000 / (150 * 0.1) - 1, upwards
    enough = flagged_of([1 / (few.n_needed + 1)] * 150 + [0.5] * 9850, few.n_needed)
    assert enough.count == 150
    short = flagged_of([1 / few.n_needed] * 150 + [0.5] * 9850, few.n_needed - 1)
    assert short.count == 0
    assert flagged_of([0.5] * 10, 99).n_needed is None


@pytest.mark.parametrize("fdr", [0.0, 1.0, -1.0, float("nan")])
def test_a_rate_that_is_none(fdr: float) -> None:
    with pytest.raises(OptionError, match="is not between 0 and 1"):
        flagged_of([0.5], 9, fdr)


@pytest.fixture
def campaign(score: Score, photos: Path, tmp_path: Path) -> Path:
    """A table with a folder of noise among clean folders, one object of which changed and one went, two nights long."""
    random = np.random.default_rng(5)
    for index in range(6):
        save(photos / "attack" / f"{index}.png", random.integers(0, 256, (32, 32, 3)).astype(np.uint8))
    score(photos, tmp_path / "table")
    (photos / "attack" / "5.png").unlink()
    save(photos / "a" / "00.png", random.integers(0, 256, (32, 32, 3)).astype(np.uint8))
    score(photos, tmp_path / "table")
    return tmp_path / "table"


def test_only_what_holds_is_counted(campaign: Path) -> None:
    current = Current.read(str(campaign))
    assert (len(current.ids), current.errors) == (26, 1)
    assert len(set(current.ids.tolist())) == 26
    found = gather(current, control(current.p_values, 99, fdr=0.1))
    assert sum(group.rows for group in found.groups["folder"]) == 26
    first = found.groups["folder"][0]
    assert (first.name.rpartition("/")[2], first.rows, first.flagged) == ("attack", 5, 5)
    assert {path.rpartition("/")[2] for path in found.listed["path"].to_pylist()} >= {"00.png", "noise.png", "0.png"}
    assert "5.png" not in "".join(path[-6:] for path in found.listed["path"].to_pylist())


def test_the_verb(campaign: Path, tmp_path: Path) -> None:
    command = [*CLI, "flags", str(campaign), "--json", "--out", str(tmp_path / "flagged.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    listed = pyarrow.csv.read_csv(tmp_path / "flagged.csv")
    assert told["flagged"] == listed.num_rows == 8, "six of noise, the changed one, and a clean one"
    assert 0 < told["expected_false_share"] <= 0.1
    assert (told["calibration_n"], told["rows"], told["errors"]) == (99, 26, 1)
    assert listed["p_value"].to_pylist() == sorted(listed["p_value"].to_pylist())
    shown = subprocess.run([*CLI, "flags", str(campaign), "--dependent"], capture_output=True, text=True, check=True)
    assert "rows flagged by Benjamini-Yekutieli at 0.1" in shown.stdout
    assert "by folder" in shown.stdout
    assert [line for line in shown.stdout.splitlines() if line.endswith(" ")] == []


def test_drift_reads_the_table(
    campaign: Path, toy_bundle: Bundle, make_toy_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    found = read_set(str(campaign), toy_bundle)
    assert (len(found.scores), found.total, found.network) == (26, 27, "full")
    paths = found.paths.to_pylist()
    assert paths[:20] == sorted(paths[:20]), "in the order of the source"
    done = subprocess.run(
        [*CLI, "drift", str(campaign), "--bundle", str(toy_bundle.path), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["rows"] == 26
    with pytest.raises(ScoringError, match="was scored with bundle"):
        read_set(str(campaign), make_toy_bundle(tmp_path / "other", name="other"))


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "there is no table at"),
        (["s3:///"], "s3:/// names no bucket"),
        ([".", "--out", "list.txt"], "--out list.txt ends in neither .csv nor .parquet"),
        ([".", "--fdr", "2"], "--fdr 2 is not between 0 and 1"),
    ],
)
def test_bad_input(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    done = subprocess.run([*CLI, "flags", *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith(f"error: {sentence}")
    assert list(tmp_path.iterdir()) == []
