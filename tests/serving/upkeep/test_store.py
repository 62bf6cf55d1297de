"""Where the next bundle is looked for, and the copy of it that is served."""

import os
from pathlib import Path

import pytest

from bundle import Bundle
from bundle.errors import BundleCorrupt, BundleMissing, BundleUntrusted
from bundle.folder import sign_bundle
from bundle.manifest import MANIFEST
from serving.upkeep.source import Source
from serving.upkeep.store import Store
from tests.keys import write_keys
from tests.serving.upkeep.remade import remade


def test_a_copy_is_what_was_verified_whatever_becomes_of_the_original(toy_bundle: Bundle, tmp_path: Path) -> None:
    original = remade(toy_bundle, tmp_path / "original")
    store = Store(tmp_path / "store", None)
    copy = store.take(original)
    assert copy.bundle_id == toy_bundle.bundle_id
    assert copy.path.parent == tmp_path / "store"
    (original / MANIFEST).write_text("{}")
    assert Bundle.open(copy.path).bundle_id == toy_bundle.bundle_id
    assert store.take(copy.path).path == copy.path


def test_what_is_damaged_or_not_signed_is_not_kept(toy_bundle: Bundle, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path)
    store = Store(tmp_path / "store", public)
    unsigned = remade(toy_bundle, tmp_path / "unsigned")
    with pytest.raises(BundleUntrusted):
        store.take(unsigned)
    sign_bundle(unsigned, private)
    assert store.take(unsigned).signed
    store.keep([])
    with (unsigned / toy_bundle.manifest.networks["full"].model).open("r+b") as stream:
        stream.write(b"x")
    with pytest.raises(BundleCorrupt):
        store.take(unsigned)
    assert list((tmp_path / "store").iterdir()) == []


def test_only_what_is_kept_stays(make_toy_bundle: object, toy_bundle: Bundle, tmp_path: Path) -> None:
    store = Store(tmp_path / "store", None)
    other = remade(toy_bundle, tmp_path / "other", name="other")
    ids = [store.take(path).bundle_id for path in (toy_bundle.path, other)]
    store.keep(each for each in ids[1:])
    assert [each.name for each in (tmp_path / "store").iterdir()] == ids[1:]


def folders(path: Path, *names: str) -> None:
    for name in names:
        (path / name).mkdir()
        (path / name / MANIFEST).write_text(name)


def test_the_last_bundle_of_a_folder_is_by_its_name_and_numbers_by_their_value(tmp_path: Path) -> None:
    folders(tmp_path, "v9", "v10", "v1", ".v11")
    assert [each.name for each in Source(tmp_path).candidates()] == ["v10", "v9", "v1"]


@pytest.mark.parametrize("what", ["nowhere", "empty"])
def test_nothing_to_serve(tmp_path: Path, what: str) -> None:
    if what == "empty":
        (tmp_path / what).mkdir()
    with pytest.raises(BundleMissing, match="bundle"):
        Source(tmp_path / what).candidates()
    assert Source(tmp_path / what).look() is None, "what is served goes on"


def test_what_is_new_is_told_once_it_stands_still_and_once(tmp_path: Path) -> None:
    folders(tmp_path, "one")
    source = Source(tmp_path)
    source.note()
    assert source.look() is None
    folders(tmp_path, "two")
    assert source.look() is None, "it may still be being copied"
    (tmp_path / "two" / "model").write_bytes(b"x")
    assert source.look() is None, "it is"
    assert source.look() == tmp_path / "two"
    assert source.look() is None
    source.forget()
    source.look()
    assert source.look() == tmp_path / "two", "asked for again"


def test_what_is_mended_is_told_again_and_what_is_taken_away_gives_way(tmp_path: Path) -> None:
    folders(tmp_path, "one", "two")
    source = Source(tmp_path)
    source.note()
    (tmp_path / "two" / MANIFEST).write_text("mended")
    source.look()
    assert source.look() == tmp_path / "two"
    (tmp_path / "two").rename(tmp_path / ".away")
    source.look()
    assert source.look() == tmp_path / "one"


def test_a_link_that_is_set_anew(tmp_path: Path) -> None:
    folders(tmp_path, "one", "two")
    link = tmp_path / "link"
    link.symlink_to("one")
    source = Source(link)
    source.note()
    os.unlink(link)
    assert source.look() is None, "for a moment there is none"
    link.symlink_to("two")
    source.look()
    assert source.look() == (tmp_path / "two").resolve()
