"""How many threads decode, and how many fetch: a worker of a cluster has its cores, and waits for stores with more."""

import threading
from pathlib import Path

import pytest

from bundle import Bundle
from bundle.image import Box, ImageSpec
from scoring.answers import Asking, Pixels
from scoring.sources import SourceFile
from scoring.table.chunks import FETCHING
from scoring.table.fetching import Reader
from scoring.table.job import TableOptions, score_into_table
from tests.scoring.conftest import InThisProcess


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were decoded at a time, whenever one was: each waits a moment for others."""
    now, seen, lock, call = 0, [], threading.Lock(), ImageSpec.decode
    alone = threading.Event()

    def counted(self: ImageSpec, data: bytes, box: Box | None = None) -> Pixels:
        nonlocal now
        with lock:
            now += 1
            seen.append(now)
        alone.wait(0.02)
        try:
            return call(self, data, box)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr(ImageSpec, "decode", counted)
    return seen


@pytest.mark.parametrize("threads", [1, 3])
def test_a_worker_decodes_with_its_own_cores(
    photos: Path, toy_bundle: Bundle, tmp_path: Path, decoding: list[int], threads: int
) -> None:
    options = TableOptions(asking=Asking(network="full", batch=4, workers=7), chunk_rows=30)
    score_into_table(str(photos), toy_bundle, str(tmp_path / "table"), options, InThisProcess(threads))
    assert max(decoding) == threads, "--workers says how many of them there are"


def test_objects_that_a_file_of_this_machine_names_are_waited_for_by_more(
    photos: Path, toy_bundle: Bundle, tmp_path: Path, decoding: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    together, data = threading.Barrier(FETCHING), (photos / "a" / "00.png").read_bytes()

    def fetched(self: Reader, file: SourceFile) -> bytes:
        together.wait(30)  # which ends only when as many wait
        return data

    monkeypatch.setattr(Reader, "_fetched", fetched)
    lines = [f"{number},s3://archive/{number}.png,{len(data)}\n" for number in range(FETCHING)]
    (tmp_path / "all.csv").write_text("id,path,size\n" + "".join(lines))
    options = TableOptions(asking=Asking(network="full", batch=4), chunk_rows=30)
    summary = score_into_table(
        str(tmp_path / "all.csv"), toy_bundle, str(tmp_path / "table"), options, InThisProcess(1)
    )
    assert (summary.rows, summary.errors) == (FETCHING, 0)
    assert max(decoding) == 1
