"""Sets that are unfinished, of others, damaged or empty, and wrong flags: one sentence each, and nothing written."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import fieldmark
from bundle import Bundle
from bundle.files import sha256_of
from scoring.drift.scored import read_set
from scoring.local.jobs import STATE
from scoring.local.score import ScoreOptions, score_source
from serving.client.local import LocalInference

pytestmark = pytest.mark.hostile

PART = "part-000001.parquet"


@pytest.fixture(scope="module")
def scored(toy_bundle: Bundle, toy_images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images in five shards. Read-only."""
    root = tmp_path_factory.mktemp("scored")
    (root / "images").mkdir()
    for index, image in enumerate(toy_images):
        Image.fromarray(image).save(root / "images" / f"{index:02}.png")
    options = ScoreOptions(shard_rows=4, workers=1)
    score_source(root / "images", LocalInference(toy_bundle, threads=1), root / "scores", options)
    return root / "scores"


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code and sentence of a call that must fail."""
    with pytest.raises(SystemExit) as ended:
        fieldmark.main(["drift", *map(str, words)])
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "bug in fieldmark" not in err
    return int(ended.value.code or 0), err


def drift(*words: object) -> None:
    """A call that must not fail."""
    with pytest.raises(SystemExit) as ended:
        fieldmark.main(["drift", *map(str, words)])
    assert not ended.value.code


def edit_state(scores: Path, edit: Callable[[dict], object]) -> None:
    state = json.loads((scores / STATE).read_text())
    edit(state)
    (scores / STATE).write_text(json.dumps(state))


def edit_part(scores: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    """Somebody changes a shard, and its checksum too."""
    pq.write_table(edit(pq.ParquetFile(scores / PART).read()), scores / PART)
    edit_state(scores, lambda state: state["shards"][1].update(sha256=sha256_of(scores / PART)))


def flip(part: Path) -> None:
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)


def without_answers(table: pa.Table) -> pa.Table:
    """Rows that say `ok` and have no score."""
    place = table.schema.get_field_index("instance_score")
    return table.set_column(place, table.schema.field(place), pa.nulls(table.num_rows, pa.float32()))


def of_another(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({**table.schema.metadata, b"fieldmark.bundle_id": b"f" * 64})


def unknown_label(table: pa.Table) -> pa.Table:
    place = table.schema.get_field_index("label")
    return table.set_column(place, table.schema.field(place), pa.array(["\x1b[31mCrow"] * table.num_rows))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no state": (lambda scores: (scores / STATE).unlink(), "holds no scores"),
    "state is no JSON": (lambda scores: (scores / STATE).write_text("{"), "is damaged"),
    "unfinished": (
        lambda scores: edit_state(scores, lambda state: state.update(complete=False)),
        "is not finished: 20 files in 5 shards are safe in",
    ),
    "unknown network": (
        lambda scores: edit_state(scores, lambda state: state["job"].update(network="other")),
        "names network 'other', which the bundle does not carry",
    ),
    "another bundle": (
        lambda scores: edit_state(scores, lambda state: state["job"].update(bundle_id="e" * 64)),
        "was scored with bundle eeeeeeeeeeee",
    ),
    "a shard of another bundle": (
        lambda scores: edit_part(scores, of_another),
        f"{PART} cannot be read (its fieldmark.bundle_id is not that of {STATE}",
    ),
    "a shard without metadata": (
        lambda scores: edit_part(scores, lambda table: table.replace_schema_metadata(None)),
        "it is of another job",
    ),
    "a missing shard": (lambda scores: (scores / PART).unlink(), f"{PART} cannot be read"),
    "a shard of zeros": (lambda scores: (scores / PART).write_bytes(bytes(5000)), f"{PART} cannot be read"),
    "a cut shard": (
        lambda scores: (scores / PART).write_bytes((scores / PART).read_bytes()[:-100]),
        f"{PART} cannot be read",
    ),
    "a flipped byte": (
        lambda scores: flip(scores / PART),
        f"{PART} cannot be read (its SHA-256 is not the one in {STATE}). Run the same command again",
    ),
    "too few rows": (
        lambda scores: edit_part(scores, lambda table: table.slice(1)),
        f"{PART} cannot be read (it holds 3 rows, and {STATE} says 4)",
    ),
    "no such column": (
        lambda scores: edit_part(scores, lambda table: table.drop_columns(["instance_score"])),
        f"{PART} cannot be read (it has no column 'instance_score')",
    ),
    "text for a score": (
        lambda scores: edit_part(
            scores, lambda table: table.drop_columns(["instance_score"]).append_column("instance_score", table["path"])
        ),
        f"{PART} cannot be read",
    ),
    "no answers": (lambda scores: edit_part(scores, without_answers), "a row is 'ok' and has no score"),
    "an unknown label": (lambda scores: edit_part(scores, unknown_label), r"the bundle has no label '\x1b[31mCrow'"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_set_that_is_not_whole(
    damage: str, scored: Path, toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = Path(shutil.copytree(scored, tmp_path / "scores"))
    spoil, sentence = DAMAGE[damage]
    spoil(scores)
    picture = tmp_path / "drift.png"
    code, error = refusal(capsys, scores, "--bundle", toy_bundle.path, "--json", "--check", "--plot", picture)
    assert code == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "\x1b" not in error
    assert sentence in error
    assert not picture.exists()


def test_a_set_of_nothing_but_errors(toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "bad.png").write_bytes(b"x")
    score_source(tmp_path / "images", LocalInference(toy_bundle, threads=1), tmp_path / "scores", ScoreOptions())
    code, error = refusal(capsys, tmp_path / "scores", "--bundle", toy_bundle.path)
    assert (code, "none of its 1 files could be decoded" in error) == (1, True)


def test_one_row_and_no_numbers_are_a_set(scored: Path, toy_bundle: Bundle, tmp_path: Path) -> None:
    """One row is too few to say anything; a score that is no number is the most suspicious of all."""
    source = tmp_path / "list.txt"
    source.write_text(f"{scored.parent}/images/00.png\n")
    score_source(source, LocalInference(toy_bundle, threads=1), tmp_path / "one", ScoreOptions())
    drift(tmp_path / "one", "--bundle", toy_bundle.path, "--check")
    scores = Path(shutil.copytree(scored, tmp_path / "scores"))

    def no_numbers(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("instance_score")
        return table.set_column(place, table.schema.field(place), pa.array([np.nan, np.inf] * 2, pa.float32()))

    edit_part(scores, no_numbers)
    assert np.isposinf(read_set(str(scores), toy_bundle).scores).sum() == 4
    drift(scores, "--bundle", toy_bundle.path, "--plot", tmp_path / "drift.png")
    assert (tmp_path / "drift.png").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--plot", "{tmp}/drift.pdf"), "does not end in .png, and the picture is a PNG"),
        (("--plot", "{tmp}/folder.png"), "folder.png is a folder"),
        (("--seed", "-1"), "invalid value for '--seed'"),
        (("--network", "full"), "no such option"),
        (("--bundle",), "requires an argument"),
    ],
)
def test_flags_that_are_wrong(
    flags: tuple[str, ...],
    sentence: str,
    scored: Path,
    toy_bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder.png").mkdir()
    words = [flag.format(tmp=tmp_path) for flag in flags]
    code, error = refusal(capsys, scored, "--bundle", toy_bundle.path, *words)
    assert code == 2
    assert sentence in " ".join(error.replace("│", " ").split())
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.parametrize(("library", "extra"), [("matplotlib", "figures"), ("pyarrow", "scoring")])
def test_a_missing_extra_is_named_before_the_work(
    library: str, extra: str, scored: Path, toy_bundle: Bundle, tmp_path: Path
) -> None:
    words = ["drift", str(scored), "--bundle", str(toy_bundle.path), "--plot", str(tmp_path / "drift.png")]
    script = f"import sys; sys.modules[{library!r}] = None; import fieldmark; fieldmark.main({words!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"pip install '.[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1
