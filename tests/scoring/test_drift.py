"""Drift: every statistic against an independent twin, the guarantees by simulation, the verb on real scored sets."""

import json
import math
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

import fieldmark
from bundle import Bundle, write_bundle
from bundle.errors import BundleCorrupt, FieldmarkError
from bundle.false_alarms import flagging_ranks
from bundle.manifest import MANIFEST
from scoring.drift.cli import DRIFTED, _ranked, power
from scoring.drift.comparison import (
    ClassDrift,
    clean_share,
    earlier_greater,
    holm,
    kolmogorov_smirnov,
    measure,
    online_p_values,
    simple_jumper,
)
from scoring.drift.figure import _histogram, _share
from scoring.drift.scored import Calibration, ScoredSet, read_calibration, read_set
from scoring.local.score import ScoreOptions, score_source
from scoring.local.shards import read_scores
from serving.client.local import LocalInference
from tests.conftest import LABELS, draw_toy

COMMON = settings(deadline=None, derandomize=True, max_examples=60)
few_values = st.lists(st.integers(0, 6), min_size=1, max_size=40)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def as_set(scores: np.ndarray, *, classes: np.ndarray | None = None, flags: np.ndarray | None = None) -> ScoredSet:
    rows = len(scores)
    return ScoredSet(
        scores=scores,
        flags=np.zeros(rows, bool) if flags is None else flags,
        classes=np.zeros(rows, np.int64) if classes is None else classes,
        positions=np.arange(rows),
        paths=[f"{row}.png" for row in range(rows)],
        labels=LABELS,
        network="full",
        alpha=0.05,
        total=rows,
    )


# the statistics, each beside a twin


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # scipy's, about its p-value
@COMMON
@given(scores=few_values, calibration=few_values)
def test_the_distance_is_scipys_ties_and_all(scores: list[int], calibration: list[int]) -> None:
    found = kolmogorov_smirnov(np.array(scores), np.sort(calibration))
    twin = scipy.stats.ks_2samp(scores, calibration, method="exact")
    assert found.distance == pytest.approx(twin.statistic)


@pytest.mark.parametrize(
    ("m", "n", "shift"), [(30, 99, 0.7), (1000, 99, 0.3), (40_000, 300, -0.1), (2000, 2000, 0.05), (8, 200, 1.5)]
)
def test_the_p_value_is_close_to_the_exact_one(m: int, n: int, shift: float) -> None:
    calibration = np.sort(rng().normal(size=n))
    scores = rng(1).normal(size=m) + shift
    found = kolmogorov_smirnov(scores, calibration)
    exact = scipy.stats.ks_2samp(scores, calibration, method="exact" if n * m < 1e6 else "asymp").pvalue
    assert 0.6 * exact < found.p_value < 2 * exact
    assert found.higher == (shift > 0)
    assert (found.distance >= found.critical) == (found.p_value <= 0.001)


def test_the_calibrations_own_error_is_no_drift() -> None:
    """What the exact uniform distribution would reject nearly always, since all rows lean on the same n scores."""
    naive = ours = 0
    for seed in range(60):
        calibration = np.sort(rng(seed).uniform(size=99))
        scores = rng(1000 + seed).uniform(size=10_000)
        ranks = len(calibration) - np.searchsorted(calibration, scores)
        naive += scipy.stats.kstest((ranks + rng(seed).uniform(size=len(ranks))) / 100, "uniform").pvalue < 0.05
        ours += kolmogorov_smirnov(scores, calibration).p_value < 0.05
    assert naive > 54
    assert ours <= scipy.stats.binom.isf(1e-4, 60, 0.05)


@COMMON
@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_stepping_down_rejects(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for level in (0.001, 0.05, 0.5, *corrected):
        rejected = set()
        for step, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if p_values[index] * (len(p_values) - step) > level:
                break
            rejected.add(index)
        assert {index for index, value in enumerate(corrected) if value <= level} == rejected or level >= 1


@COMMON
@given(rows=st.integers(1, 3000), n=st.integers(1, 400), data=st.data())
def test_the_share_of_clean_sets_is_beta_binomial(rows: int, n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    twin = scipy.stats.betabinom(rows, k, n + 1 - k)
    for share, level in zip(clean_share([(rows, n, k)]), (0.025, 0.975), strict=True):
        count = round(share * rows)
        assert twin.cdf(count) >= level - 1e-9
        assert count == 0 or twin.cdf(count - 1) <= level + 1e-9
    assert clean_share([(rows, n, 0)]) == (0.0, 0.0)
    assert clean_share([(rows, n, n + 1)]) == (1.0, 1.0)


def test_the_share_of_several_parts_is_the_sum_of_theirs() -> None:
    parts = [(300, 25, 1), (40, 199, 10), (9, 0, 0), (11, 3, 4), (120, 60, 3)]
    total = np.ones(1)
    for m, n, k in parts:
        sure = np.eye(m + 1)[m * (k > n)]
        own = scipy.stats.betabinom.pmf(np.arange(m + 1), m, k, n + 1 - k) if 0 < k <= n else sure
        total = np.convolve(total, own)
    below = np.cumsum(total)
    for share, level in zip(clean_share(parts), (0.025, 0.975), strict=True):
        count = round(480 * share)
        assert below[count] >= level - 0.005
        assert below[count - 1] <= level + 0.005
    assert clean_share(parts) == clean_share(parts)


UNEVEN = ((0, 1, 22, 25, 60, 130), (5, 3, 1200, 60, 500, 40))  # calibration scores and rows of each class


@pytest.mark.parametrize(("scores", "rows"), [((25,) * 10, (200,) * 10), UNEVEN])
def test_the_range_of_a_bundle_calibrated_by_class_holds_95_percent(
    scores: tuple[int, ...], rows: tuple[int, ...]
) -> None:
    """Of clean sets, whose calibration is drawn anew each time; among all scores alike it would be another share."""
    classes, predicted = np.repeat(np.arange(len(scores)), scores), np.repeat(np.arange(len(rows)), rows)
    calibration = Calibration(scores=np.arange(sum(scores), dtype=np.float32), classes=rng().permutation(classes))
    found = replace(as_set(np.zeros(sum(rows)), classes=predicted), labels=[str(label) for label in range(len(rows))])
    low, high = measure(found, calibration).clean_share
    runs, draws = 3000, rng(1)
    flagged = np.zeros(runs)
    for n, m in zip(scores, rows, strict=True):
        for run in range(runs):
            at_least = n - np.searchsorted(np.sort(draws.random(n)), draws.random(m))
            flagged[run] += ((1 + at_least) / (n + 1) <= found.alpha).sum()
    held = int(((flagged >= low * sum(rows)) & (flagged <= high * sum(rows))).sum())
    assert scipy.stats.binom.ppf(1e-4, runs, 0.95) <= held <= scipy.stats.binom.isf(1e-4, runs, 0.962)


def test_the_pictures_bands_are_of_p_values_by_class() -> None:
    """Class 1 is far higher than class 0, and most of the set: among all scores alike its p-values would be small."""
    draws = rng(3)
    scores = np.concatenate([draws.normal(size=150), draws.normal(size=30) + 20])
    order = np.argsort(scores)
    calibration = Calibration(scores=scores[order].astype(np.float32), classes=np.repeat([0, 1], (150, 30))[order])
    classes = draws.permutation(np.repeat([0, 1], (40, 760)))
    found = as_set((draws.normal(size=800) + 20 * classes).astype(np.float32), classes=classes)
    axes = Figure().subplot_mosaic([["histogram", "share"]])
    _histogram(axes["histogram"], found, calibration)
    bands, bars = axes["histogram"].containers
    assert len(bars) == 20
    inside = [
        band.get_y() <= bar.get_height() <= band.get_y() + band.get_height()
        for band, bar in zip(bands, bars, strict=True)
    ]
    assert sum(inside) >= 17
    _share(axes["share"], found, calibration)
    highs, _, lows = axes["share"].patches[0].get_data()
    own = [clean_share([(20 - ones, 150, 7), (ones, 30, 1)]) for ones in classes.reshape(40, 20).sum(1).tolist()]
    assert np.abs(np.stack([lows, highs], 1) - 100 * np.array(own)).max() <= 5.1, "one row of 20, of fewer draws"


@COMMON
@given(ranks=st.integers(1, 70).flatmap(lambda size: st.permutations(range(size))))
def test_earlier_greater_counts_what_it_says(ranks: list[int]) -> None:
    naive = [sum(earlier > rank for earlier in ranks[:place]) for place, rank in enumerate(ranks)]
    assert earlier_greater(np.array(ranks)).tolist() == naive


@COMMON
@given(calibration=few_values, scores=few_values, seed=st.integers(0, 5))
def test_online_p_values_are_those_of_the_definition(calibration: list[int], scores: list[int], seed: int) -> None:
    draws = rng(seed)
    ties = draws.random(len(calibration) + len(scores)).tolist()
    smoothing = draws.random(len(scores)).tolist()
    everything = list(zip([*calibration, *scores], ties, strict=True))
    naive = []
    for place, extra in enumerate(smoothing, start=len(calibration)):
        greater = sum(earlier > everything[place] for earlier in everything[:place])
        naive.append((greater + extra) / (place + 1))
    assert online_p_values(np.array(calibration), np.array(scores), rng(seed)) == pytest.approx(naive)


@COMMON
@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_jumper_is_five_players_who_share_and_begin_at_every_row(p_values: list[float]) -> None:
    rows = len(p_values)
    capital = [1 / (row + 2) for row in range(rows)]  # what rests after each row
    for start in range(rows):
        players = [1 / ((start + 1) * (start + 2)) / 5] * 5
        for row in range(start, rows):
            if row > start:
                players = [0.99 * one + 0.01 * sum(players) / 5 for one in players]
            bets = [1 + e * (p_values[row] - 0.5) for e in (-1, -0.5, 0, 0.5, 1)]
            players = [one * bet for one, bet in zip(players, bets, strict=True)]
            capital[row] += sum(players)
    assert np.cumprod(simple_jumper(np.array(p_values))) == pytest.approx(capital)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_a_million_rows_of_attack_overflow_nothing(p: float) -> None:
    total = float(np.log10(simple_jumper(np.full(1_000_000, p))).sum())
    growth = math.log10(1.5 * 0.992)  # a hundredth is shared, a fifth of it comes back
    assert growth < total / 1e6 < math.log10(1.5)
    assert power(total) == f"10^{total:.1f}"


# what the martingale promises


def test_without_drift_twenty_is_reached_in_at_most_one_run_of_twenty() -> None:
    """Scores with many ties, as a saturated detector gives; the p-values are uniform and independent of their row."""
    runs, reached, first, last = 400, 0, [], []
    for seed in range(runs):
        draws = rng(seed)
        everything = draws.normal(size=260).round(1)
        p_values = online_p_values(np.sort(everything[:60]), everything[60:], draws)
        reached += np.log10(simple_jumper(p_values)).cumsum().max() >= math.log10(20)
        first.append(p_values[0])
        last.append(p_values[-1])
    assert reached <= scipy.stats.binom.isf(1e-4, runs, 0.05)
    assert scipy.stats.kstest(first + last, "uniform").pvalue > 0.001
    assert abs(scipy.stats.pearsonr(first, last).statistic) < 0.2


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_a_shift_to_either_side_is_drift(shift: float) -> None:
    calibration = Calibration(scores=np.sort(rng().normal(size=200)).astype(np.float32))
    scores = rng(1).normal(size=600).astype(np.float32)
    assert measure(as_set(scores), calibration).reasons == ()
    moved = measure(as_set(scores + np.float32(shift) * (np.arange(600) >= 300)), calibration)
    at = moved.martingale.crossed(100)
    assert at is not None
    assert 300 < at < 400
    assert moved.martingale.highest > 2
    assert len(moved.reasons) == 2
    assert moved.ks.higher == (shift > 0)


def test_a_short_attack_after_a_long_quiet_time_is_seen() -> None:
    calibration = Calibration(scores=np.sort(rng().normal(size=500)).astype(np.float32))
    scores = rng(1).normal(size=150_000).astype(np.float32)
    quiet = measure(as_set(scores), calibration)
    assert quiet.reasons == ()
    assert quiet.martingale.path.min() >= -math.log10(150_001)
    scores[140_000:140_150] += 4
    at = measure(as_set(scores), calibration).martingale.crossed(100)
    assert at is not None
    assert 140_000 < at < 140_100


def test_an_order_that_means_something_is_told_from_a_composition_that_does() -> None:
    """The same scores as the calibration's, but sorted: nothing is wrong with what the set holds."""
    calibration = Calibration(scores=np.sort(rng().normal(size=300)).astype(np.float32))
    found = as_set(np.sort(rng(1).normal(size=600)).astype(np.float32))
    assert measure(found, calibration).reasons == ("the rows are not exchangeable with the calibration's",)
    shuffled = measure(found, calibration, shuffle=True)
    assert shuffled.reasons == ()
    assert sorted(shuffled.martingale.order) == list(range(600))
    assert measure(found, calibration, shuffle=True, seed=1).martingale.highest != shuffled.martingale.highest


def test_classes_are_tested_only_against_scores_of_their_own() -> None:
    """Class 1 is always higher than class 0; in the second set class 2 has moved. Class 3 was never calibrated."""
    draws = rng()
    classes = np.repeat([0, 1, 2], 200)
    scores = draws.normal(size=600) + 2.0 * (classes == 1)
    order = np.argsort(scores)
    without = Calibration(scores=scores[order].astype(np.float32))
    with_classes = Calibration(scores=without.scores, classes=classes[order])
    rows = np.append(draws.permutation(np.repeat([0, 1, 2], 80)), 3)
    clean = as_set(draws.normal(size=241) + 2.0 * (rows == 1), classes=rows)
    moved = as_set(clean.scores + 1.5 * (rows == 2), classes=rows)

    described = measure(clean, without)
    assert described.reasons == ()
    assert all(each.p_value is None and each.calibration_n == 600 for each in described.classes)
    assert described.classes[1].distance == kolmogorov_smirnov(clean.scores[rows == 1], without.scores).distance > 0.4
    assert measure(clean, with_classes).reasons == ()
    tested = measure(moved, with_classes)
    assert tested.reasons[-1] == f"predicted classes changed: {LABELS[2]}"
    own = [
        kolmogorov_smirnov(moved.scores[rows == index], np.sort(scores[classes == index])).p_value for index in range(3)
    ]
    assert [each.p_value for each in tested.classes] == [*holm(own), None]
    assert [each.calibration_n for each in tested.classes] == [200, 200, 200, 0]
    assert tested.classes[3].distance is None


# real sets, scored with the real graph


@pytest.fixture(scope="module")
def sets(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of scores: `clean`; `noise`, of which the second half is noise. One file of each is no image."""
    root, draws = tmp_path_factory.mktemp("sets"), rng(7)
    for name in ("clean", "noise"):
        (root / f"{name}-images").mkdir()
        for index in range(80):
            image = draw_toy(int(draws.integers(len(LABELS))), 3000 + index)
            if name == "noise" and index >= 40:
                image = draws.integers(0, 256, image.shape, dtype=np.uint8)
            Image.fromarray(image).save(root / f"{name}-images" / f"{index:02}.png")
        (root / f"{name}-images" / "05.png").write_bytes(b"no image")
        options = ScoreOptions(shard_rows=16, workers=1)
        score_source(root / f"{name}-images", LocalInference(toy_bundle, threads=1), root / name, options)
    return root


def run(*words: object) -> int:
    """The verb's exit code."""
    try:
        fieldmark.main(["drift", *map(str, words)])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def facts(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert run(*words, "--json") == 0
    return dict(json.loads(capsys.readouterr().out))


def test_the_calibration_explains_every_p_value_and_flag(sets: Path, toy_bundle: Bundle) -> None:
    found, calibration = read_set(str(sets / "noise"), toy_bundle), read_calibration(toy_bundle, "full")
    rows = [row for row in read_scores(sets / "noise").to_pylist() if row["status"] == "ok"]
    at_least = len(calibration.scores) - np.searchsorted(calibration.scores, found.scores)
    assert ((1 + at_least) / 100).astype(np.float32).tolist() == [row["p_value"] for row in rows]
    assert found.flags.tolist() == [row["is_adversarial"] for row in rows]
    assert found.flags.sum() == (1 + at_least <= flagging_ranks(99, found.alpha)).sum()
    assert [found.labels[index] for index in found.classes] == [row["label"] for row in rows]
    assert found.paths.to_pylist() == [row["path"] for row in rows]
    assert (found.total, found.positions.tolist()) == (80, [*range(5), *range(6, 80)])


def test_clean_images_are_no_drift(sets: Path, toy_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(sets / "clean", "--bundle", toy_bundle.path, "--check") == 0
    out = capsys.readouterr().out
    assert out.startswith("no drift found in ")
    assert "79 against 99 calibration scores, 1 that could not be decoded left out" in out
    note = next(line for line in out.splitlines() if line.startswith("Classes are described, not tested"))
    assert note.endswith("may differ from the whole without drift.")
    assert [line for line in out.splitlines() if line.endswith(" ")] == []
    found = facts(capsys, sets / "clean", "--bundle", toy_bundle.path)
    assert (found["drift"], found["reasons"], found["rows"], found["errors"]) == (False, [], 79, 1)
    assert found["martingale"]["crossed"] == {"20": None, "100": None}
    assert sum(each["rows"] for each in found["classes"]) == 79


def test_noise_is_drift(sets: Path, toy_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    words = (sets / "noise", "--bundle", toy_bundle.path)
    assert run(*words, "--check") == DRIFTED
    out = capsys.readouterr().out
    assert out.startswith("drift in ")
    assert "the scores are not distributed as the calibration's" in out
    assert run(*words) == 0
    capsys.readouterr()
    found = facts(capsys, *words)
    assert found["drift"]
    assert found["kolmogorov_smirnov"]["p_value"] < 1e-6
    assert found["kolmogorov_smirnov"]["higher"]
    assert found["flagged"] >= 40
    crossing = found["martingale"]["crossed"]["100"]
    assert 40 < crossing["row"] < 60
    assert crossing["after"] == crossing["row"], "one row before it could not be decoded"
    assert crossing["path"] == str(sets / "noise-images" / f"{crossing['row']:02}.png")
    assert f"row {crossing['row'] + 1}: {crossing['path']}" in out
    shuffled = facts(capsys, *words, "--shuffle", "--seed", "3")["martingale"]
    assert shuffled["shuffled"]
    if reached := shuffled["crossed"]["20"]:
        assert reached["path"].endswith(f"{reached['row']:02}.png")


def test_drifts_exit_code_is_no_errors() -> None:
    errors, codes = [FieldmarkError], {0, 1, 2}  # 2: the command line's
    while errors:
        error = errors.pop()
        errors += error.__subclasses__()
        codes.add(error.exit_code)
    assert DRIFTED not in codes


@pytest.mark.parametrize(
    ("score", "drift", "subject"),
    [
        (0, 0, None),
        (4, 0, None),
        (0, DRIFTED, "drift on "),
        (4, DRIFTED, "drift on "),
        (0, 1, "error 1 on "),
        (0, 3, "error 3 on "),
        (1, 0, "error 1 on "),
    ],
)
def test_the_cron_script_mails_whatever_is_not_clean(
    score: int, drift: int, subject: str | None, tmp_path: Path
) -> None:
    """The script of docs/drift.md, with a fieldmark that says on stderr with what it exits, and a mail that writes."""
    guide = (Path(fieldmark.__file__).parent / "docs" / "drift.md").read_text()
    script = guide[guide.index("#!/bin/sh") :].partition("```")[0].replace("/srv/birds", str(tmp_path))
    stubs = {
        "fieldmark": f'case $1 in score) c={score};; *) c={drift};; esac; echo "$1 says $c" >&2; exit $c',
        "mail": f'{{ echo "$2"; cat; }} >{tmp_path}/mailed',
    }
    for name, line in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(["sh", "-c", script], env={"PATH": path}, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    mailed = (tmp_path / "mailed").read_text() if (tmp_path / "mailed").exists() else None
    if subject is None:
        assert mailed is None
    else:
        assert mailed is not None
        assert mailed.startswith(f"fieldmark: {subject}")
        assert (f"drift says {drift}" if score in (0, 4) else f"score says {score}") in mailed


def test_the_picture(sets: Path, toy_bundle: Bundle, tmp_path: Path) -> None:
    assert run(sets / "noise", "--bundle", toy_bundle.path, "--plot", tmp_path / "drift.png") == 0
    with Image.open(tmp_path / "drift.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (1430, 728))
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or ()}
    assert {(0x5B, 0x7F, 0xA6), (0xD8, 0xE6, 0xD9)} <= colours, "the martingale's path and the bands"
    assert [path.name for path in tmp_path.iterdir()] == ["drift.png"]


def test_the_most_drifted_class_comes_first() -> None:
    """Its p-value is too small for a number and is 0.0; one that is not tested has none."""
    found = [
        ClassDrift(label=label, rows=9, flagged=1, interval=(0, 1), calibration_n=9, distance=None, p_value=p_value)
        for label, p_value in (("untested", None), ("clean", 0.9), ("drifted", 1e-9), ("most", 0.0))
    ]
    assert [each.label for each in _ranked(found)] == ["most", "drifted", "clean", "untested"]


def test_a_bundle_with_calibrated_classes(
    sets: Path, toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The classes of the toy's calibration images are their predicted ones."""
    random = rng().integers(0, len(LABELS), 99)
    bundle = with_classes(toy_bundle, tmp_path / "calibrated", random)
    score_source(sets / "noise-images", LocalInference(bundle, threads=1), tmp_path / "scores", ScoreOptions(workers=1))
    found = facts(capsys, tmp_path / "scores", "--bundle", bundle.path)
    assert found["classes_are_calibrated"]
    assert {each["label"]: each["calibration_n"] for each in found["classes"]} == {
        label: int((random == index).sum())
        for index, label in enumerate(LABELS)
        if label in {each["label"] for each in found["classes"]}
    }
    assert found["reasons"][-1].startswith("predicted classes changed: ")
    assert run(tmp_path / "scores", "--bundle", bundle.path) == 0
    out = capsys.readouterr().out
    assert "p (Holm)" in out
    assert "against its own calibration scores" in out


def with_classes(bundle: Bundle, path: Path, classes: Any) -> Bundle:
    """The same bundle, with `calibration_classes` in the full network's detector."""
    staged = Path(shutil.copytree(bundle.path, path.with_name("staged")))
    (staged / MANIFEST).unlink()
    file = staged / bundle.manifest.networks["full"].detector.file
    with np.load(file) as arrays:
        kept = dict(arrays)
    np.savez(file, **{**kept, "calibration_classes": np.asarray(classes)})
    names = ("schema", "name", "labels", "image", "networks", "prototypes", "training")
    written = write_bundle(path, staged, {name: getattr(bundle.manifest, name) for name in names})
    shutil.rmtree(staged)
    return written


@pytest.mark.parametrize("classes", [[0] * 98, [-1] + [0] * 98, [5] + [0] * 98, [0.0] * 99, [[0]] * 99])
def test_classes_that_are_none_are_refused(toy_bundle: Bundle, tmp_path: Path, classes: Any) -> None:
    bundle = with_classes(toy_bundle, tmp_path / "bundle", classes)
    with pytest.raises(BundleCorrupt, match="calibration_classes are not a label's position"):
        read_calibration(bundle, "full")
    assert read_calibration(bundle, "attention").classes is None
