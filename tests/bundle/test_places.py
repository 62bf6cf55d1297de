"""Addresses of places, and file systems that are those of the environment as it is now."""

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from threading import Barrier
from typing import Any

import fsspec
import pytest

from bundle import places
from bundle.places import (
    Patience,
    below,
    connect,
    file_system,
    google_emulator,
    local_path,
    scheme_of,
    store_url,
)

PATIENCE = Patience(connect=1, read=2)


@pytest.mark.parametrize(
    ("text", "scheme", "rest", "local"),
    [
        ("s3://a/b", "s3", "a/b", None),
        ("S3://a/b", "s3", "a/b", None),
        ("s3a://a/b", "s3", "a/b", None),
        ("gcs://a/b", "gs", "a/b", None),
        ("ABFS://a/b", "az", "a/b", None),
        ("abfss://a/b", "az", "a/b", None),
        ("local:///a/b", "file", "/a/b", "/a/b"),
        ("abfs+x.y-z://a", "abfs+x.y-z", "a", None),
        ("file:///a/b", "file", "/a/b", "/a/b"),
        ("FILE:///a", "file", "/a", "/a"),
        ("file://", "file", "", "/"),
        ("a/b://c", "", "c", "a/b://c"),
        ("3s://a", "", "a", "3s://a"),
        ("/a/b", "", "", "/a/b"),
        ("s3:/a", "", "", "s3:/a"),
    ],
)
def test_an_address(text: str, scheme: str, rest: str, local: str | None) -> None:
    assert (scheme_of(text), below(text), local_path(text)) == (scheme, rest, local)


def test_a_file_system_is_kept_for_as_long_as_the_environment_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    first = file_system("s3", PATIENCE)
    assert file_system("s3", PATIENCE) is first
    assert file_system("s3", Patience(connect=1, read=3)) is not first
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
        assert file_system("s3", PATIENCE) is not first
    assert file_system("s3", PATIENCE) is first


def test_a_store_is_opened_anew_with_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    (first, root), (second, _) = connect("S3://birds/q", PATIENCE), connect("s3a://birds/q", PATIENCE)
    assert root == "birds/q"
    assert first is not second
    for files in (first, second):
        assert (files.config_kwargs["connect_timeout"], files.config_kwargs["read_timeout"]) == (1, 2)


def test_a_url_as_its_store_takes_it() -> None:
    assert store_url("S3A://Lake/All.csv") == "s3://Lake/All.csv"


def test_threads_that_come_first_together_open_one(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, barrier = [], Barrier(16)

    def opening(url: str, patience: Patience) -> tuple[Any, str]:
        opened.append(url)
        return connect(url, patience)

    def first(_: int) -> Any:
        barrier.wait(30)
        return file_system("s3", Patience(connect=16, read=16))

    monkeypatch.setattr(places, "connect", opening)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(first, range(16)))
    assert len({id(files) for files in found}) == 1
    assert opened == ["s3://"]


@pytest.mark.skipif(find_spec("gcsfs") is None, reason="needs the extra gs")
def test_the_first_of_google_is_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    monkeypatch.delenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", raising=False)
    patience = Patience(connect=17, read=17)
    assert file_system("gs", patience) is file_system("gs", patience)


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("", ""),
        ("default", ""),
        ("http://127.0.0.1:4443/", "http://127.0.0.1:4443"),
        ("127.0.0.1:4443", "http://127.0.0.1:4443"),
    ],
)
def test_an_emulator_of_google(value: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(fsspec, "url_to_fs", lambda url, **options: (told.update(options), url))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", value)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    connect("gs://lake", PATIENCE)
    assert google_emulator() == address
    assert ("token" in told) == bool(address), "else the store at Google's own address would be asked as nobody"
