"""The built-in birds: what a species is, what a picture shows, what is on disk, and the contact sheet."""

import dataclasses
import errno
import hashlib
import itertools
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fieldmark
from bundle.errors import DiskFull, ImageError, OptionError
from training.data import cub_writer
from training.data.birds import PARTS, draw_bird
from training.data.canvas import Canvas, Frame, ellipse
from training.data.cub_writer import BirdSet, write_birds
from training.data.dataset import PARTS as DIVISION
from training.data.dataset import Dataset, open_dataset
from training.data.index import Sample
from training.data.sheet import choose, draw_sheet, look_at, wrap
from training.data.species import BEARERS, MARKS, MAX_SPECIES, Species, all_species, telling_parts

TINY = BirdSet(species=3, size=40, images_train=6, images_test=2, seed=5)
PLAIN = Species(
    name="Plain", crown="plain", beak="cone", beak_colour="slate", wing="plain", breast="plain", eye="plain",
    tail="plain", throat="plain", legs="slate",
)  # fmt: skip


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("birds") / "set"
    write_birds(folder, TINY)
    return folder


def fieldmark_fails(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        fieldmark.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0), capsys.readouterr().err


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---- species


def fewest_differences(species: tuple[Species, ...]) -> int:
    values = np.array([list(one.marks.values()) for one in species])
    differences = (values[:, None] != values[None, :]).sum(axis=2)
    return int(differences[~np.eye(len(species), dtype=bool)].min())


def test_species_are_many_and_every_two_differ_in_at_least_two_marks() -> None:
    species = all_species()
    assert len(species) == len({one.name.lower() for one in species}) == MAX_SPECIES
    assert fewest_differences(species) >= 2


def test_species_come_in_genera_of_look_alikes() -> None:
    """Within a genus two marks tell a species from its founder; between founders many do."""
    species = all_species()[:20]
    values = np.array([list(one.marks.values()) for one in species])
    differences = (values[:, None] != values[None, :]).sum(axis=2)
    for founder in range(0, 20, 4):
        assert differences[founder, founder + 1 : founder + 4].tolist() == [2, 2, 2]
    founders = differences[::4, ::4]
    assert founders[~np.eye(5, dtype=bool)].min() >= 5


def test_species_are_the_same_everywhere() -> None:
    """A changed list would silently change what every earlier seed draws."""
    first = all_species()[1]
    assert first.name == "Golden_throated_Sicklebill"
    assert first.marks == {
        "crown": "red",
        "beak": "sickle",
        "beak_colour": "ivory",
        "wing": "blue_patch",
        "breast": "plain",
        "eye": "plain",
        "tail": "plain",
        "throat": "golden",
        "legs": "orange",
    }
    listed = json.dumps([one.marks | {"name": one.name} for one in all_species()])
    assert hashlib.sha256(listed.encode()).hexdigest()[:16] == "39aadeb3eb146f7c"


def test_names_tell_the_truth() -> None:
    for species in all_species():
        for word, mark, value in (("Red_crowned", "crown", "red"), ("Spotted", "breast", "spots"),
                                  ("Masked", "eye", "mask"), ("Finch", "beak", "cone")):  # fmt: skip
            if word in species.name:
                assert species.marks[mark] == value


def test_the_parts_that_tell_a_species_from_its_look_alikes() -> None:
    """Of the first genus: its beak's colour, legs, eye and throat; the crown and the wing they have in common."""
    labels = [species.name.replace("_", " ") for species in all_species()[:6]]
    found = telling_parts(labels)
    assert found is not None
    legs, eyes = {"left leg", "right leg"}, {"left eye", "right eye"}
    assert found[0] == {"beak", "throat"} | legs | eyes
    assert found[1] == {"beak", "throat"} | legs | eyes
    assert found[4] == found[5] == {"beak"} | legs, "only the look-alikes that are there count"
    assert telling_parts(labels[:5]) == (*found[:4], frozenset()), "a species without any has nothing to tell"
    assert set().union(*BEARERS.values()) < set(PARTS)
    for others in (labels[1:], [*labels[:5], "Auk"], [f"Auk {number}" for number in range(500)]):
        assert telling_parts(others) is None


# ---- a picture


@pytest.mark.parametrize("mark", [mark for mark in MARKS if mark != "beak"])  # another beak is another outline
def test_a_mark_changes_the_picture_at_its_own_part_and_nowhere_else(mark: str) -> None:
    size = 96
    for value, seed in itertools.product(MARKS[mark][1:], (1, 2)):
        plain = draw_bird(PLAIN, size=size, rng=np.random.default_rng(seed))
        marked = draw_bird(dataclasses.replace(PLAIN, **{mark: value}), size=size, rng=np.random.default_rng(seed))
        assert (plain.box, plain.parts) == (marked.box, marked.parts)
        change = np.abs(np.asarray(plain.image, dtype=int) - np.asarray(marked.image, dtype=int)).max(axis=2)
        rows, columns = np.nonzero(change > 24)
        share = len(rows) / (plain.box[2] * plain.box[3])
        assert 0.002 < share < 0.12, f"{mark}={value} covers {share:.1%} of the box"
        places = np.array([at for name, at in plain.parts.items() if name in BEARERS[mark]])
        distances = np.hypot(columns[:, None] - places[:, 0], rows[:, None] - places[:, 1]).min(axis=1)
        assert np.median(distances) < 0.2 * size, f"{mark}={value} is not at its part"
        assert distances.max() < 0.5 * size, f"{mark}={value} is not local"


def test_beaks_differ_in_shape() -> None:
    widths = {
        beak: draw_bird(dataclasses.replace(PLAIN, beak=beak), size=96, rng=np.random.default_rng(0)).parts
        for beak in MARKS["beak"]
    }
    reach = {beak: np.hypot(*np.subtract(at["beak"], at["forehead"])) for beak, at in widths.items()}
    assert reach["cone"] < reach["needle"]
    assert reach["cone"] < reach["sickle"]


def test_only_the_side_that_faces_us_is_visible() -> None:
    seen = set()
    for seed in range(12):
        parts = draw_bird(PLAIN, size=48, rng=np.random.default_rng(seed)).parts
        side = "right" if parts["beak"][0] > parts["tail"][0] else "left"
        seen.add(side)
        hidden = {"right": "left", "left": "right"}[side]
        assert set(PARTS) - set(parts) == {f"{hidden} eye", f"{hidden} wing"}
        assert parts["crown"][1] < parts[f"{side} eye"][1] < parts["throat"][1] < parts[f"{side} leg"][1]
    assert seen == {"left", "right"}


def test_the_eye_is_where_the_parts_say() -> None:
    for seed in range(6):
        picture = draw_bird(dataclasses.replace(PLAIN, eye="ring"), size=224, rng=np.random.default_rng(seed))
        x, y = next(at for name, at in picture.parts.items() if name.endswith("eye"))
        pixels = np.asarray(picture.image, dtype=int).sum(axis=2)
        assert pixels[y, x] < 220, "the pupil is black"
        ring = [pixels[y + dy, x + dx] for dx, dy in ((-10, 0), (10, 0), (0, -10), (0, 10))]
        assert min(ring) > 400, "the ring around it is white"


@pytest.mark.parametrize("size", [32, 64, 224])
def test_the_box_holds_the_bird_and_measures_about_its_size(size: int) -> None:
    for seed in range(10):
        picture = draw_bird(all_species()[seed], size=size, rng=np.random.default_rng(seed))
        left, top, width, height = picture.box
        assert 0 <= left < left + width <= picture.image.width
        assert 0 <= top < top + height <= picture.image.height
        assert 0.85 * size <= max(width, height) <= 1.25 * size
        assert picture.image.width != picture.image.height
        assert picture.image.width * picture.image.height > 1.3 * width * height, "cropping must matter"
        for x, y in picture.parts.values():
            assert left <= x < left + width
            assert top <= y < top + height


def test_every_draw_is_decided_by_the_generator() -> None:
    one, again, other = (
        np.asarray(draw_bird(PLAIN, size=64, rng=np.random.default_rng(seed)).image).tobytes() for seed in (3, 3, 4)
    )
    assert one == again
    assert one != other


def test_frames_nest_and_invert() -> None:
    frame = Frame.upright(x=10, y=20, scale=5, mirrored=True).child(1, 2, 30, (1.0, 0.8))
    x, y = frame.place([(0.3, -0.4)])[0]
    assert np.allclose(frame.inverse(np.array([x]), np.array([y])), [[0.3], [-0.4]])
    assert np.allclose(Frame.upright(x=10, y=20, scale=5)(1, 1), (15, 15))
    assert np.allclose(Frame.upright(x=0, y=0, scale=1).child(0, 0, 90)(1, 0), (0, -1)), "anticlockwise, y up"


def test_shapes_are_anti_aliased_and_stay_inside_their_clip() -> None:
    canvas = Canvas((20, 20), factor=3, ground=(0, 0, 0))
    canvas.paint(ellipse(10, 10, 6, 6), (255, 0, 0))
    canvas.paint(ellipse(16, 10, 6, 6), (0, 0, 255), clip=canvas.coverage.copy(), mark=True)
    colour, coverage = canvas.finish()
    cover = np.asarray(coverage)
    assert cover.sum() / 255 == pytest.approx(np.pi * 36, rel=0.04)
    assert ((cover > 0) & (cover < 255)).any(), "the rim is partly covered"
    assert colour[10, 14, 2] == 255, "the mark is painted inside"
    assert colour[10, 18, 2] == 0, "and nothing outside"
    canvas.paint(ellipse(-50, -50, 6, 6), (0, 255, 0))  # off the canvas: nothing to do


# ---- on disk


def test_the_folder_is_in_cubs_format(birds: Path) -> None:
    rows = {path.name: path.read_text().splitlines() for path in birds.rglob("*.txt")}
    assert rows["classes.txt"][0] == "1 001.Red_crowned_Sicklebill"
    assert rows["images.txt"][8] == "9 002.Golden_throated_Sicklebill/Golden_throated_Sicklebill_0001.jpg"
    assert rows["image_class_labels.txt"][7:9] == ["8 1", "9 2"]
    assert [row.split()[1] for row in rows["train_test_split.txt"][:8]] == ["1"] * 6 + ["0"] * 2
    assert rows["parts.txt"][6] == "7 left eye"
    assert len(rows["part_locs.txt"]) == 24 * 15
    for row in rows["bounding_boxes.txt"]:
        assert re.fullmatch(r"\d+ \d+\.0 \d+\.0 \d+\.0 \d+\.0", row)
    for row in rows["part_locs.txt"]:
        assert re.fullmatch(r"\d+ \d+ (\d+\.0 \d+\.0 1|0\.0 0\.0 0)", row)
    for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt"):
        assert [row.split()[0] for row in rows[name]] == [str(i) for i in range(1, 25)]
    readme = (birds / "README.txt").read_text()
    assert "synthetic" in readme
    assert re.search(r"seed +5\b", readme)


def test_pictures_are_whole_jpegs_with_full_colour_resolution(birds: Path) -> None:
    paths = sorted((birds / "images").rglob("*.jpg"))
    assert len(paths) == 24
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert image.layer[0][1:3] == image.layer[1][1:3] == (1, 1), "chroma is not subsampled"
            image.load()


def test_the_cub_reader_reads_what_was_drawn(birds: Path) -> None:
    dataset = open_dataset(birds)
    assert dataset.format == "cub"
    assert len(dataset.labels) == 3
    assert len(dataset.parts["test"]) == 6
    assert sum(len(dataset.parts[part]) for part in DIVISION) == 24
    sample = next(
        sample for sample in dataset.parts["test"] if sample.key.endswith("Golden_throated_Sicklebill_0008.jpg")
    )
    picture = draw_bird(all_species()[1], size=40, rng=np.random.default_rng([5, 2, 8]))
    assert sample.box == picture.box
    assert {name: (x, y) for name, x, y in sample.landmarks} == picture.parts


def test_the_number_of_workers_changes_nothing_and_the_seed_everything(birds: Path, tmp_path: Path) -> None:
    heard: list[int] = []
    write_birds(tmp_path / "two", TINY, workers=2, tick=heard.append)
    assert digests(tmp_path / "two") == digests(birds)
    assert sum(heard) == TINY.images
    write_birds(tmp_path / "seed", dataclasses.replace(TINY, seed=6))
    other, same = digests(tmp_path / "seed"), digests(birds)
    assert not any(other[name] == same[name] for name in other if name.endswith(".jpg"))


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cub_writer, "draw_bird", full)
    with pytest.raises(KeyboardInterrupt):
        write_birds(tmp_path / "set", TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFull, match="no space left"):
        write_birds(tmp_path / "set", TINY)
    assert list(tmp_path.iterdir()) == []


def test_drawing_processes_die_with_their_parent(tmp_path: Path) -> None:
    """Killed beyond any clean-up, the command leaves no process behind that waits for work for ever."""
    command = [sys.executable, "-m", "fieldmark", "data", "make", str(tmp_path / "set"), "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        workers: set[int] = set()
        deadline = time.monotonic() + 30
        while len(workers) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
            if next(tmp_path.glob(".*.tmp/images/*/*.jpg"), None):  # they draw, so they are up
                workers = children_of(running.pid)
        running.kill()
    assert len(workers) >= 2
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def is_running(pid: int) -> bool:
    """A zombie that nobody has buried yet does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid: int) -> set[int]:
    return {
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    }


def test_an_existing_folder_is_replaced_only_when_told_and_only_if_it_is_a_set(birds: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    small = BirdSet(species=2, size=32, images_train=4, images_test=1)
    write_birds(folder, small)
    before = digests(folder)
    with pytest.raises(OptionError, match="exists already"):
        write_birds(folder, TINY)
    assert digests(folder) == before
    write_birds(folder, TINY, force=True)
    assert digests(folder) == digests(birds)
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(OptionError, match="does not replace"):
        write_birds(home, small, force=True)
    assert (home / "thesis.txt").read_text() == "years of work"


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("option", "value", "valid"),
    [("--species", 1, "2 to 400"), ("--species", 401, "2 to 400"), ("--size", 31, "32 to 1024"),
     ("--size", 1025, "32 to 1024"), ("--images-train", 3, "4 to"), ("--images-test", 0, "1 to"),
     ("--seed", -1, "0 to"), ("--workers", -1, "1 or more")],
)  # fmt: skip
def test_values_out_of_range_end_in_one_sentence(
    option: str, value: int, valid: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, sentence = fieldmark_fails("data", "make", tmp_path / "set", option, value, capsys=capsys)
    assert code == 2
    assert f"{option} {value} is out of range" in sentence
    assert valid in sentence
    assert list(tmp_path.iterdir()) == []


def test_drawing_loads_no_torch() -> None:
    code = "import sys, training.data.cli; print([m for m in ('torch', 'sklearn', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


# ---- the contact sheet


def test_a_sheet_shows_every_class_before_any_twice(birds: Path) -> None:
    dataset = open_dataset(birds)
    assert [sample.label for sample in choose(dataset, 3)] == [0, 1, 2]
    assert [sample.label for sample in choose(dataset, 2)] == [0, 1]
    assert [sample.label for sample in choose(dataset, 5)] == [0, 0, 1, 1, 2]
    assert len(choose(dataset, 1000)) == len(dataset.parts["train"])
    many = dataclasses.replace(
        dataset, labels=tuple(map(str, range(9))),
        parts={"train": tuple(Sample(key=str(i), path=Path(str(i)), label=i, box=None) for i in range(9))},
    )  # fmt: skip
    assert [sample.label for sample in choose(many, 3)] == [0, 3, 6]


def test_show_writes_a_sheet_and_says_what_is_there(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "sheet.png"
    with pytest.raises(SystemExit) as ended:
        fieldmark.main(["data", "show", str(birds), "--out", str(out), "--rows", "2", "--columns", "4", "--json"])
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "cub"
    assert told["classes"] == 3
    assert sum(told["images"].values()) == 24
    with Image.open(out) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width == 2 * 28 + 4 * 192 + 3 * 16
        plain = np.asarray(sheet.convert("RGB"))
    dataset = open_dataset(birds)
    assert draw_sheet(dataset, out, rows=2, columns=4, parts=True) == 8
    with Image.open(out) as sheet:
        assert sheet.height > plain.shape[0], "the legend is below"
        marked = np.asarray(sheet.convert("RGB"))[: plain.shape[0] - 28]
    assert (marked != plain[:-28]).any(), "the parts are marked"


def test_a_tile_shows_the_box_undistorted_with_its_landmarks_in_place(tmp_path: Path) -> None:
    pixels = np.zeros((100, 200, 3), dtype=np.uint8)
    pixels[40:44, 120:124] = 255  # a white square around (122, 42)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    marks = (("spot", 122.0, 42.0), ("elsewhere", 5.0, 5.0))
    sample = Sample(key="a", path=tmp_path / "a.png", label=0, box=(100.0, 30.0, 60.0, 20.0), landmarks=marks)
    tile = look_at(sample)
    (name, x, y), *others = tile.landmarks
    assert (name, others) == ("spot", [])
    white = np.argwhere(np.asarray(tile.image)[..., 0] > 127)
    assert np.allclose(white.mean(axis=0), (y, x), atol=2)
    height, width = white.max(axis=0) - white.min(axis=0)
    assert abs(int(height) - int(width)) <= 1, "a square stays a square"


@pytest.mark.parametrize("shape", [(300, 20), (20, 300), (8, 8)])
def test_a_tile_of_a_whole_image_keeps_its_shape(shape: tuple[int, int], tmp_path: Path) -> None:
    height, width = shape
    image = Image.new("RGB", (width, height), (255, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6  # stored lying on its side
    image.save(tmp_path / "a.jpg", exif=exif)
    tile = look_at(Sample(key="a", path=tmp_path / "a.jpg", label=0, box=None))
    red = np.argwhere(np.asarray(tile.image)[..., 1] < 60)
    across, down = red.max(axis=0)[1] - red.min(axis=0)[1] + 1, red.max(axis=0)[0] - red.min(axis=0)[0] + 1
    assert across / down == pytest.approx(height / width, rel=0.1), "upright, so width and height change places"


def test_a_sheet_of_names_beyond_ascii(birds: Path, tmp_path: Path) -> None:
    dataset = dataclasses.replace(open_dataset(birds), labels=("Müller's Drossel", "日本の鳥", "[bold]"))
    assert draw_sheet(dataset, tmp_path / "sheet.png", rows=1, columns=3) == 3
    with Image.open(tmp_path / "sheet.png") as sheet:
        titles = np.asarray(sheet.convert("L"))[28 + 50 + 192 + 4 :, :]
    for place in range(3):
        assert (titles[:, 28 + place * 208 :][:, :192] < 128).any(), "every picture has a title"


def test_titles_fit_and_keep_their_beginning() -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(14)
    assert wrap("Collared Finch", font, 192) == ["Collared Finch"]
    long = wrap("Volkswagen Golf Hatchback 1991 with every extra that there ever was", font, 192)
    assert len(long) == 2
    assert long[0].startswith("Volkswagen Golf")
    assert long[1].endswith("...")
    for text in (*long, *wrap("x" * 500, font, 192), *wrap("ürgh " * 50, font, 192)):
        assert 0 < font.getlength(text) <= 192
    assert wrap("", font, 192) == []


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--rows", "0"], "--rows 0 is out of range"), (["--columns", "51"], "from 1 to 50"),
     (["--out", "sheet.txt"], "not a .png file"), (["--out", "folder.png"], "is a folder")],
)  # fmt: skip
def test_a_sheet_that_cannot_be_drawn_ends_in_one_sentence(
    arguments: list[str], sentence: str, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    code, said = fieldmark_fails("data", "show", birds, *arguments, capsys=capsys)
    assert code == 2
    assert sentence in said
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.hostile
def test_a_sheet_names_the_image_it_cannot_read(birds: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    broken = Sample(key="broken.jpg", path=tmp_path / "broken.jpg", label=0, box=None)
    dataset: Dataset = dataclasses.replace(open_dataset(birds), parts={"train": (broken,)})
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        draw_sheet(dataset, tmp_path / "sheet.png")
    with pytest.raises(OptionError, match="no part locations"):
        draw_sheet(dataset, tmp_path / "sheet.png", parts=True)
    assert not (tmp_path / "sheet.png").exists()
