"""A folder of attacked images: what is read of it, what is not, and what is no such folder."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.errors import DatasetError
from bundle.image import ImageSpec
from robustness import attack_files
from robustness.attack_files import AttackFolder

COLUMNS = ("network", "attack", "path", "source", "label")
SPEC = ImageSpec(width=8, height=8)
PIXELS = np.random.default_rng(3).integers(0, 256, (8, 8, 8, 3), np.uint8)


def write(folder: Path, rows: list[tuple[str, str, int]]) -> Path:
    """Of (network, attack, number), each its own image, as `fieldmark attack` writes them."""
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for network, attack, number in rows:
            path = Path(network, attack, f"{number:05d}.png")
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(PIXELS[number]).save(folder / path)
            writer.writerow((network, attack, path, f"key-{number}", "Lark"))
    return folder


def test_files_are_read_as_they_are_and_nothing_outside_is_opened(tmp_path: Path) -> None:
    (tmp_path / "attacks").mkdir()
    folder = write(tmp_path / "attacks", [("full", "reviewed", number) for number in range(6)])
    family = AttackFolder.read(folder).attacks("full", SPEC).families["reviewed"]
    assert np.array_equal(family.images, PIXELS[:6])
    assert family.sources == tuple(f"key-{number}" for number in range(6))
    files = folder / "full" / "reviewed"
    (files / "00000.png").unlink()
    (files / "00001.png").write_bytes(b"<svg onload=alert(1)>")
    (tmp_path / "secret.png").write_bytes((files / "00002.png").read_bytes())
    (files / "00003.png").unlink()
    (files / "00003.png").symlink_to(tmp_path / "secret.png")
    with (folder / "index.csv").open("a") as stream:
        stream.write("full,reviewed,../secret.png,k,Lark\n")
        stream.write(f"full,reviewed,{tmp_path}/secret.png,k,Lark\n")
    family = AttackFolder.read(folder).attacks("full", SPEC).families["reviewed"]
    assert (len(family.images), family.total, family.tried, family.unread) == (3, 8, 8, 5)
    assert family.sources == ("key-2", "key-4", "key-5"), "each source stays with its own image"


def test_a_source_may_hold_what_ends_a_line_elsewhere(tmp_path: Path) -> None:
    """As file names do: what `fieldmark attack` writes is read again."""
    folder = write(tmp_path, [("full", "reviewed", 0)])
    names = ["a\u2028b", "a\u0085b", "a\x0bb", "a\x1cb", "a\nb"]
    with (folder / "index.csv").open("a", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(("full", "reviewed", "full/reviewed/00000.png", name, "Lark") for name in names)
    family = AttackFolder.read(folder).attacks("full", SPEC).families["reviewed"]
    assert family.sources == ("key-0", *names)


def test_each_head_has_the_attacks_on_it_and_clean_and_noise_are_none(tmp_path: Path) -> None:
    names = ("clean", "noise", "fgsm-8")
    rows = [(network, attack, i) for network in ("full", "attention") for attack in names for i in range(3)]
    folder = AttackFolder.read(write(tmp_path, rows))
    found = folder.attacks("attention", SPEC)
    assert set(found.families) == {"fgsm-8"}
    assert found.families["fgsm-8"].sources == ("key-0", "key-1", "key-2"), "every source once"
    assert found.clean is not None
    assert len(found.clean.images) == 3
    assert folder.attacks("pooled", SPEC).families == {}, "of several networks none is another's"


def test_attacks_on_one_network_are_shown_to_every_head(tmp_path: Path) -> None:
    folder = AttackFolder.read(write(tmp_path, [("full", "reviewed", 0)]))
    assert len(folder.attacks("attention", SPEC).families["reviewed"].images) == 1


def test_more_than_can_be_judged_is_thinned_evenly_or_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [("full", "reviewed", number) for number in range(8)])
    monkeypatch.setattr(attack_files, "MOST", 4)
    folder = AttackFolder.read(tmp_path)
    family = folder.attacks("full", SPEC).families["reviewed"]
    assert (family.total, family.tried, family.unread) == (8, 4, 0)
    assert family.sources == ("key-0", "key-2", "key-4", "key-6")
    assert not folder.cut
    monkeypatch.setattr(attack_files, "MOST_ROWS", 7)
    folder = AttackFolder.read(tmp_path)
    assert (len(folder.rows), folder.cut) == (7, True)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        (b"", "has not the columns"),
        (b"path,label\na.png,b\n", "has not the columns"),
        (b"\xff\xfe", "is no list of attacked images"),
        (b"network,attack,path,source,label\nfull,reviewed\n", "too few or too many cells"),
        (b"network,attack,path,source,label\nfull,reviewed,a,b,c,d\n", "too few or too many cells"),
        (b"network,attack,path,source,label\n", "holds no attacked image"),
        (b"network,attack,path,source,label\nfull,clean,a.png,s,l\nfull,noise,a.png,s,l\n", "holds no attacked image"),
        (b"network,attack,path,source,label\nfull,reviewed,gone.png,s,l\n", "holds no attacked image"),
        (b"network,attack,path,source,label\nfull,reviewed,a\x00b,s,l\n", "holds no attacked image"),
    ],
)
def test_what_is_no_folder_of_attacks_is_a_sentence(tmp_path: Path, text: bytes | None, words: str) -> None:
    if text is not None:
        (tmp_path / "index.csv").write_bytes(text)
    with pytest.raises(DatasetError, match=words):
        AttackFolder.read(tmp_path).attacks("full", SPEC)
