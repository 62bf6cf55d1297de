"""Objects of a bucket and a table in one: S3's real API on loopback, when it is well and when it is not."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import CommitProperties, Transaction

from bundle import Bundle
from bundle.errors import FieldmarkError, ImageGone, InputError, ScoringError
from bundle.places import Patience
from review.sources.source import Stamp, open_source
from scoring.table import lease, objects, place
from scoring.table.delta import ScoreTable
from scoring.table.place import Place
from scoring.table.storage import storage_options
from tests.scoring.conftest import Score
from tests.scoring.table.object_store import ObjectStore, object_store

SOURCE, TABLE = "s3://archive/2026/photos", "s3://lake/scores"


@pytest.fixture(scope="module")
def served() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture
def store(served: ObjectStore, monkeypatch: pytest.MonkeyPatch, photos: Path) -> Iterator[ObjectStore]:
    """The photographs in a bucket, beside things that are not to be scored, and an empty bucket for the table."""
    for name, value in {
        "AWS_ENDPOINT_URL": served.endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setattr(lease, "STILL_SECONDS", 0.5)
    monkeypatch.setattr(place, "PATIENCE", Patience(connect=10, read=1))
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # of its own, beside those of a job
    client = boto3.client("s3")
    for bucket in ("archive", "lake"):
        client.create_bucket(Bucket=bucket)
    for file in sorted(photos.rglob("*.png")):
        client.put_object(Bucket="archive", Key=f"2026/photos/{file.relative_to(photos)}", Body=file.read_bytes())
    client.put_object(Bucket="archive", Key="2026/photos/notes.txt", Body=b"x")
    client.put_object(Bucket="archive", Key="2026/photosynthesis.png", Body=b"x")
    yield served
    served.faults.__init__()  # type: ignore[misc]
    for bucket in ("archive", "lake"):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for entry in page.get("Contents", ()):
                client.delete_object(Bucket=bucket, Key=entry["Key"])
        client.delete_bucket(Bucket=bucket)


def rows() -> list[dict[str, Any]]:
    table = DeltaTable(TABLE, storage_options=storage_options(Place(TABLE)))
    return sorted(table.to_pyarrow_table().to_pylist(), key=lambda row: (row["id"], row["run"]))


def values(found: list[dict[str, Any]]) -> list[Any]:
    names = ("status", "label", "probability", "instance_score", "p_value", "is_adversarial", "layer_scores")
    return [[row[name] for name in names] for row in found]


def test_a_bucket_scores_as_a_folder_does(
    score: Score, photos: Path, tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PAGE", 5)
    summary = score(SOURCE, TABLE)
    assert (summary.rows, summary.errors, dict(summary.passed_over)) == (22, 1, {".txt": 1})
    score(photos, tmp_path / "table")
    local = DeltaTable(tmp_path / "table").to_pyarrow_table().sort_by("id").to_pylist()
    assert values(rows()) == values(local)
    assert rows()[0]["path"] == "s3://archive/2026/photos/a/00.png"
    assert all(row["etag"] and row["size"] for row in rows())
    client = boto3.client("s3")
    listed = client.get_object(Bucket="lake", Key="scores/_fieldmark/failed.txt")["Body"].read()
    assert listed == b"s3://archive/2026/photos/b/broken.png\n"
    client.put_object(Bucket="archive", Key="2026/photos/b/broken.png", Body=(photos / "noise.png").read_bytes())
    assert score(SOURCE, TABLE).unscored == 0
    assert "failed.txt" not in Place(TABLE).names("_fieldmark")


def test_changed_and_deleted_objects(score: Score, store: ObjectStore, photos: Path) -> None:
    score(SOURCE, TABLE)
    assert score(SOURCE, TABLE).rows == 0
    client = boto3.client("s3")
    client.put_object(Bucket="archive", Key="2026/photos/a/00.png", Body=(photos / "noise.png").read_bytes())
    client.put_object(Bucket="archive", Key="2026/photos/a/01.png", Body=(photos / "a/01.png").read_bytes())
    client.delete_object(Bucket="archive", Key="2026/photos/b/12.png")
    assert score(SOURCE, TABLE).rows == 2, "an object that is written anew with the same bytes is the same"
    assert [(row["path"][-8:], row["status"]) for row in rows() if row["run"] == 2] == [
        ("a/00.png", "ok"),
        ("b/12.png", "gone"),
    ]


@pytest.mark.parametrize("kind", ["busy", "half", "slow"])
def test_an_object_that_comes_at_last(
    score: Score, photos: Path, tmp_path: Path, store: ObjectStore, kind: str
) -> None:
    score(photos, tmp_path / "table")
    local = DeltaTable(tmp_path / "table").to_pyarrow_table().sort_by("id").to_pylist()
    getattr(store.faults, kind).update({"a/00.png": 1, "b/09.png": 1})
    assert score(SOURCE, TABLE).errors == 1
    assert values(rows()) == values(local)
    assert store.faults.asked["/archive/2026/photos/a/00.png"] >= 2


@pytest.mark.parametrize("kind", ["busy", "half"])
def test_an_object_that_never_comes_is_a_row_and_is_tried_again(score: Score, store: ObjectStore, kind: str) -> None:
    getattr(store.faults, kind).update({"a/00.png": 10_000})
    assert score(SOURCE, TABLE).errors == 2
    bad = rows()[0]
    assert (bad["status"], bad["label"]) == ("error", None)
    assert "a/00.png" in bad["error"]
    assert bad["error"].endswith("3 times")
    store.faults.busy.clear(), store.faults.half.clear()
    summary = score(SOURCE, TABLE)
    assert (summary.rows, summary.errors) == (1, 0), "though it has not changed"
    assert score(SOURCE, TABLE).rows == 0


def test_what_a_catalogue_in_a_bucket_names_can_be_reviewed(
    score: Score, store: ObjectStore, photos: Path, toy_bundle: Bundle
) -> None:
    other = "s3://archive/other.png"
    client, catalogue = boto3.client("s3"), "s3://archive/2026/night.csv"
    client.put_object(Bucket="archive", Key="other.png", Body=(photos / "noise.png").read_bytes())
    lines = f"id,path\n1,photos/a/00.png\n2,{SOURCE}/a/01.png\n3,{other}\n"
    client.put_object(Bucket="archive", Key="2026/night.csv", Body=lines.encode())
    assert score(catalogue, TABLE).errors == 0
    source = open_source(TABLE, toy_bundle)
    found = {
        item.image: source.read(item.image, 10**6, Stamp(size=item.size, mtime_ns=item.mtime_ns))
        for item in source.news()
    }
    assert found == {
        "photos/a/00.png": (photos / "a/00.png").read_bytes(),
        f"{SOURCE}/a/01.png": (photos / "a/01.png").read_bytes(),
        other: (photos / "noise.png").read_bytes(),
    }
    assert all(len(source.read(image, 99, Stamp())) == 100 for image in found)
    for outside in ("/etc/passwd", "file:///etc/passwd"):
        with pytest.raises(ImageGone):
            source.read(outside, 10**6, Stamp())


def test_a_scheme_in_capitals_is_the_same(score: Score, store: ObjectStore, toy_bundle: Bundle) -> None:
    score(SOURCE.replace("s3", "S3"), TABLE.replace("s3", "S3"))
    assert score(SOURCE, TABLE).rows == 0
    source = open_source(TABLE.replace("s3", "S3"), toy_bundle)
    assert [len(source.read(item.image, 99, Stamp(size=item.size))) for item in source.news()] == [100] * 21


@pytest.mark.parametrize("scheme", ["S3", "s3a"])
def test_another_spelling_in_lists_and_catalogues(
    score: Score, store: ObjectStore, toy_bundle: Bundle, photos: Path, tmp_path: Path, scheme: str
) -> None:
    source = SOURCE.replace("s3", scheme)
    (tmp_path / "list.txt").write_text(f"{source}/a/00.png\nfile://{photos}/a/01.png\n")
    assert score(tmp_path / "list.txt", tmp_path / "table").errors == 0
    listed = open_source(str(tmp_path / "table"), toy_bundle)
    assert [len(listed.read(item.image, 99, Stamp(size=item.size))) for item in listed.news()] == [100] * 2
    body = f"id,path\n7,{source}/a/00.png\n3,a/01.png\n".encode()
    boto3.client("s3").put_object(Bucket="archive", Key="2026/photos/all.csv", Body=body)
    assert score(f"{source}/all.csv", TABLE).errors == 0
    assert score(f"{SOURCE}/all.csv", TABLE.replace("s3", scheme)).rows == 0
    named = open_source(TABLE, toy_bundle)
    assert [len(named.read(item.image, 99, Stamp(size=item.size))) for item in named.news()] == [100] * 2


def test_a_table_is_asked_for_with_what_holds_now(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        before.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        table = ScoreTable(Place(TABLE))
    assert not table.exists()


def test_a_list_and_a_catalogue_name_objects(score: Score, store: ObjectStore, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{SOURCE}/a/00.png\nphotos/a/01.png\n{SOURCE}/never.png\n")
    summary = score(tmp_path / "list.txt", tmp_path / "table")
    assert (summary.rows, summary.errors) == (3, 1)
    body = f"id,path\n7,{SOURCE}/a/00.png\n3,a/01.png\n".encode()
    boto3.client("s3").put_object(Bucket="archive", Key="2026/photos/all.csv", Body=body)
    assert score(f"{SOURCE}/all.csv", TABLE).errors == 0
    assert [(row["id"], row["path"]) for row in rows()] == [(3, "a/01.png"), (7, f"{SOURCE}/a/00.png")]


def test_a_job_that_lives_elsewhere_keeps_others_out(
    score: Score, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lease, "STILL_SECONDS", 5.0)
    with lease.held(Place(TABLE)), pytest.raises(ScoringError, match="another job is scoring into s3://lake/scores"):
        score(SOURCE, TABLE)
    assert score(SOURCE, TABLE).rows == 22


def test_two_jobs_that_believe_they_are_alone(
    score: Score, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the sign of life, one job commits while the other scores: the other is told, and nothing is doubled."""
    monkeypatch.setattr(lease, "_wait", lambda *_: None)
    commit, first = ScoreTable.commit, True

    def overtaken(self: ScoreTable, *arguments: Any) -> bool:
        nonlocal first
        if first:
            first = False
            boto3.client("s3").delete_object(Bucket="archive", Key="2026/photos/a/00.png")
            Place(TABLE).remove("_fieldmark/runs")  # the other one never saw ours
            score(SOURCE, TABLE)
        return commit(self, *arguments)

    monkeypatch.setattr(ScoreTable, "commit", overtaken)
    with pytest.raises(ScoringError, match="another job has finished run 1"):
        score(SOURCE, TABLE)
    assert [row["run"] for row in rows()] == [1] * 21


def test_the_store_lets_one_commit_of_a_version_in(score: Score, store: ObjectStore) -> None:
    """What the guard rests on: a file of the log that must not exist yet, and no second try behind our back."""
    score(SOURCE, TABLE)
    first, second = (DeltaTable(TABLE, storage_options=storage_options(Place(TABLE))) for _ in range(2))
    once = CommitProperties(max_commit_retries=0, app_transactions=[Transaction("x", 1)])
    for table, refused in ((first, False), (second, True)):
        with pytest.raises(CommitFailedError) if refused else contextlib.nullcontext():
            table.create_write_transaction([], "append", table.schema(), ["day", "bundle_id"], commit_properties=once)
    assert len(rows()) == 22


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("s3://nowhere/photos", "there is no bucket or prefix s3://nowhere/photos"),
        ("s3://archive/2027", "s3://archive/2027 holds no images"),
        ("ftp://archive/2027", "ftp:// is no place that is known here"),
        ("s3://archive/2026/photos/none.parquet", "there is no bucket or prefix"),
    ],
)
def test_a_source_that_is_not_there(score: Score, store: ObjectStore, source: str, sentence: str) -> None:
    with pytest.raises(FieldmarkError, match=sentence):
        score(source, TABLE)
    assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket="lake"), "nothing was written"


def test_no_credentials(score: Score, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InputError, match=r"no credentials for s3://archive.*AWS_ACCESS_KEY_ID.*AWS_PROFILE"):
        score(SOURCE, tmp_path / "table")
    assert not (tmp_path / "table").exists()
