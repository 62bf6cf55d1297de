"""Sources of a table that are damaged, doubled or empty: one sentence each, and nothing is written."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bundle import Bundle

pytestmark = pytest.mark.hostile
CLI = [sys.executable, "-m", "fieldmark", "score"]
WITHOUT_CLIENTS = """
import runpy, sys
sys.modules |= {"gcsfs": None, "adlfs": None}
runpy.run_module("fieldmark", run_name="__main__")
"""


def table_of(ids: list[int | None], paths: list[str | None]) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.int64()), "path": pa.array(paths, pa.string())})


CATALOGUES: dict[str, tuple[bytes | pa.Table, str]] = {
    "no-ids.csv": (b"path\na.png\n", "has no column 'id'"),
    "no-paths.csv": (b"id,file\n1,a.png\n", "has no column 'path'"),
    "ids-of-words.csv": (b"id,path\none,a.png\n", "is not a readable catalogue"),
    "doubled-ids.csv": (b"id,path\n1,a.png\n1,b.png\n", "has the id 1 more than once"),
    "doubled-paths.csv": (b"id,path\n1,a.png\n2,a.png\n", "names a.png twice"),
    "empty.csv": (b"", "is not a readable catalogue"),
    "header-only.csv": (b"id,path\n", "holds no images"),
    "binary.csv": (bytes(range(256)) * 40, "is not a readable catalogue"),
    "no-parquet.parquet": (b"PAR1 and nothing else", "is not a readable catalogue"),
    "half.parquet": (b"", "is not a readable catalogue"),
    "no-ids.parquet": (pa.table({"path": ["a.png"]}), "has no column 'id'"),
    "null-ids.parquet": (table_of([1, None], ["a.png", "b.png"]), "has a row without id"),
    "null-paths.parquet": (table_of([1, 2], ["a.png", None]), "has a row without path"),
    "doubled-ids.parquet": (table_of([4, 4], ["a.png", "b.png"]), "has the id 4 more than once"),
    "ids-of-words.parquet": (pa.table({"id": ["x"], "path": ["a.png"]}), "is not a readable catalogue"),
}


def refused(arguments: list[str], cwd: Path, command: list[str] = CLI) -> str:
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode in (1, 2, 3), done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (cwd / "table").exists()
    return done.stderr


@pytest.mark.parametrize("name", CATALOGUES)
def test_a_catalogue(name: str, toy_bundle: Bundle, tmp_path: Path) -> None:
    content, sentence = CATALOGUES[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        pq.write_table(content, tmp_path / name)
    said = refused([name, "--bundle", str(toy_bundle.path), "--table", "table"], tmp_path)
    assert sentence in said
    assert name in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["."], "give either --out DIR or --table TABLE"),
        ([".", "--out", "out", "--table", "table"], "give either --out DIR or --table TABLE"),
        ([".", "--out", "out", "--cluster", "local"], "--cluster needs --table"),
        ([".", "--table", "table", "--restart"], "--restart is for --out"),
        ([".", "--out", "out", "--another-bundle"], "--another-bundle is for --table"),
        ([".", "--table", "table", "--cluster", "local", "--url", "x:1"], "--cluster and --url exclude each other"),
        ([".", "--table", "table", "--threads", "0"], "--threads 0 is not at least 1"),
        ([".", "--table", "table", "--shard-rows", "0"], "--shard-rows 0 is not between 1 and 1,000,000"),
        (["nothing", "--table", "table"], "there is no folder or list file at nothing"),
        ([".", "--table", "table"], "holds no images"),
        ([".", "--table", "hdfs://lake/table"], "hdfs:// is no place that is known here"),
        ([".", "--table", "table", "--network", "other"], "the bundle carries no network 'other'"),
        ([".", "--table", "table", "--alpha", "0.001"], "--alpha 0.001 is below 0.01"),
    ],
)
def test_options_and_sources(arguments: list[str], sentence: str, toy_bundle: Bundle, tmp_path: Path) -> None:
    assert sentence in refused([*arguments, "--bundle", str(toy_bundle.path)], tmp_path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([".", "--table", "gs://lake/table"], "gs:// needs the 'gs' extra"),
        ([".", "--table", "GCS://lake/table"], "gs:// needs the 'gs' extra"),
        (["az://archive/photos", "--table", "table"], "az:// needs the 'az' extra"),
        (["abfs://archive/all.csv", "--table", "table"], "az:// needs the 'az' extra"),
    ],
)
def test_stores_without_their_clients(arguments: list[str], sentence: str, toy_bundle: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_CLIENTS, "score"]
    assert sentence in refused([*arguments, "--bundle", str(toy_bundle.path)], tmp_path, command)
