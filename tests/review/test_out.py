"""Out of the review: what is written is what was decided, in forms that others read."""

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bundle import Bundle
from bundle.errors import OptionError
from review.out.export import FORMATS, Exported, export
from review.out.records import COLUMNS
from review.sources.quarantine import QuarantineSource
from review.sources.source import Stamp
from review.store.database import Database
from review.store.decisions import decide
from review.store.queue import Filter, get
from review.store.sample import draw

DECIDED = Filter(state="decided")


@pytest.fixture
def reviewed(database: Database) -> Database:
    decide(database, [41, 42], "attack", "ada", note="=HYPERLINK(1)")
    decide(database, [42], "attack", "bob", note="stripes")
    decide(database, [1], "clean", "ada")
    decide(database, [2], "clean", "ada")
    decide(database, [2], "attack", "bob")
    return database


def made(reviewed: Database, quarantine: Path, bundle: Bundle, format: str, out: Path) -> Exported:
    source = QuarantineSource(str(quarantine))
    return export(format, out, reviewed, source, bundle.manifest.image, DECIDED)


def test_a_csv_holds_a_line_an_item_and_no_formula(
    reviewed: Database, quarantine: Path, toy_bundle: Bundle, tmp_path: Path
) -> None:
    made(reviewed, quarantine, toy_bundle, "csv", tmp_path / "review.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "review.csv").read_text())))
    assert tuple(rows[0]) == COLUMNS
    assert sorted(row["decision"] for row in rows) == ["attack", "attack", "clean", "disputed"]
    (both,) = [row for row in rows if "bob: attack" in row["reviewers"] and row["decision"] == "attack"]
    assert both["reviewers"] == "ada: attack; bob: attack"
    assert both["note"] == "'=HYPERLINK(1); stripes"
    item = get(reviewed, 42)
    assert item is not None
    assert (float(both["p_value"]), both["label"], json.loads(both["layers"])) == (
        item["p_value"], item["label"], json.loads(item["layers"]),
    )  # fmt: skip


def test_parquet_holds_the_same_with_types(
    reviewed: Database, quarantine: Path, toy_bundle: Bundle, tmp_path: Path
) -> None:
    import pyarrow.parquet

    made(reviewed, quarantine, toy_bundle, "parquet", tmp_path / "review.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "review.parquet")
    assert table.column_names == list(COLUMNS)
    assert table.num_rows == 4
    assert table.schema.field("layers").type.value_type == "float"
    assert set(table["decision"].to_pylist()) == {"attack", "clean", "disputed"}


def test_fiftyone_gets_an_image_and_a_label_for_each(
    reviewed: Database, quarantine: Path, toy_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "fiftyone"
    made(reviewed, quarantine, toy_bundle, "fiftyone", out)
    found = json.loads((out / "labels.json").read_text())
    assert found["classes"] == ["attack", "clean", "disputed"]
    assert {path.stem for path in (out / "data").iterdir()} == set(found["labels"])
    attack = found["labels"]["00000042"]
    assert attack["label"] == "attack"
    assert attack["attributes"]["reviewers"] == "ada, bob"
    assert all(isinstance(value, (str, float)) for value in attack["attributes"].values())


def test_label_studio_gets_tasks_that_fit_their_interface(
    reviewed: Database, quarantine: Path, toy_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "label-studio"
    made(reviewed, quarantine, toy_bundle, "label-studio", out)
    tasks = json.loads((out / "tasks.json").read_text())
    assert len(tasks) == 4
    interface = ElementTree.parse(out / "labeling.xml").getroot()
    named = {each.get("name"): each for each in interface.iter() if each.get("toName")}
    choices = {each.get("value") for each in interface.iter("Choice")}
    for task in tasks:
        assert (out / task["data"]["image"].partition("?d=")[2]).is_file()
        for tag in interface.iter():
            if (value := tag.get("value", "")).startswith("$"):
                assert value[1:] in task["data"]
        for annotation in task["annotations"]:
            for each in annotation["result"]:
                assert each["to_name"] == named[each["from_name"]].get("toName")
                assert each["type"] == named[each["from_name"]].tag.lower()
            assert set(annotation["result"][0]["value"]["choices"]) <= choices


def test_label_studios_own_reader_takes_them(
    reviewed: Database, quarantine: Path, toy_bundle: Bundle, tmp_path: Path
) -> None:
    sdk = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    out = tmp_path / "label-studio"
    made(reviewed, quarantine, toy_bundle, "label-studio", out)
    interface = sdk.LabelInterface((out / "labeling.xml").read_text())
    interface.validate()
    for task in json.loads((out / "tasks.json").read_text()):
        annotations = task.pop("annotations")  # with them, the kit's `validate_task` forgets to pass them on
        assert interface.validate_task(task)
        assert annotations
        for annotation in annotations:
            assert interface.validate_annotation(annotation)
            (verdict, *_) = annotation["result"]
            other = {**annotation, "result": [{**verdict, "value": {"choices": ["guilty"]}}]}
            assert not interface.validate_annotation(other)


def test_fiftyones_own_importer_takes_them(
    reviewed: Database, quarantine: Path, toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The importer that `Dataset.from_dir` uses; the dataset itself would need a MongoDB."""
    monkeypatch.setenv("HOME", str(tmp_path))  # where it would write its settings
    monkeypatch.setenv("FIFTYONE_DO_NOT_TRACK", "true")
    fiftyone = pytest.importorskip("fiftyone", reason="FiftyOne is not installed: pip install fiftyone")
    out = tmp_path / "fiftyone"
    made(reviewed, quarantine, toy_bundle, "fiftyone", out)
    importer = fiftyone.types.FiftyOneImageClassificationDataset().get_dataset_importer_cls()(dataset_dir=str(out))
    with importer:
        assert importer.get_dataset_info() == {"classes": ["attack", "clean", "disputed"]}
        found = {int(Path(path).stem): label for path, _, label in importer}
    assert {number: label.label for number, label in found.items()} == {
        1: "clean", 2: "disputed", 41: "attack", 42: "attack",
    }  # fmt: skip
    item = get(reviewed, 42)
    assert item is not None
    assert (found[42].p_value, found[42].predicted, found[42].reviewers) == (item["p_value"], item["label"], "ada, bob")


def test_decided_attacks_are_a_family_as_the_attack_verb_writes_one(
    reviewed: Database, quarantine: Path, toy_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "attacks"
    made(reviewed, quarantine, toy_bundle, "attacks", out)
    rows = list(csv.DictReader((out / "index.csv").open()))
    assert [set(row) for row in rows] == [{"network", "attack", "path", "source", "label"}] * 2
    for row in rows:
        item = next(each for number in (41, 42) if (each := get(reviewed, number)) and each["key"] == row["source"])
        source = QuarantineSource(str(quarantine))
        assert (out / row["path"]).read_bytes() == source.read(item["image"].decode(), 10**6, Stamp())


def test_clean_images_of_a_random_sample_go_beside_them_and_no_others(
    reviewed: Database, quarantine: Path, toy_bundle: Bundle, tmp_path: Path
) -> None:
    """Item 1 was decided to be clean, but since it looked suspicious: only a sample that is decided whole will do."""
    sample = draw(reviewed, 3, "ada")
    with reviewed.reading() as connection:
        rows = connection.execute("SELECT item FROM sampled WHERE sample = ?", [sample.number]).fetchall()
    items = [row["item"] for row in rows]
    decide(reviewed, items[:2], "clean", "ada")
    made(reviewed, quarantine, toy_bundle, "attacks", tmp_path / "part")
    assert {row["attack"] for row in csv.DictReader((tmp_path / "part" / "index.csv").open())} == {"reviewed"}
    decide(reviewed, items[2:], "fault", "ada")
    made(reviewed, quarantine, toy_bundle, "attacks", tmp_path / "whole")
    found = [row for row in csv.DictReader((tmp_path / "whole" / "index.csv").open()) if row["attack"] == "clean"]
    keys = {item["key"] for number in items[:2] if (item := get(reviewed, number)) is not None}
    assert {row["source"] for row in found} == keys
    for row in found:
        assert (tmp_path / "whole" / row["path"]).is_file()


def test_what_is_gone_or_no_image_is_counted(
    reviewed: Database, quarantine: Path, toy_bundle: Bundle, tmp_path: Path
) -> None:
    first, second = get(reviewed, 1), get(reviewed, 41)
    assert first is not None
    assert second is not None
    (quarantine / first["image"].decode()).unlink()
    (quarantine / second["image"].decode()).write_bytes(b"<svg onload=alert(1)>")
    assert made(reviewed, quarantine, toy_bundle, "fiftyone", tmp_path / "out").missing == 2


def test_nothing_is_overwritten_and_no_format_invented(
    reviewed: Database, quarantine: Path, toy_bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(OptionError, match="exists already"):
        made(reviewed, quarantine, toy_bundle, "fiftyone", tmp_path / "there")
    with pytest.raises(OptionError, match=r"no format 'coco'.*csv, parquet"):
        made(reviewed, quarantine, toy_bundle, "coco", tmp_path / "coco")


@pytest.mark.parametrize("format", FORMATS)
def test_the_page_hands_out_the_same(client: Any, format: str, console: Any) -> None:
    decide(console.database, [41, 42], "attack", "ada")
    answer = client.get(f"/export/{format}?state=decided")
    assert answer.status_code == 200
    assert answer.headers["content-disposition"].startswith("attachment")
    if format in ("csv", "parquet"):
        assert len(answer.content) > 100
    else:
        names = zipfile.ZipFile(io.BytesIO(answer.content)).namelist()
        assert sum(name.endswith(".png") for name in names) == 2
