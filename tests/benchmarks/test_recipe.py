"""The ablation of the recipe for photographs: rows that can be trained, and a table of what is finished."""

import contextlib
import json
from pathlib import Path

import pytest

from benchmarks import recipe
from benchmarks.record import same_options
from bundle.errors import OptionError
from training.presets import preset


def test_every_row_is_a_preset_with_settings_that_differ_from_it() -> None:
    names = [row.name for row in recipe.ROWS]
    assert len(set(names)) == len({row.slug for row in recipe.ROWS}) == len(names)
    for row in recipe.ROWS:
        name = f"{row.system}-vgg16-96{'-fast' if row.fast else ''}"
        ours, changed = preset(name), preset(name, texts=row.settings)
        assert (changed != ours) == bool(row.settings), row.name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    share = {"right": 42, "of": 100, "share": 0.42, "interval": [0.33, 0.52]}
    (tmp_path / "probe.json").write_text(json.dumps({"penalty": 0.1, "validation": 0.385, "test": share}))
    ours, fast = "maxsep", next(row.slug for row in recipe.ROWS if row.fast)
    (tmp_path / ours).mkdir()
    record = {
        "config": {"epochs": 10},
        "results": {
            "validation": {"full": 0.5, "attention": 0.75},
            "outcome": [],
            "history": [{"seconds": 90.0}, {"seconds": 30.0}],
        },
    }
    (tmp_path / ours / "run.json").write_text(json.dumps(record))
    right = {"full": {"clean": "0110", "worst": "0110"}, "attention": {"clean": "1110", "worst": "1110"}}
    (tmp_path / f"{ours}.json").write_text(json.dumps({"right": right}))
    (tmp_path / "protopnet").mkdir()  # under way
    (tmp_path / fast).mkdir()
    (tmp_path / fast / "run.json").write_text(json.dumps(record))
    attacked = {head: {"clean": "0000", "pgd10-8": "0001", "worst": "0000"} for head in right}
    (tmp_path / f"{fast}.json").write_text(json.dumps({"right": right}))
    (tmp_path / f"{fast}.pgd10-8.json").write_text(json.dumps({"right": attacked}))
    return tmp_path


def test_an_attack_that_was_stopped_is_none_of_the_figures(folder: Path) -> None:
    before = recipe.collected(folder, "vgg16-96")
    (folder / "maxsep.pgd10-2.json.progress.json").write_text("{")
    assert recipe.collected(folder, "vgg16-96") == before


def test_what_is_finished_is_told_with_its_interval(folder: Path) -> None:
    result = recipe.collected(folder, "vgg16-96")
    row, _ = result["rows"]
    assert (row["row"], row["minutes"], row["epochs"]) == ("maxsep", 2.0, 10)
    assert row["test"]["attention"] == {"right": 3, "of": 4, "share": 0.75, "interval": [0.3006, 0.9544]}
    lines = recipe.table(result).splitlines()
    assert lines[2] == "| linear probe |  |  | 38.5 | 42.0 (33.0 to 52.0) |  |"
    assert lines[3] == "| maxsep | full | 10 | 50.0 | 50.0 (15.0 to 85.0) | 2 |"
    assert lines[4].startswith("| maxsep | attention | 10 | 75.0 | 75.0 ")
    assert lines[6].startswith("| adversarial: eps rises | attention | 10 | 75.0 | 75.0 (")  # not of fewer
    assert lines[-1] == "| adversarial: eps rises | attention | – | – | 25.0 (4.6 to 69.9) | – |"
    assert lines[8] == "| recipe, under attack | head | PGD 2 | APGD 2 | PGD 8 | APGD 8 |"


def test_an_ablation_is_not_mixed_with_that_of_other_photographs(folder: Path) -> None:
    """What is finished is not done again, so that another dataset would get these figures as its own."""
    given = {"weights": "imagenet", "backbone": "vgg16-96", "epochs": 4, "out": folder}
    (folder / "cars-vgg16-96").mkdir()
    (folder / "cars-vgg16-96" / "probe.json").touch()
    same_options(
        folder / "cars-vgg16-96" / "options.json", {"data": "photos", **{key: given[key] for key in list(given)[:3]}}
    )
    with pytest.raises(OptionError, match="holds results with data 'photos', not 'cars'"):
        recipe.bench(Path("cars"), **given, first=0, last=0)


def test_nothing_finished_is_no_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves the one that is there alone."""
    monkeypatch.setattr(recipe, "save", lambda *given: pytest.fail("saved"))
    given = {"weights": "imagenet", "backbone": "vgg16-96", "epochs": 4, "out": folder}
    (folder / "cars-vgg16-96").mkdir()
    (folder / "probe.json").rename(folder / "cars-vgg16-96" / "probe.json")
    with pytest.raises(OptionError, match=r"no row is finished in .*cars-vgg16-96"):
        recipe.bench(Path("cars"), **given, first=30, last=40)


def test_a_table_is_called_as_its_photographs_and_backbone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: dict[str, object] = {}
    monkeypatch.setattr(recipe, "save", saved.setdefault)
    monkeypatch.setattr(recipe, "put", saved.setdefault)
    moved = folder / "shop-vgg16-96"
    moved.mkdir()
    for path in [*folder.iterdir()]:
        if path != moved:
            path.rename(moved / path.name)
    given = {"weights": "imagenet", "backbone": "vgg16-96", "epochs": 4, "out": folder}
    with contextlib.suppress(TypeError):  # what is saved here has no path
        recipe.bench(Path("data/Shop"), **given, first=0, last=0)
    assert list(saved) == ["recipe_shop_vgg16-96", "recipe shop vgg16-96"]


def test_mistakes_are_told_before_anything_is_written(tmp_path: Path) -> None:
    given = {"backbone": "vgg16-96", "epochs": 4, "first": 0, "last": 0}
    with pytest.raises(OptionError, match=r"no weights file at typo\.pth"):
        recipe.bench(Path("photos"), **given, weights="typo.pth", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="is no folder"):
        recipe.bench(Path("photos"), **given, weights="imagenet", out=tmp_path / "file")
