"""gs:// and az:// as s3://: each store's own server on loopback, from the prefix to the table and back."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import CommitProperties, Transaction

from bundle import Bundle
from bundle.errors import FieldmarkError, ImageGone, InputError
from review.sources.source import Stamp, open_source
from scoring.table import lease
from scoring.table.current import Current
from scoring.table.place import Place, filesystem
from scoring.table.storage import storage_options
from tests.scoring.conftest import Score
from tests.scoring.table.emulators import azure_store, google_store
from tests.scoring.table.test_buckets import values

SERVERS = {"az": azure_store, "gs": google_store}
VARIABLES = (
    "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY",
    "STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS",
)  # fmt: skip


@dataclass(frozen=True)
class Store:
    """`files` is its client; the photographs are in `source`, and there is an empty bucket for `table`."""

    scheme: str
    files: Any

    @property
    def source(self) -> str:
        return f"{self.scheme}://archive/2026/photos"

    @property
    def table(self) -> str:
        return f"{self.scheme}://lake/scores"

    def put(self, name: str, data: bytes) -> None:
        self.files.pipe_file(f"archive/2026/photos/{name}", data)

    def rows(self) -> list[dict[str, Any]]:
        table = DeltaTable(self.table, storage_options=storage_options(Place(self.table)))
        return sorted(table.to_pyarrow_table().to_pylist(), key=lambda row: (row["id"], row["run"]))


@pytest.fixture(scope="module", params=sorted(SERVERS))
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str]]]:
    with SERVERS[request.param]() as environment:
        yield request.param, environment


@pytest.fixture
def store(served: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch, photos: Path) -> Iterator[Store]:
    scheme, environment = served
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    monkeypatch.setattr(lease, "STILL_SECONDS", 0.5)
    nobody = {"token": "anon"} if scheme == "gs" else {}
    made = Store(scheme, fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **nobody))
    for bucket in ("archive", "lake"):
        made.files.mkdir(bucket)
    for file in sorted(photos.rglob("*.png")):
        made.put(str(file.relative_to(photos)), file.read_bytes())
    made.put("notes.txt", b"x")
    made.files.pipe_file("archive/2026/photosynthesis.png", b"x")
    yield made
    for bucket in ("archive", "lake"):
        for name in made.files.find(bucket):
            made.files.rm_file(name)
        made.files.rmdir(bucket)


def test_a_bucket_scores_as_a_folder_does(score: Score, photos: Path, tmp_path: Path, store: Store) -> None:
    summary = score(store.source, store.table)
    assert (summary.rows, summary.errors, dict(summary.passed_over)) == (22, 1, {".txt": 1})
    score(photos, tmp_path / "table")
    local = DeltaTable(tmp_path / "table").to_pyarrow_table().sort_by("id").to_pylist()
    rows = store.rows()
    assert values(rows) == values(local)
    assert rows[0]["path"] == f"{store.source}/a/00.png"
    assert all(row["etag"] and row["size"] and row["mtime_ns"] for row in rows)
    failed = store.files.cat_file("lake/scores/_fieldmark/failed.txt")
    assert failed == f"{store.source}/b/broken.png\n".encode()


def test_changed_and_deleted_objects(score: Score, store: Store, photos: Path) -> None:
    score(store.source, store.table)
    assert score(store.source, store.table).rows == 0
    store.put("a/00.png", (photos / "noise.png").read_bytes())
    if store.scheme == "gs":  # whose tag is the MD5
        store.put("a/01.png", (photos / "a/01.png").read_bytes())
    store.files.rm_file("archive/2026/photos/b/12.png")
    assert score(store.source, store.table).rows == 2
    assert [(row["path"][-8:], row["status"]) for row in store.rows() if row["run"] == 2] == [
        ("a/00.png", "ok"),
        ("b/12.png", "gone"),
    ]


def test_its_table_is_read_back(score: Score, store: Store, photos: Path, toy_bundle: Bundle) -> None:
    score(store.source, store.table)
    assert len(Current.read(store.table).ids) == 21
    source = open_source(store.table, toy_bundle)
    found = {
        item.image: source.read(item.image, 10**6, Stamp(size=item.size, mtime_ns=item.mtime_ns))
        for item in source.news()
    }
    assert found[f"{store.source}/noise.png"] == (photos / "noise.png").read_bytes()
    assert len(found) == 21
    assert all(len(source.read(image, 99, Stamp())) == 100 for image in found)
    with pytest.raises(ImageGone, match="cannot be fetched"):
        source.read(f"{store.source}/never.png", 10**6, Stamp())


def test_a_catalogue_in_it(score: Score, store: Store) -> None:
    store.put("all.csv", f"id,path\n7,{store.source}/a/00.png\n3,a/01.png\n".encode())
    assert score(f"{store.source}/all.csv", store.table).errors == 0
    assert [(row["id"], row["path"]) for row in store.rows()] == [(3, "a/01.png"), (7, f"{store.source}/a/00.png")]


def test_the_store_lets_one_commit_of_a_version_in(score: Score, store: Store) -> None:
    score(store.source, store.table)
    first, second = (DeltaTable(store.table, storage_options=storage_options(Place(store.table))) for _ in range(2))
    once = CommitProperties(max_commit_retries=0, app_transactions=[Transaction("x", 1)])
    for table, refused in ((first, False), (second, True)):
        with pytest.raises(CommitFailedError) if refused else contextlib.nullcontext():
            table.create_write_transaction([], "append", table.schema(), ["day", "bundle_id"], commit_properties=once)
    assert len(store.rows()) == 22


@pytest.mark.parametrize(
    ("source", "table", "sentence"),
    [
        ("nowhere/photos", "lake/scores", "there is no bucket or prefix .*://nowhere/photos"),
        ("archive/2027", "lake/scores", "there is no bucket or prefix .*://archive/2027"),
        ("archive/2026/photos", "nowhere/scores", "://nowhere/scores"),
    ],
)
def test_a_place_that_is_not_there(score: Score, store: Store, source: str, table: str, sentence: str) -> None:
    with pytest.raises(FieldmarkError, match=sentence):
        score(f"{store.scheme}://{source}", f"{store.scheme}://{table}")
    assert store.files.find("lake") == [], "nothing was written"


@pytest.mark.hostile
def test_an_azure_without_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("adlfs", reason="the extra 'az' is not here")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"az:// cannot be used.*AZURE_STORAGE_CONNECTION_STRING"):
        Place("az://archive/2026")


@pytest.mark.hostile
@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_a_store_that_refuses_says_so_in_one_sentence(
    scheme: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip({"gs": "gcsfs", "az": "adlfs"}[scheme], reason=f"the extra {scheme!r} is not here")

    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        account = f"AccountName=x;AccountKey=eHg=;BlobEndpoint={address}/x;"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", account)
        with pytest.raises(FieldmarkError, match=rf"{scheme}://archive/2026.* (read or written|reached)"):
            Place(f"{scheme}://archive/2026").read("x")
        server.shutdown()
    assert filesystem(scheme) is not None
    assert "Traceback" not in capfd.readouterr().err, "as the client's own log has it"
