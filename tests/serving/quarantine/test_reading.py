"""A reader believes nothing: every record that is none is a sentence, and the others come all the same."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from serving.quarantine.entry import MAX_RECORD_BYTES
from serving.quarantine.reader import entries
from tests.serving.quarantine.cases import CASE, NOON, case, picture
from tests.serving.quarantine.test_writing import held, keep

pytestmark = pytest.mark.hostile


@pytest.fixture
def quarantine(tmp_path: Path) -> Path:
    """Three entries of two days, each with its number as request id."""
    moments = (NOON, NOON + timedelta(seconds=1), NOON + timedelta(days=1))
    keep(
        tmp_path / "q", *((case(moment, request_id=str(place)), picture(place)) for place, moment in enumerate(moments))
    )
    return tmp_path / "q"


def test_oldest_first_or_newest_first(quarantine: Path) -> None:
    assert [found.entry.request_id for found in entries(str(quarantine)) if found.entry] == ["0", "1", "2"]
    newest = entries(f"file://{quarantine}", newest_first=True)
    assert [found.entry.request_id for found in newest if found.entry] == ["2", "1", "0"]


def test_it_is_read_as_it_is_asked_for(quarantine: Path) -> None:
    found = entries(str(quarantine))
    first = next(found).entry
    assert first
    second, third = held(quarantine)[1:]
    (quarantine / second.day / second.record).unlink()
    assert [each.entry for each in found] == [third], "what was removed meanwhile is passed over"


def test_what_is_known_is_not_read_again(quarantine: Path) -> None:
    places = [found.place for found in entries(str(quarantine))]
    for place in places[:2]:
        (quarantine / place).write_bytes(b"read, it would be a problem")
    assert [found.place for found in entries(str(quarantine), known=set(places[:2]))] == places[2:]


def test_what_is_half_written_or_half_removed_is_passed_over(quarantine: Path) -> None:
    first, *others = held(quarantine)
    (quarantine / first.day / first.record).unlink()
    (quarantine / first.day / f".{first.record}.1234567890123.tmp").write_bytes(b"{")
    assert [found.entry for found in entries(str(quarantine))] == others


def test_a_quarantine_that_is_not_there_yet_holds_nothing(tmp_path: Path) -> None:
    assert list(entries(str(tmp_path / "none"))) == []


HOSTILE: dict[str, Any] = {
    "outside": {"image": "../../../etc/passwd"},
    "another's image": {"image": f"120503.417-{32 * 'a'}.png"},
    "a record as image": {"image": None},
    "another schema": {"schema": 2},
    "true as a number": {"schema": True},
    "unknown key": {"command": "rm"},
    "no number": {"p_value": float("nan")},
    "beyond one": {"p_value": 1.5},
    "endless": {"score": 10**400},
    "a huge label": {"label": "x" * 2000},
    "an escape": {"label": "\x1b[2J"},
    "another day": {"received": "2025-11-27T12:05:03.417+00:00"},
    "no time": {"received": "yesterday"},
    "another zone": {"received": "2025-11-26T12:05:03.417+01:00"},
    "no zone": {"received": "2025-11-26T12:05:03.417"},
    "an id of dots": {"id": "../" * 10},
    "a reason of its own": {"reason": "because"},
    "not flagged": {"flagged": False},
    "negative": {"bytes": -1},
    "layers": {"layers": {"colour": 1}},
    "sha": {"sha256": "A" * 64},
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_a_record_that_lies_is_a_sentence(quarantine: Path, changes: dict[str, Any]) -> None:
    first, *others = held(quarantine)
    path = quarantine / first.day / first.record
    found = json.loads(path.read_text()) | changes
    if found["image"] is None:
        found["image"] = first.record
    path.write_text(json.dumps(found))
    problem, *rest = entries(str(quarantine))
    assert problem.entry is None
    assert problem.problem.startswith(f"{first.day}/{first.record} is no record (")
    assert problem.problem.isprintable()
    assert len(problem.problem) < 500
    assert [each.entry for each in rest] == others


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null", b"{}" + b" " * MAX_RECORD_BYTES, b'{"schema": 1e999}'],
)
def test_bytes_that_are_no_record_are_a_sentence(quarantine: Path, data: bytes) -> None:
    first, *others = held(quarantine)
    (quarantine / first.day / first.record).write_bytes(data)
    problem, *rest = entries(str(quarantine))
    assert problem.problem
    assert [each.entry for each in rest] == others


def test_names_that_are_not_ours(quarantine: Path) -> None:
    before = held(quarantine)
    day = quarantine / "2025-11-26"
    for name in ("evil\n\x1b[2J.json", "..json", "120503.417-short.json", os.fsdecode(b"\xff.json")):
        (day / name).write_text("{}")
    (day / "readme.txt").write_text("not looked at")
    (quarantine / "elsewhere").mkdir()
    (quarantine / "elsewhere" / before[0].record).write_text("not looked at")
    found = list(entries(str(quarantine)))
    assert [each.entry for each in found if each.entry] == before
    problems = [each.problem for each in found if not each.entry]
    assert len(problems) == 3  # a hidden file is none
    assert all(each.endswith("is not named as records are") and each.isprintable() for each in problems)


def test_links_pipes_and_folders_are_not_followed(quarantine: Path, tmp_path: Path) -> None:
    first, second, third = held(quarantine)
    for entry in (first, second, third):
        (quarantine / entry.day / entry.record).rename(tmp_path / entry.record)
    (quarantine / first.day / first.record).symlink_to(tmp_path / first.record)
    os.mkfifo(quarantine / second.day / second.record)
    (quarantine / third.day / third.record).mkdir()
    (quarantine / "2025-11-28").symlink_to(quarantine / "2025-11-26")
    assert list(entries(str(quarantine))) == []


def test_an_image_that_is_a_link_is_none(quarantine: Path, tmp_path: Path) -> None:
    first = held(quarantine)[0]
    path = quarantine / first.day / first.image
    path.rename(tmp_path / first.image)
    path.symlink_to(tmp_path / first.image)
    assert next(entries(str(quarantine))).problem == f"{first.day}/{first.record} has lost its image"


def test_the_reader_loads_no_grpc() -> None:
    code = (
        "import sys, serving.quarantine.reader, serving.quarantine.writer; "
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'grpc', 'google', 'fsspec', 'onnxruntime'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_a_case_is_what_the_record_says(quarantine: Path) -> None:
    entry = held(quarantine)[0]
    assert {name: getattr(entry, name) for name in vars(CASE)} == vars(CASE) | {"request_id": "0"}
