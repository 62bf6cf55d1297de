"""Addresses of places, and file systems that are those of the environment as it is now."""

import pytest

from bundle.places import Patience, below, connect, file_system, local_path, scheme_of

PATIENCE = Patience(connect=1, read=2)


@pytest.mark.parametrize(
    ("text", "scheme", "rest", "local"),
    [
        ("s3://a/b", "s3", "a/b", None),
        ("S3://a/b", "s3", "a/b", None),
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
