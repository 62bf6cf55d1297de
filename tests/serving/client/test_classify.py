"""`fieldmark classify` against a real Triton: what a person and a program get from it, and its picture."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle import Bundle, tensors
from bundle.errors import EndpointError, OptionError
from fieldmark import main
from serving.client.classify import Answer, check_options, classify_files, prototype_images
from serving.client.explain import draw_explanations, overlay, shorten
from serving.client.local import LocalInference
from serving.gateway.server import Gateway
from serving.triton.server import TritonServer
from tests.serving.gateway.gateway_thread import running

pytestmark = pytest.mark.triton

ROOT = Path(__file__).parents[3]


@dataclasses.dataclass
class Run:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def service(toy_server: TritonServer, toy_bundle: Bundle) -> Iterator[Gateway]:
    with running(toy_server.grpc_url, bundle=toy_bundle) as served:
        yield served


@pytest.fixture(params=["service", "triton"])
def address(request: pytest.FixtureRequest, toy_server: TritonServer, service: Gateway) -> str:
    """Of fieldmark.v1, and of the Triton behind it: the verb takes either."""
    return toy_server.grpc_url if request.param == "triton" else service.url


@pytest.fixture
def classify(address: str, capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run the command in this process; `url=None` leaves the address out."""

    def run(*arguments: object, url: str | None = address) -> Run:
        with pytest.raises(SystemExit) as ended:
            main(["classify", *map(str, arguments), *(["--url", url] if url else [])])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Run(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def birds(toy_images: np.ndarray, tmp_path: Path) -> list[Path]:
    """Five clean birds, one of each label, and last a noisy one."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    paths = [tmp_path / f"bird{index}.png" for index in range(6)]
    for path, pixels in zip(paths, [*toy_images[:5], noise], strict=True):
        Image.fromarray(pixels).save(path)
    return paths


@pytest.mark.parametrize("network", tensors.NETWORKS)
def test_json_gives_each_images_own_answer(
    classify: Callable[..., Run], birds: list[Path], toy_bundle: Bundle, network: str
) -> None:
    run = classify(*birds, "--json", "--network", network, "--top", 2)
    assert run.code == 0
    assert run.err == ""
    records = [json.loads(line) for line in run.out.splitlines()]
    assert [record["file"] for record in records] == [str(path) for path in birds]
    images = np.stack([toy_bundle.manifest.image.read(path) for path in birds])
    expected = LocalInference(toy_bundle).infer(images, network)
    for row, record in enumerate(records):
        best = np.argsort(-expected["probabilities"][row], kind="stable")[:2]
        assert record["top"] == [
            [toy_bundle.manifest.labels[k], pytest.approx(float(expected["probabilities"][row, k]))] for k in best
        ]
        assert [record["label"], record["probability"]] == record["top"][0]
        assert record["instance_score"] == pytest.approx(float(expected["instance_score"][row]), rel=1e-5)
        assert record["p_value"] == pytest.approx(float(expected["p_value"][row]))
        assert record["is_adversarial"] is bool(expected["is_adversarial"][row])
        assert record["layer_scores"] == pytest.approx(expected["layer_scores"][row].tolist(), rel=1e-5)
        assert record["network"] == network
        assert record["bundle_id"] == toy_bundle.bundle_id
    assert [record["label"] for record in records[:5]] == list(toy_bundle.manifest.labels)
    assert records[5]["is_adversarial"] is True


def test_table(classify: Callable[..., Run], birds: list[Path], toy_bundle: Bundle) -> None:
    run = classify(*birds, "--top", 2)
    assert run.code == 0
    lines = run.out.splitlines()
    for path, label in zip(birds[:5], toy_bundle.manifest.labels, strict=True):
        (line,) = [line for line in lines if str(path) in line]
        assert label in line
    (flagged,) = [line for line in lines if str(birds[5]) in line]
    assert "true" in flagged
    assert "0.0100" in flagged
    assert sum(line.endswith(" true") for line in lines) == sum(
        bool(flag)
        for flag in LocalInference(toy_bundle).infer(
            np.stack([toy_bundle.manifest.image.read(path) for path in birds]), "full"
        )["is_adversarial"]
    )
    assert f"network full, alpha 0.05, bundle {toy_bundle.bundle_id[:12]}" in run.out
    # Two labels an image: the second has a line of its own.
    assert len([line for line in lines if any(label in line for label in toy_bundle.manifest.labels)]) == 12


def test_alpha_moves_the_decision_and_nothing_else(classify: Callable[..., Run], birds: list[Path]) -> None:
    def flags(*options: object) -> tuple[list[bool], list[float]]:
        records = [json.loads(line) for line in classify(*birds, "--json", *options).out.splitlines()]
        return [record["is_adversarial"] for record in records], [record["p_value"] for record in records]

    strict, p_values = flags("--alpha", 0.01)
    loose, same = flags("--alpha", 0.99)
    assert same == p_values
    assert strict == [p <= 0.011 for p in p_values]
    assert loose == [p <= 0.991 for p in p_values]
    assert strict.count(True) < loose.count(True)


@pytest.mark.hostile
@pytest.mark.parametrize("as_json", [True, False])
def test_an_unreadable_image_does_not_stop_the_others(
    classify: Callable[..., Run], birds: list[Path], tmp_path: Path, as_json: bool
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    given = [birds[0], text, tmp_path / "absent.png", tmp_path, birds[1]]
    run = classify(*given, *(["--json"] if as_json else []))
    assert run.code == 1
    if as_json:
        records = [json.loads(line) for line in run.out.splitlines()]
        assert [record["file"] for record in records] == [str(path) for path in given]
        assert ["error" in record for record in records] == [False, True, True, True, False]
        problems = [record["error"] for record in records if "error" in record]
    else:
        assert str(birds[0]) in run.out
        assert str(birds[1]) in run.out
        assert [line for line in run.out.splitlines() if line.endswith(" ")] == []
        problems = [line.removeprefix("error: ") for line in run.err.splitlines()]
    assert problems[0].startswith(f"{text}: not an image, or an unknown format")
    assert problems[1:] == [
        f"{tmp_path / 'absent.png'}: no such file",
        f"{tmp_path}: a folder, not an image. 'fieldmark score' takes whole folders.",
    ]


def test_only_unreadable_images(classify: Callable[..., Run], tmp_path: Path) -> None:
    run = classify(tmp_path / "a.png", "--explain", tmp_path / "out.png")
    assert run.code == 1
    assert run.out == ""
    assert run.err == f"error: {tmp_path / 'a.png'}: no such file\n"
    assert not (tmp_path / "out.png").exists()


@pytest.mark.hostile
def test_a_name_that_is_not_utf8_or_is_markup(classify: Callable[..., Run], birds: list[Path], tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9 [bold]x.png")
    shutil.copy(birds[0], odd)
    assert "caf\\xe9 [bold]x.png" in classify(odd).out
    record = json.loads(classify(odd, "--json").out)
    assert record["file"].endswith("caf\\xe9 [bold]x.png")
    missing = tmp_path / os.fsdecode(b"\xff.png")
    assert classify(missing).code == 1


def test_more_images_than_a_batch(classify: Callable[..., Run], birds: list[Path], toy_bundle: Bundle) -> None:
    run = classify(*(birds * 25), "--json")
    labels = [json.loads(line)["label"] for line in run.out.splitlines()]
    assert len(labels) == 150
    assert labels == labels[:6] * 25
    assert labels[:5] == list(toy_bundle.manifest.labels)


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (["--alpha", "0"], 2, "--alpha 0 is not between 0 and 1"),
        (["--alpha", "1"], 2, "--alpha 1 is not between 0 and 1"),
        (["--alpha", "-0.5"], 2, "--alpha -0.5 is not between 0 and 1"),
        (["--alpha", "nan"], 2, "--alpha nan is not between 0 and 1"),
        (["--alpha", "0.009"], 2, "--alpha 0.009 is below 0.01, the smallest p-value this bundle can give"),
        (["--alpha", "much"], 2, "invalid value for '--alpha'"),
        (["--top", "0"], 2, "--top 0 is not between 1 and 5"),
        (["--top", "6"], 2, "--top 6 is not between 1 and 5"),
        (["--network", "spiral"], 1, "the served bundle has no network 'spiral'"),
        (["--explain", "picture.jpg"], 2, "--explain picture.jpg does not end in .png"),
        (["--timeout", "0"], 2, "invalid value for '--timeout'"),
        (["--bundle", "no-such-bundle"], 1, "there is no bundle at no-such-bundle"),
        (["--colour", "red"], 2, "no such option"),
    ],
)
def test_bad_options(
    classify: Callable[..., Run], birds: list[Path], options: list[str], code: int, expected: str
) -> None:
    run = classify(birds[0], *options)
    assert run.code == code
    assert run.out == ""
    assert expected in " ".join(run.err.replace("│", " ").split())


def test_too_many_images_for_a_picture(classify: Callable[..., Run], birds: list[Path], tmp_path: Path) -> None:
    run = classify(*(birds * 5), "--explain", tmp_path / "out.png")
    assert run.code == 2
    assert "--explain draws at most 24 images, and 30 are given" in run.err


def test_no_server(classify: Callable[..., Run], birds: list[Path]) -> None:
    run = classify(birds[0], url="localhost:1")
    assert run.code == 1
    assert run.err == "error: no server answers at localhost:1. Start one: fieldmark serve BUNDLE\n"


def test_a_bundle_that_is_not_the_served_one(
    classify: Callable[..., Run], birds: list[Path], make_toy_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    other = make_toy_bundle(tmp_path / "other", name="other")
    run = classify(birds[0], "--bundle", other.path)
    assert run.code == 1
    assert run.out == ""
    assert f"and {other.bundle_id[:12]} is expected" in run.err
    assert run.err.count("\n") == 1


def test_the_served_bundle_given_by_name(classify: Callable[..., Run], birds: list[Path], toy_bundle: Bundle) -> None:
    assert classify(birds[0], "--bundle", toy_bundle.path).code == 0


def test_classify_loads_no_torch_and_draws_only_when_asked(toy_server: TritonServer, birds: list[Path]) -> None:
    """In an interpreter of its own: neither torch nor matplotlib nor ONNX Runtime is loaded for a plain answer."""
    script = (
        "import sys\nfrom fieldmark import main\n"
        "try: main()\nexcept SystemExit as end: code = end.code\n"
        "print(code, [n for n in ('torch', 'sklearn', 'matplotlib', 'onnxruntime', 'pyarrow') if n in sys.modules])"
    )
    command = [sys.executable, "-c", script, "classify", str(birds[0]), "--url", toy_server.grpc_url, "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": ROOT})
    assert answer.stdout.splitlines()[-1] == "0 []", answer.stderr


# --- the picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "columns"), [("full", 5), ("attention", 2)])
@pytest.mark.parametrize("count", [1, 3])
def test_explain_draws_a_row_an_image(
    classify: Callable[..., Run],
    toy_bundle: Bundle,
    birds: list[Path],
    tmp_path: Path,
    network: str,
    columns: int,
    count: int,
) -> None:
    picture = tmp_path / "new folder" / "why.PNG"
    run = classify(*birds[-count:], "--network", network, "--explain", picture, "--bundle", toy_bundle.path)
    assert run.code == 0
    assert run.err == f"picture: {picture}\n"
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert abs(image.width - 130 * (0.6 + 2.0 * columns + 0.16 * (columns - 1))) <= 1
        assert abs(image.height - 130 * (0.3 + count * 3.2)) <= 1
        pixels = np.asarray(image.convert("RGB"))
    assert [path.name for path in picture.parent.iterdir()] == ["why.PNG"]
    # The noisy image comes last: its verdict is red, and no other is.
    red = (pixels == (0xCF, 0x22, 0x2E)).all(axis=2).any(axis=1)
    green = (pixels == (0x1A, 0x7F, 0x37)).all(axis=2).any(axis=1)
    assert red.any()
    assert green.any() == (count > 1)
    if count > 1:
        assert np.flatnonzero(green).max() < np.flatnonzero(red).min()
    boxes = (pixels == (0xFF, 0xD3, 0x3D)).all(axis=2)
    assert boxes.any() == (network == "full")


def test_prototypes_come_from_the_bundle(toy_bundle: Bundle) -> None:
    look_up = prototype_images(toy_bundle, toy_bundle.manifest)
    for index in (0, 9):
        with Image.open(toy_bundle.path / f"prototypes/{index:04d}.png") as image:
            np.testing.assert_array_equal(look_up(index), np.asarray(image))
    assert look_up(10) is None


def test_prototypes_come_from_nowhere_else(
    toy_bundle: Bundle, make_toy_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    other = make_toy_bundle(tmp_path / "other", name="other")
    for bundle in (None, other):
        assert prototype_images(bundle, toy_bundle.manifest)(0) is None


def answers(toy_bundle: Bundle, paths: list[Path]) -> list[Answer]:
    return list(classify_files(LocalInference(toy_bundle), paths, "full", look_up=lambda index: None))


def test_a_picture_of_odd_labels_and_no_prototype_images(
    toy_bundle: Bundle, birds: list[Path], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """A label is text, not mathematics, however long it is and whatever script it is in."""
    labels = ("$\\frac{a}{$", "x" * 500, "鳥" * 40, "a_b^c {", "مرغ & <b>")
    names = dict(zip(toy_bundle.manifest.labels, labels, strict=True))
    odd = answers(toy_bundle, birds[:5])
    for index, answer in enumerate(odd):
        for prototype in answer.explanation.prototypes:
            prototype.label = names.get(prototype.label, prototype.label)
        odd[index] = dataclasses.replace(answer, prediction=dataclasses.replace(answer.prediction, label=labels[index]))
    shown = ["n" * 300, "$$", "\n", "ok.png", "鳥.png"]
    draw_explanations(tmp_path / "odd.png", odd, shown, 0.05)
    with Image.open(tmp_path / "odd.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    # Nothing written under a panel reaches into the gap beside it.
    for row in range(5):
        caption = pixels[round(130 * (0.15 + 3.2 * row + 2.66)) : round(130 * (0.15 + 3.2 * row + 3.15))]
        assert (caption < 128).any()
        for panel in range(1, 5):
            gap = caption[:, round(130 * (0.3 + 2.16 * panel - 0.11)) : round(130 * (0.3 + 2.16 * panel - 0.05))]
            assert (gap == 255).all(), (row, panel)
    assert [str(warning.message) for warning in recwarn if issubclass(warning.category, UserWarning)] == []


def test_overlay_lights_what_the_network_looked_at() -> None:
    image = np.full((32, 32, 3), 128, np.uint8)
    attention = np.zeros((4, 4), np.float32)
    attention[0, 3] = 1.0
    lit = overlay(image, attention).astype(int).sum(axis=2)
    size = lit.shape[0]
    assert lit.shape == (size, size)
    assert size >= 256
    row, column = np.unravel_index(lit.argmax(), lit.shape)
    assert row < size / 4
    assert column >= 3 * size / 4
    assert lit[-1, 0] < lit[0, -1]
    dark = overlay(image, np.full((4, 4), np.nan, np.float32))
    assert len(np.unique(dark.reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [("short.png", 20, "short.png"), ("abcdefghij", 7, "abc…hij"), ("abcdefgh", 0, "ab…gh"), ("a\nb", 9, "a?b")],
)
def test_shorten(text: str, most: int, expected: str) -> None:
    assert shorten(text, most) == expected


def test_no_matplotlib_is_a_sentence(
    classify: Callable[..., Run], birds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    run = classify(birds[0], "--explain", tmp_path / "out.png")
    assert run.code == 3
    assert "pip install '.[figures]'" in run.err


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.999])
def test_alphas_that_are_allowed(toy_bundle: Bundle, alpha: float) -> None:
    check_options(toy_bundle.manifest, "full", alpha, 5)


def test_options_are_checked_without_a_server(toy_bundle: Bundle) -> None:
    with pytest.raises(OptionError):
        check_options(toy_bundle.manifest, "full", 0.00999, 1)
    with pytest.raises(EndpointError):
        check_options(toy_bundle.manifest, "fall", None, 1)
