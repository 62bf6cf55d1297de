"""manifest.json: pinned byte for byte, and nothing else is taken for one."""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle import Bundle, ImageSpec, Manifest, tensors, write_bundle
from bundle.errors import BundleCorrupt, BundleError, BundleUnsupported, ExportError
from bundle.folder import sign_bundle
from bundle.manifest import (
    DetectorInfo,
    Difference,
    FileEntry,
    NetworkInfo,
    Parity,
    PrototypeInfo,
    Quality,
    parse_manifest,
)
from bundle.records import KEY
from bundle.tensors import TensorSpec
from tests.bundle import golden
from tests.keys import write_keys

TEXT = (golden.GOLDEN / "manifest.json").read_text(encoding="utf-8")
MANIFEST = parse_manifest(TEXT, "manifest.json")


def canonical(document: Any) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"


# Pinned


def test_golden_bundle_opens_with_its_id() -> None:
    bundle = Bundle.open(golden.GOLDEN)
    assert bundle.bundle_id == golden.BUNDLE_ID
    assert bundle.manifest == Manifest(**golden.fields(), files=MANIFEST.files)
    assert {name: bundle.file(name).read_bytes() for name in bundle.manifest.files} == golden.FILES


def test_the_id_is_the_files_own_sha256() -> None:
    """So anybody can compute it: sha256sum manifest.json."""
    assert hashlib.sha256((golden.GOLDEN / "manifest.json").read_bytes()).hexdigest() == golden.BUNDLE_ID


def test_the_same_content_is_written_as_the_same_bytes(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", golden.stage(tmp_path / "staged"), golden.fields())
    assert bundle.bundle_id == golden.BUNDLE_ID
    written = {path.relative_to(bundle.path): path.read_bytes() for path in bundle.path.rglob("*") if path.is_file()}
    pinned = {path.relative_to(golden.GOLDEN): path.read_bytes() for path in golden.GOLDEN.rglob("*") if path.is_file()}
    assert written == pinned


def test_the_id_is_computed_once() -> None:
    """Every batch of predictions carries it."""
    manifest = parse_manifest(TEXT, "manifest.json")
    assert manifest.bundle_id is manifest.bundle_id


def test_the_id_follows_every_part_of_the_manifest() -> None:
    ids = {MANIFEST.bundle_id}
    changes: list[dict[str, Any]] = [
        {"name": "other"},
        {"labels": MANIFEST.labels[::-1]},
        {"image": replace(MANIFEST.image, min_side=17)},
        {"training": MANIFEST.training | {"seed": 1}},
        {"files": MANIFEST.files | {"more": FileEntry(bytes=0, sha256="0" * 64)}},
        {"networks": {"full": MANIFEST.networks["full"]}},
        {"prototypes": MANIFEST.prototypes[:2]},
    ]
    ids |= {replace(MANIFEST, **change).bundle_id for change in changes}
    assert len(ids) == len(changes) + 1


def test_the_main_network_is_full_unless_training_found_another_better() -> None:
    """Bundles of before say nothing, and mean what they always meant."""
    assert MANIFEST.main_network == "full"
    alone = replace(MANIFEST, networks={"attention": MANIFEST.networks["attention"]})
    assert alone.main_network == "attention"
    told = replace(MANIFEST, training={"default_network": "attention"})
    assert parse_manifest(told.to_json(), "manifest.json").main_network == "attention"


@pytest.mark.parametrize("default", ["", "spiral", None, 0, ["full"], {"full": 1}])
def test_a_main_network_that_is_not_there_is_refused(default: Any) -> None:
    document = json.loads(TEXT)
    document["training"]["default_network"] = default
    with pytest.raises(BundleCorrupt, match="default_network names no network"):
        parse_manifest(canonical(document), "manifest.json")


# Round trip

names = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)
paths = st.lists(st.sampled_from(["a", "B", "ä", "x y", "木", "file.bin", "..."]), min_size=1, max_size=4).map("/".join)
entries = st.builds(
    FileEntry, bytes=st.integers(0, 2**30), sha256=st.text("0123456789abcdef", min_size=64, max_size=64)
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
free = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | numbers | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    name=names,
    labels=st.lists(names, min_size=3, max_size=3).map(tuple),
    files=st.dictionaries(paths, entries, max_size=4),
    training=st.dictionaries(names, free, max_size=4),
    alpha=st.floats(0, 1, exclude_min=True, exclude_max=True),
    difference=st.floats(0, 1e300),
    share=st.floats(0, 1),
)
def test_any_manifest_comes_back_equal(
    name: str,
    labels: tuple[str, ...],
    files: dict[str, FileEntry],
    training: dict[str, Any],
    alpha: float,
    difference: float,
    share: float,
) -> None:
    full = MANIFEST.networks["full"]
    numbers = Difference(max_abs=difference, mean_abs=share, max_rel=difference, mean_rel=0.0)
    parity = replace(full.parity, argmax_agreement=share, outputs={tensors.P_VALUE: numbers})
    manifest = replace(
        MANIFEST,
        name=name,
        labels=labels,
        files=MANIFEST.files | files,
        training=training,
        networks={"full": replace(full, detector=replace(full.detector, alpha=alpha), parity=parity)},
    )
    again = parse_manifest(manifest.to_json(), "here")
    assert again == manifest
    assert again.bundle_id == manifest.bundle_id


# Refused

Change = Callable[[dict[str, Any]], object]


def full(document: dict[str, Any]) -> dict[str, Any]:
    return document["networks"]["full"]


def output(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(tensor for tensor in full(document)["outputs"] if tensor["name"] == name)


CHANGES: dict[str, tuple[Change, str]] = {
    "unknown key": (lambda d: d.update(colour="red"), "document: unknown key 'colour'"),
    "missing key": (lambda d: d.pop("labels"), "missing key 'labels'"),
    "unknown nested key": (lambda d: full(d)["detector"].update(beta=1), r"networks.full.detector: unknown key 'beta'"),
    "schema as bool": (lambda d: d.update(schema=True), "no schema number"),
    "schema as float": (lambda d: d.update(schema=1.0), "no schema number"),
    "schema as text": (lambda d: d.update(schema="1"), "no schema number"),
    "no schema": (lambda d: d.pop("schema"), "no schema number"),
    "labels not strings": (lambda d: d.update(labels=[1, 2, 3]), r"labels\[0\]: expected str, found int"),
    "labels not a list": (lambda d: d.update(labels="abc"), "labels: expected a list, found str"),
    "one label": (lambda d: d.update(labels=["a"]), "fewer than two labels"),
    "empty label": (lambda d: d["labels"].__setitem__(0, ""), "empty or holds control characters"),
    "label that writes over the terminal": (
        lambda d: d["labels"].__setitem__(0, "robin\x1b[2J"),
        r"control characters: 'robin\\x1b",
    ),
    "label of two lines": (lambda d: d["labels"].__setitem__(0, "a\nb"), "control characters"),
    "fewer labels than outputs": (lambda d: d["labels"].pop(), r"probabilities: expected the shape \[2\]"),
    "empty name": (lambda d: d.update(name=""), "empty"),
    "alpha 2": (lambda d: full(d)["detector"].update(alpha=2.0), "alpha 2.0 is not between 0 and 1"),
    "alpha 0": (lambda d: full(d)["detector"].update(alpha=0.0), "alpha 0.0"),
    "alpha true": (lambda d: full(d)["detector"].update(alpha=True), "alpha: expected float, found bool"),
    "no layers": (lambda d: full(d)["detector"].update(layers=[]), "at least one layer"),
    "layers unlike layer_scores": (
        lambda d: full(d)["detector"]["layers"].append("layer5"),
        r"full.layer_scores: expected the shape \[3\]",
    ),
    "unknown calibration": (
        lambda d: full(d)["detector"].update(calibration="per class"),
        "calibration 'per class' is neither 'marginal' nor 'per-class'",
    ),
    "no calibration": (lambda d: full(d)["detector"].update(calibration_n=0), "calibration_n is not positive"),
    "no networks": (lambda d: d.update(networks={}), "no networks"),
    "unknown network": (lambda d: d["networks"].update(third=full(d)), "unknown network 'third'"),
    "model not listed": (lambda d: full(d).update(model="full/other.onnx"), "'full/other.onnx', which is not in files"),
    "detector not listed": (lambda d: full(d)["detector"].update(file="gone.npz"), "'gone.npz', which is not in files"),
    "image size unlike the input": (lambda d: d["image"].update(height=225), r"image: expected the shape \[225,"),
    "image size out of range": (lambda d: d["image"].update(height=10**6), "outside 8..4096"),
    "image limits": (lambda d: d["image"].update(max_bytes=0), "limits must be positive"),
    "unknown resize": (lambda d: d["image"].update(resize="crop"), "unknown resize 'crop'"),
    "no input": (lambda d: full(d).update(inputs=[]), "full: expected the one input 'image'"),
    "two inputs": (lambda d: full(d)["inputs"].append(full(d)["inputs"][0]), "expected the one input"),
    "missing output": (lambda d: full(d)["outputs"].pop(), "full: expected the outputs probabilities"),
    "outputs in another order": (lambda d: full(d)["outputs"].reverse(), "full: expected the outputs probabilities"),
    "wrong type": (lambda d: output(d, "p_value").update(dtype="FP16"), "full.p_value: expected the type FP32"),
    "wrong rank": (lambda d: output(d, "p_value").update(shape=[1]), "full.p_value: expected 0 sizes"),
    "no pixel of attention": (lambda d: output(d, "attention").update(shape=[7, 0]), "each at least 1"),
    "t twice": (lambda d: output(d, "prototype_indices").update(shape=[4]), "have different shapes"),
    "parity of nothing": (
        lambda d: full(d)["parity"]["outputs"].update(elsewhere=full(d)["parity"]["outputs"]["probabilities"]),
        "'elsewhere', which is no output",
    ),
    "parity on no image": (lambda d: full(d)["parity"].update(images=0), "parity needs at least one image"),
    "agreement of 200 %": (
        lambda d: full(d)["parity"].update(flag_agreement=2.0),
        "flag_agreement is 2.0, and",
    ),
    "negative difference": (
        lambda d: full(d)["parity"]["outputs"]["probabilities"].update(mean_abs=-1.0),
        "a difference is negative",
    ),
    "unknown precision": (
        lambda d: full(d).update(precision="fp8"),
        "'fp8' is none of fp32, fp16, bf16, int8",
    ),
    "narrow without quality": (lambda d: full(d).update(quality={}), "quality is not of 'fp32' and the network's own"),
    "fp32 with a quality": (
        lambda d: full(d).update(precision="fp32"),
        "quality is not of 'fp32' and the network's own",
    ),
    "AUROC of 2": (lambda d: full(d)["quality"]["int8"]["auroc"].update({"fgsm-8": 2.0}), "fgsm-8 is 2.0, and a share"),
    "accuracy of nothing": (lambda d: full(d)["quality"]["int8"].update(images=0), "quality needs at least one image"),
    "prototype of no label": (lambda d: d["prototypes"][2].update(label=3), r"prototypes\[2\] has label 3"),
    "negative label": (lambda d: d["prototypes"][0].update(label=-1), "cannot be negative"),
    "prototype image not listed": (lambda d: d["prototypes"][0].update(image="a.png"), "'a.png', which is not in"),
    "box of three": (lambda d: d["prototypes"][0]["box"].pop(), "box is not left, top, right, bottom"),
    "box inside out": (lambda d: d["prototypes"][0].update(box=[9, 0, 3, 5]), "box is not left"),
    "full without prototypes": (lambda d: d.update(prototypes=[]), "'full' needs prototypes"),
    "short hash": (lambda d: d["files"]["full/model.onnx"].update(sha256="ab"), "not 64 hexadecimal digits"),
    "upper-case hash": (lambda d: d["files"]["full/model.onnx"].update(sha256="A" * 64), "not 64 hexadecimal digits"),
    "negative size": (lambda d: d["files"]["full/model.onnx"].update(bytes=-1), "cannot have -1 bytes"),
    "size as bool": (lambda d: d["files"]["full/model.onnx"].update(bytes=True), "expected int, found bool"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_manifest_that_makes_no_sense_is_refused(change: str) -> None:
    alter, sentence = CHANGES[change]
    document = json.loads(TEXT)
    alter(document)
    with pytest.raises(BundleCorrupt, match=sentence) as caught:
        parse_manifest(canonical(document), "some/manifest.json")
    assert "some/manifest.json" in str(caught.value)
    assert str(caught.value).endswith("Fetch or export the bundle again.")


PATHS = ["../outside", "a/../../b", "/etc/passwd", "./a", "a//b", "a/", "a/.", "", ".", "..", "a\\b", "a\nb", "a\0b"]
PATHS += ["manifest.json", "manifest.sig", "manifest.sig/x", "manifest.json/x", "/".join("z" * 17), "./manifest.json"]
PATHS += ["x" * 256, "/".join("y" * 200 for _ in range(6)), "\u202e/\x9b"]


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_leave_the_bundle_or_have_two_names_are_refused(path: str) -> None:
    document = json.loads(TEXT)
    document["files"][path] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    with pytest.raises(BundleCorrupt, match="unsafe path"):
        parse_manifest(canonical(document), "manifest.json")


@pytest.mark.parametrize(
    "path", ["...", "..a/b", "a b", "-rf", "~", "$(id)", "x" * 255, "ü" * 127, "full/manifest.sig", "/".join("z" * 16)]
)
def test_odd_paths_inside_the_bundle_are_fine(path: str) -> None:
    document = json.loads(TEXT)
    document["files"][path] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    assert path in parse_manifest(canonical(document), "manifest.json").files


@pytest.mark.parametrize("schema", [0, 1, 3, -1, 10**18])
def test_another_schema_is_unsupported_whatever_else_it_holds(schema: int) -> None:
    hint = "Upgrade fieldmark" if schema > 2 else "Export the run again"
    with pytest.raises(BundleUnsupported, match=f"has schema {schema}, and this version reads schema 2. {hint}"):
        parse_manifest(canonical({"schema": schema, "new": {"things": [1, 2]}}), "manifest.json")


TEXTS = {
    "indented": json.dumps(json.loads(TEXT), indent=2, sort_keys=True, ensure_ascii=False) + "\n",
    "no newline at the end": TEXT[:-1],
    "two newlines": TEXT + "\n",
    "windows newline": TEXT[:-1] + "\r\n",
    "escaped letters": json.dumps(json.loads(TEXT), sort_keys=True, separators=(",", ":")) + "\n",
    "another order": '{"name":"golden birds",' + TEXT[1:].replace(',"name":"golden birds"', "", 1),
    "float written otherwise": TEXT.replace('"alpha":0.05', '"alpha":5e-2'),
    "float as integer": TEXT.replace('"mean_rel":0.0}', '"mean_rel":0}'),
    "default left out": TEXT.replace('"interpolation":"bilinear",', ""),
}


@pytest.mark.parametrize("form", TEXTS)
def test_only_the_canonical_form_is_a_manifest(form: str) -> None:
    assert json.loads(TEXTS[form])["name"] == "golden birds"
    assert TEXTS[form] != TEXT
    with pytest.raises(BundleCorrupt, match="canonical form"):
        parse_manifest(TEXTS[form], "manifest.json")


NOT_JSON = {
    "empty": ("", "not valid JSON"),
    "cut": (TEXT[:-30], "not valid JSON"),
    "byte order mark": ("\ufeff" + TEXT, "not valid JSON"),
    "NaN": (TEXT.replace('"alpha":0.05', '"alpha":NaN'), "NaN is not finite"),
    "Infinity": (TEXT.replace('"seed":0', '"seed":-Infinity'), "-Infinity is not finite"),
    "1e999": (TEXT.replace('"seed":0', '"seed":1e999'), "1e999 is not finite"),
    "65 bits": (TEXT.replace('"seed":0', f'"seed":{2**63}'), "does not fit in 64 bits"),
    "a million digits": (TEXT.replace('"seed":0', f'"seed":{"9" * 10**6}'), "does not fit in 64 bits"),
    "key twice": (TEXT.replace('"seed":0', '"seed":0,"seed":1'), "a key appears twice"),
    "top-level key twice": (TEXT.replace('"schema":2', '"schema":1,"schema":2'), "a key appears twice"),
    "deep lists": (TEXT.replace('"seed":0', f'"seed":{"[" * 100_000}{"]" * 100_000}'), "recursion"),
    "31 lists": (TEXT.replace('"seed":0', f'"seed":{"[" * 31}{"]" * 31}'), "nested more than 32 deep"),
    "half a surrogate pair": (TEXT.replace('"seed":0', '"seed":"\\ud800"'), "not Unicode"),
    "half a surrogate pair as a label": (TEXT.replace("Grünspecht", "\\udfff"), "control characters"),
    "a list": ("[]\n", "no schema number"),
    "a number": ("1\n", "no schema number"),
}


def test_lists_may_be_as_deep_as_the_limit() -> None:
    assert parse_manifest(TEXT.replace('"seed":0', f'"seed":{"[" * 30}{"]" * 30}'), "manifest.json")


@pytest.mark.parametrize("text", NOT_JSON)
def test_what_is_no_json_document_of_ours(text: str) -> None:
    assert NOT_JSON[text][0] != TEXT
    with pytest.raises(BundleCorrupt, match=NOT_JSON[text][1]) as caught:
        parse_manifest(NOT_JSON[text][0], "manifest.json")
    assert len(str(caught.value)) < 500


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_any_damage_to_the_text_is_a_bundle_error_or_another_id(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(TEXT) - 1))
    length = data.draw(st.integers(0, 3))
    new = data.draw(st.text(max_size=3) | st.sampled_from(['"', "{", "}", "[", "]", ",", ":", "0", "1e9", "-", "null"]))
    text = TEXT[:place] + new + TEXT[place + length :]
    try:
        manifest = parse_manifest(text, "manifest.json")
    except BundleError:
        return
    assert (manifest.bundle_id == golden.BUNDLE_ID) == (text == TEXT)


# Writing


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": ("a", "b\n", "c")}, "control characters"),
        ({"training": {"loss": float("nan")}}, "no bundle can be written at .*: Out of range float values"),
        ({"networks": {}}, "no networks"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        write_bundle(tmp_path / "bundle", golden.stage(tmp_path / "staged"), golden.fields() | change)
    assert not (tmp_path / "bundle").exists()


# The specification


SPECIFICATION = (golden.GOLDEN.parents[2] / "docs" / "bundle.md").read_text(encoding="utf-8")


def test_the_specification_names_every_field() -> None:
    for record in (
        Manifest,
        ImageSpec,
        NetworkInfo,
        DetectorInfo,
        Parity,
        Difference,
        Quality,
        PrototypeInfo,
        FileEntry,
        TensorSpec,
    ):
        for field in dataclasses.fields(record):
            key = field.metadata.get(KEY, field.name)
            assert re.search(rf'[`"]{key}[`"]', SPECIFICATION), f"{record.__name__}.{key}"
    for name, dtype in tensors.DTYPES.items():
        assert re.search(rf"\| `{name}`.* \| {dtype} \|", SPECIFICATION), name


def test_the_specifications_verifier_agrees_with_ours(tmp_path: Path) -> None:
    """It is all that another program needs, so it must accept what we accept and refuse what we refuse."""
    (code,) = re.findall(r"```python\n(.*?)```", SPECIFICATION, flags=re.DOTALL)
    names: dict[str, Any] = {"__name__": "specification"}
    exec(code, names)
    assert names["verify"](golden.GOLDEN) == golden.BUNDLE_ID
    folder = Path(shutil.copytree(golden.GOLDEN, tmp_path / "bundle"))
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path, data in whole.items():
        for damaged in (data + b" ", data[:-1] + b"\x01" if data else b"x"):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"\w"):
                names["verify"](folder)
            with pytest.raises(BundleError):
                Bundle.open(folder)
        path.unlink()
        with pytest.raises((ValueError, OSError)):
            names["verify"](folder)
        path.write_bytes(data)
    for extra in ("extra", "full/weights.bin"):
        (folder / extra).touch()
        with pytest.raises(ValueError, match="unlisted"):
            names["verify"](folder)
        (folder / extra).unlink()
    private, public = write_keys(tmp_path)
    sign_bundle(folder, private)
    assert names["verify"](folder) == names["verify"](folder, public.read_bytes()) == golden.BUNDLE_ID
    for damaged in (b"", bytes(63), bytes(65)):
        (folder / "manifest.sig").write_bytes(damaged)
        with pytest.raises(ValueError, match="no signature"):
            names["verify"](folder)
    (folder / "manifest.sig").write_bytes(bytes(64))
    with pytest.raises(InvalidSignature):
        names["verify"](folder, public.read_bytes())
    (folder / "link").symlink_to("full")
    with pytest.raises(ValueError, match="no plain file"):
        names["verify"](folder)
