"""A quarantine in an object store: a real S3 protocol, with a store that answers and with one that does not."""

import importlib
import sys
from datetime import timedelta

import pytest

from bundle.errors import MissingExtra, QuarantineError
from serving.quarantine.options import QuarantineOptions
from serving.quarantine.pruning import SIZE
from serving.quarantine.reader import entries, read_image
from serving.quarantine.store import open_store
from serving.quarantine.writer import Quarantine
from tests.serving.quarantine.cases import NOON, Told, case, picture
from tests.serving.quarantine.test_writing import held, keep


def test_entries_go_to_the_store_and_come_back(bucket: str) -> None:
    images = [picture(place) for place in range(3)]
    offers = [(case(NOON + timedelta(days=place), request_id=str(place)), image) for place, image in enumerate(images)]
    told = keep(bucket, *offers)
    assert (told.kept, told.lost) == ({"flagged": 3}, {})
    found = held(bucket)
    assert [entry.request_id for entry in found] == ["0", "1", "2"]
    assert [read_image(bucket, entry) for entry in found] == images
    store = open_store(bucket)
    assert sorted(store.folders()) == ["2025-11-26", "2025-11-27", "2025-11-28"]
    assert sorted(store.files("2025-11-26")) == [found[0].record, found[0].image]


def test_a_store_is_looked_for_where_the_environment_says_now(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        with pytest.raises(QuarantineError, match="EndpointConnectionError"):
            open_store(bucket).folders()
    assert keep(bucket, (case(), picture())).kept == {"flagged": 1}


def test_the_store_keeps_within_its_bounds(bucket: str) -> None:
    each = len(picture()) + 1000
    offers = [(case(NOON + timedelta(hours=place), request_id=str(place)), picture(place)) for place in range(5)]
    told = keep(bucket, *offers, bytes=3 * each)
    left = held(bucket)
    assert [entry.request_id for entry in left] == [str(place) for place in range(5)][-len(left) :]
    assert 1 <= len(left) <= 3
    assert told.removed == {SIZE: 5 - len(left)}
    store = open_store(bucket)
    assert sum(sum(store.files(day).values()) for day in store.folders()) == told.bytes


@pytest.mark.hostile
def test_a_record_that_is_too_large_is_not_fetched(bucket: str) -> None:
    keep(bucket, (case(NOON), picture()))
    (entry,) = held(bucket)
    open_store(bucket).write(entry.day, entry.record, b" " * 70_000)
    (found,) = entries(bucket)
    assert "more than 65,536 bytes" in found.problem


def test_a_store_that_refuses_costs_the_copies(refusing_s3: list[str]) -> None:
    told = Told()
    kept = Quarantine(QuarantineOptions(root="s3://birds/q"), told)
    kept.offer(case(), picture())
    kept.close(60)
    assert sum(told.lost.values()) == 1
    assert told.kept == {}
    assert refusing_s3, "it was asked"
    assert all(why.startswith("the quarantine cannot be used (") and "birds" not in why for why in told.lost)
    with pytest.raises(QuarantineError):
        next(entries("s3://birds/q"))


def test_a_bucket_that_is_not_there_costs_the_copies(bucket: str) -> None:
    told = keep("s3://no-such-bucket/q", (case(), picture()))
    assert sum(told.lost.values()) == 1


@pytest.mark.hostile
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.import_module("fsspec.registry")._registry  # the package has another thing of that name
    monkeypatch.delitem(known, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtra, match=r"'s3' extra"):
        open_store("s3://birds/q")
