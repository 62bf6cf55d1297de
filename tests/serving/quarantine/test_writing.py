"""What a quarantine keeps, within which bounds, and what it costs when there is no room."""

import hashlib
import json
import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import serving.quarantine.writer as writer
from bundle.errors import OptionError, QuarantineError
from serving.quarantine.entry import Entry
from serving.quarantine.options import QuarantineOptions
from serving.quarantine.pruning import AGE, SIZE
from serving.quarantine.reader import entries, read_image
from serving.quarantine.store import LEFT_SECONDS, Folder
from serving.quarantine.writer import Quarantine
from tests.serving.disks import fill
from tests.serving.quarantine.cases import CASE, NOON, Told, case, picture, wait_for

YEARS = 36500.0  # days: cases of a fixed day stay


def keep(root: Path | str, *offers: Any, told: Told | None = None, **options: Any) -> Told:
    """Offer (case, image) pairs to a quarantine, one after the other, and end it."""
    told = told or Told()
    kept = Quarantine(QuarantineOptions(root=str(root), **{"days": YEARS, **options}), told)
    for each, image in offers:
        kept.offer(each, image)
    kept.close(60)
    return told


def held(root: Path | str) -> list[Entry]:
    return [found.entry for found in entries(str(root)) if found.entry]


def size_of(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("MPO", ".jpg")])
def test_a_flagged_image_is_kept_as_it_was_sent(tmp_path: Path, kind: str, suffix: str) -> None:
    root, image = tmp_path / "deep" / "quarantine", picture(kind=kind)
    told = keep(root, (CASE, image))
    assert (told.kept, told.lost) == ({"flagged": 1}, {})
    (entry,) = held(root)
    stem = f"120503.417-{entry.id}"
    assert sorted(os.listdir(root / "2025-11-26")) == sorted([stem + suffix, stem + ".json"])
    assert (root / "2025-11-26" / (stem + suffix)).read_bytes() == image == read_image(str(root), entry)
    assert json.loads((root / "2025-11-26" / (stem + ".json")).read_text()) == {
        "schema": 1,
        "id": entry.id,
        "received": "2025-11-26T12:05:03.417+00:00",
        "reason": "flagged",
        "drawn": False,
        "request_id": "r-1",
        "caller": "shop",
        "bundle_id": "b" * 64,
        "network": "full",
        "label": "Dusky Lark",
        "probability": 0.75,
        "score": 12.5,
        "p_value": 0.01,
        "alpha": 0.05,
        "flagged": True,
        "layers": [{"layer": "colour", "squared_distance": 3.5}],
        "image": stem + suffix,
        "sha256": hashlib.sha256(image).hexdigest(),
        "bytes": len(image),
    }
    assert told.bytes == size_of(root)


def test_it_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keep(tmp_path / "q", (CASE, picture()))
    finally:
        os.umask(before)
    for path in (tmp_path / "q", *(tmp_path / "q").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_what_is_not_flagged_is_kept_only_if_it_is_drawn(tmp_path: Path) -> None:
    offers = [(case(flagged=False), picture()), (case(), picture())]
    assert keep(tmp_path / "none", *offers).kept == {"flagged": 1}
    assert keep(tmp_path / "all", *offers, sample=1.0).kept == {"flagged": 1, "sample": 1}
    assert {(entry.reason, entry.drawn) for entry in held(tmp_path / "none")} == {("flagged", False)}
    assert {(entry.reason, entry.drawn) for entry in held(tmp_path / "all")} == {("flagged", True), ("sample", True)}


def test_the_sample_does_not_look_at_the_flag(tmp_path: Path) -> None:
    image = picture(side=1)
    offers = [(case(flagged=place % 2 == 0), image) for place in range(400)]
    keep(tmp_path, *offers, sample=0.3)
    drawn = [entry for entry in held(tmp_path) if entry.drawn]
    flagged = sum(entry.flagged for entry in drawn)
    assert 80 < len(drawn) < 165  # 120 expected; six standard deviations are 55
    assert 25 < flagged < len(drawn) - 25
    assert sum(entry.flagged for entry in held(tmp_path)) == 200, "and every flagged one is kept"


def test_a_record_is_written_last_and_removed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []

    def note(verb: str) -> None:
        real = getattr(Folder, verb)

        def noted(self: Folder, folder: str, name: str, *more: Any) -> None:
            done.append((verb, name[-4:]))
            real(self, folder, name, *more)

        monkeypatch.setattr(Folder, verb, noted)

    note("write")
    note("remove")
    keep(tmp_path, (CASE, picture()))
    keep(tmp_path, days=1.0)
    assert done == [("write", ".png"), ("write", "json"), ("remove", "json"), ("remove", ".png")]


# bounds


def test_the_oldest_go_when_there_is_no_room(tmp_path: Path) -> None:
    image = picture()
    keep(tmp_path / "one", (CASE, image))
    each = size_of(tmp_path / "one")
    offers = [(case(NOON + timedelta(hours=place)), image) for place in range(30)]
    told = keep(tmp_path / "q", *offers, bytes=10 * each)
    left = [entry.received for entry in held(tmp_path / "q")]
    assert left == [each.received for each, _ in offers][-len(left) :]
    assert 8 <= len(left) <= 10
    assert told.removed == {SIZE: 30 - len(left)}
    assert told.bytes == size_of(tmp_path / "q") <= 10 * each
    assert not (tmp_path / "q" / "2025-11-26").exists(), "a day with nothing in it goes, too"


def test_at_no_moment_is_there_more_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(Told, "holds", lambda *_: sizes.append(size_of(tmp_path)))
    keep(tmp_path, *((case(), picture(place)) for place in range(25)), bytes=20_000)
    assert max(sizes) <= 20_000
    assert max(sizes) > 15_000


def test_what_is_too_old_goes(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    ages = (40, 31, 29, 0)
    keep(tmp_path, *((case(now - timedelta(days=age), request_id=str(age)), picture()) for age in ages))
    told = keep(tmp_path, days=30.0)
    assert [entry.request_id for entry in held(tmp_path)] == ["29", "0"]
    assert (told.removed, told.bytes) == ({AGE: 2}, size_of(tmp_path))


def test_only_what_is_ours_is_counted_and_removed(tmp_path: Path) -> None:
    strange = (
        "2026-01-01/notes.txt",
        "2026-01-01/120000.000-short.jpg",
        "2026-01-01/.120000.000-x.json.999.tmp",
        "keys/120000.000-" + 32 * "a" + ".jpg",
        "120000.000-" + 32 * "a" + ".json",
    )
    for name in strange:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 9000)
    outside = tmp_path.with_name(tmp_path.name + "-outside")
    (outside / "2020-01-01").mkdir(parents=True)
    (outside / "2020-01-01" / f"120000.000-{32 * 'a'}.jpg").write_bytes(b"mine")
    (tmp_path / "2020-01-01").symlink_to(outside / "2020-01-01")
    keep(tmp_path, *((case(), picture(place)) for place in range(9)), bytes=12_000)
    assert all((tmp_path / name).exists() for name in strange)
    assert [path.read_bytes() for path in outside.rglob("*.jpg")] == [b"mine"]


def test_what_a_killed_process_left_goes_when_nobody_can_still_be_writing_it(tmp_path: Path) -> None:
    stem = f"120000.000-{32 * 'a'}"
    day = tmp_path / "2026-01-01"
    day.mkdir()
    names = (f".{stem}.jpg.1234567890123.tmp", f".{stem}.json.1234567890124.tmp", f"{stem}.jpg")
    for name in names:
        (day / name).write_bytes(b"x")
    os.utime(day / names[0], (0, 0))
    os.utime(day / names[1], (0, datetime.now(UTC).timestamp() - LEFT_SECONDS / 2))
    keep(tmp_path)
    assert sorted(os.listdir(day)) == sorted(names[1:]), "a young one may still be written to"
    keep(tmp_path, days=1.0)
    assert os.listdir(day) == [names[1]], "an image without a record goes by its age"


# what is lost


def test_a_full_disk_costs_the_copies_and_leaves_no_halves(small_disk: Path) -> None:
    root = small_disk / "q"
    keep(root, (case(request_id="before"), picture(side=16)))
    ballast = fill(small_disk, 12 * 1024)
    told = keep(root, (case(), picture(1, side=96)), (case(request_id="small"), picture(side=4)))
    assert sum(told.lost.values()) == 1
    assert set(told.lost) == {"no space left on the quarantine's disk"}
    assert [entry.request_id for entry in held(root)] == ["before", "small"]
    fill(small_disk, 5 * 1024)  # room for an image, but not for its record besides
    told = keep(root, (case(), picture(2, side=36)))
    assert sum(told.lost.values()) == 1
    assert not [path for path in root.rglob("*") if path.is_file() and "small" in path.name]
    assert len([path for path in root.rglob("*") if path.is_file()]) == 4, "an image and a record, twice"
    ballast.unlink()
    keep(root, (case(request_id="after"), picture(side=16)))
    assert [entry.request_id for entry in held(root)] == ["before", "small", "after"]


def test_offering_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MOST_WAITING", 3)
    told, free, busy = Told(), threading.Event(), threading.Event()
    kept = Quarantine(QuarantineOptions(root=str(tmp_path)), told)
    real = kept._store.write

    def slow(*arguments: Any) -> None:
        busy.set()
        free.wait()
        real(*arguments)

    monkeypatch.setattr(kept._store, "write", slow)
    kept.offer(case(), picture())
    busy.wait()
    for _ in range(10):  # would wait for ever if it waited
        kept.offer(case(), picture())
    assert told.lost == {writer.FULL_QUEUE: 8}
    free.set()
    kept.close(60)
    assert told.kept == {"flagged": 3}
    kept.offer(case(), picture())
    assert told.lost == {writer.FULL_QUEUE: 9}, "after the end nothing is taken"


def test_what_waits_has_a_bound_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "WAITING_BYTES", 5000)
    told = keep(tmp_path, (case(), picture(side=64)), (case(), picture(side=8)))
    assert (told.kept, told.lost) == ({"flagged": 1}, {writer.FULL_QUEUE: 1})


def test_an_end_that_is_too_short_counts_what_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, free = Told(), threading.Event()
    kept = Quarantine(QuarantineOptions(root=str(tmp_path)), told)
    monkeypatch.setattr(kept._store, "write", lambda *_: free.wait())
    for _ in range(3):
        kept.offer(case(), picture())
    kept.close(0.2)
    assert sum(told.lost.values()) == 3
    free.set()


def test_an_image_larger_than_everything_is_lost_and_nothing_else(tmp_path: Path) -> None:
    told = keep(tmp_path, (case(), picture(side=4)), (case(), picture(side=64)), bytes=5000)
    assert (told.kept, sum(told.lost.values()), told.removed) == ({"flagged": 1}, 1, {})


def test_a_folder_that_is_gone_is_made_again(tmp_path: Path) -> None:
    told = Told()
    kept = Quarantine(QuarantineOptions(root=str(tmp_path / "q")), told)
    wait_for(lambda: told.bytes == 0)
    (tmp_path / "q").rmdir()
    kept.offer(case(), picture())
    kept.close(60)
    assert told.kept == {"flagged": 1}


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sample": 1.5}, "--quarantine-sample 1.5"),
        ({"sample": float("nan")}, "--quarantine-sample nan"),
        ({"bytes": 0}, "--quarantine-bytes 0"),
        ({"days": 0.0}, "--quarantine-days 0"),
        ({"days": float("inf")}, "--quarantine-days inf"),
        ({"root": ""}, "--quarantine names no place"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        QuarantineOptions(**{"root": "q", **settings})


@pytest.mark.hostile
def test_places_that_can_be_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for where, words in (
        (str(tmp_path / "file"), "is no folder"),
        (str(tmp_path / "file" / "below"), "not a directory"),
        ("nowhere://bucket/place", "is no place for a quarantine"),
        ("s3://", "names no bucket"),
    ):
        with pytest.raises(OptionError, match=words):
            Quarantine(QuarantineOptions(root=where), Told())


def test_an_image_that_has_gone_or_changed_is_a_sentence(tmp_path: Path) -> None:
    keep(tmp_path, (case(), picture()))
    (entry,) = held(tmp_path)
    path = tmp_path / entry.day / entry.image
    for data in (b"x" * entry.bytes, picture() + b"x"):
        path.write_bytes(data)
        with pytest.raises(QuarantineError):
            read_image(str(tmp_path), entry)
    path.unlink()
    with pytest.raises(QuarantineError, match="is not there"):
        read_image(str(tmp_path), entry)
