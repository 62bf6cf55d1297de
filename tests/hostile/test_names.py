"""Names with brackets, backslashes and control characters are text wherever they are printed, for every verb."""

import ast
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fieldmark
from bundle import Bundle
from bundle.errors import printable
from tests.keys import write_keys

pytestmark = pytest.mark.hostile

ROOT = Path(__file__).parent.parent.parent
ROOMS = ("serving", "scoring", "calibration", "review", "export", "robustness", "demo", "bundle", "training")
NAMES = ["birds[old]", "x[/]", "[/bold]", "back\\[b]\\", "esc\x1b[31m", "line\nbreak"]


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code and what was printed; a name must not have become anything else on the way."""
    code = 0
    try:
        fieldmark.main([str(word) for word in words])
    except SystemExit as ended:
        code = int(ended.code or 0)
    out, err = capsys.readouterr()
    text = out + err
    assert "Traceback" not in text
    assert "bug in fieldmark" not in text
    assert "\x1b" not in text
    return code, text


@pytest.fixture
def images(toy_images: np.ndarray, tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(4):
        Image.fromarray(toy_images[index]).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("name", ["x[/]", "[bold]\x1b[31m", "line\nbreak\\"])
def test_verbs_that_work(
    name: str,
    toy_bundle: Bundle,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    place = tmp_path / name.strip("/").replace("/", "-")
    shown = printable(str(place))
    source, bundle = place / "photos", place / "bundle"
    source.mkdir(parents=True)
    for path in images.iterdir():
        shutil.copy(path, source / f"{place.name}{path.name}")
    (source / f"{place.name}.png").write_bytes(b"no image")
    (source / "a.[b]").touch()
    shutil.copytree(toy_bundle.path, bundle)
    private, _ = write_keys(tmp_path)
    for words in (
        ("bundle", "verify", bundle),
        ("bundle", "sign", bundle, "--key", private),
        ("repository", bundle, "--out", place / "models"),
        ("drift", place / "scores", "--bundle", bundle, "--plot", place / "drift.png"),
    ):
        if words[0] == "drift":
            code, text = run(capsys, "score", source, "--bundle", bundle, "--out", place / "scores")
            assert (code, shown in text) == (4, True), text
            assert f"error: {shown}/photos/{printable(place.name)}.png: not an image" in text
            assert "1 .[b] passed over" in text
        code, text = run(capsys, *words)
        assert (code, shown in text) == (0, True), text
    code, text = run(capsys, "bundle", "show", bundle)
    assert code == 0, text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", sorted(set(fieldmark.VERBS) - {"bundle", "data"}))
def test_verbs_that_refuse(
    verb: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    needs = {
        "score": ("--bundle", name, "--out", name),
        "train": ("--out", name),
        "drift": ("--bundle", name),
        "calibrate": ("--with", name, "--out", name),
        "review": ("--bundle", name),
    }
    out = needs.get(verb, ("--out", name) if verb in ("export", "attack", "engine", "repository") else ())
    code, text = run(capsys, verb, f"/nowhere/{name}", *out)
    assert code in (1, 2), text
    if verb not in ("classify", "engine", "envoy", "roll"):  # they ask for a server, a compiler, an order first
        assert printable(name) in text
    code, text = run(capsys, verb, f"--{name}")
    assert code == 2, text


def test_no_console_reads_a_name_as_markup() -> None:
    """An f-string that a console prints holds numbers and escaped text only; `say` prints all others."""
    found = []
    for path in [ROOT / "fieldmark.py", *(each for room in ROOMS for each in (ROOT / room).rglob("*.py"))]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "print"):
                continue
            if any(keyword.arg == "markup" for keyword in call.keywords):
                continue
            texts = [
                each for argument in call.args for each in ast.walk(argument) if isinstance(each, ast.FormattedValue)
            ]
            found += [
                f"{path.relative_to(ROOT)}:{each.lineno}: {ast.unparse(each.value)}"
                for each in texts
                if not _is_safe(each)
            ]
    assert not found, "\n".join(found)


def _is_safe(value: ast.FormattedValue) -> bool:
    name = ast.unparse(value.value)
    return (
        value.format_spec is not None
        or name.startswith(("escape(", "len("))
        or name in ("name", "verdict", "size", "queue or 'any number'", "warm_up")
    )
