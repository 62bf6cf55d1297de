"""`make reliability`: what it should see, it sees; what was tried is kept; its page tells no more than was measured."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.reliability import attempts, page
from benchmarks.reliability.damaged import Mutations
from benchmarks.reliability.deployment import Deployment, make_certificates
from benchmarks.reliability.lasting import _growth
from benchmarks.reliability.neighbours import IMAGES, Known
from benchmarks.reliability.rows import Ground, Outcome, Row, Skipped, beside_neighbours, tally
from benchmarks.reliability.wire import INSIDE, Heard
from bundle import Bundle
from bundle.errors import OptionError
from serving.client.local import LocalInference
from serving.gateway.failures import FAILURES
from serving.gateway.generated import fieldmark_pb2 as v1

ROOT = Path(__file__).parents[2]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Rows that start nothing, and how often each was run."""
    runs: dict[str, list[str]] = {"first": [], "second": [], "third": []}

    def run(name: str) -> Any:
        def work(ground: Ground) -> Outcome:
            runs[name].append("quick" if ground.quick else "whole")
            if name == "third":
                raise Skipped("there is no third")
            return Outcome(happened=f"{name} happened", held=name == "first", numbers={"leaks": 0, "texts": 3})

        return work

    made = {name: Row(name=name, tried=f"{name} tried", must="x", run=run(name), spoils=True) for name in runs}
    monkeypatch.setattr(attempts, "ROWS", made)
    return runs


def reliability(bundle: Bundle, out: Path, **options: Any) -> int:
    try:
        attempts.bench(bundle.path, **{"rows": "", "without": "", "quick": False, "out": out, **options})
    except BaseException as ended:
        return int(getattr(ended, "exit_code", 99))
    return 0


def test_what_was_tried_is_not_tried_again(rows: dict[str, list[str]], toy_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert reliability(toy_bundle, out, rows="first", quick=True) == 0
    assert reliability(toy_bundle, out) == 1, "the second does not hold"
    assert reliability(toy_bundle, out) == 1
    assert rows == {"first": ["quick", "whole"], "second": ["whole"], "third": ["whole", "whole"]}
    assert reliability(toy_bundle, out, rows="second") == 1
    assert rows["second"] == ["whole", "whole"]
    found = json.loads(out.read_text())["rows"]
    assert list(found) == ["first", "second", "third"]
    assert [found[name]["held"] for name in found] == [True, False, False]
    assert found["third"]["skipped"] == "there is no third"


def test_another_commit_is_another_service(
    rows: dict[str, list[str]], toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    assert reliability(toy_bundle, out, rows="first") == 0
    where = attempts.environment()
    monkeypatch.setattr(attempts, "environment", lambda: {**where, "commit": "another"})
    assert reliability(toy_bundle, out, without="second,third") == 0
    assert rows["first"] == ["whole", "whole"]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"rows": "thrid"}, "there is no row 'thrid'"), ({"without": "no"}, "there is no row 'no'")],
)
def test_a_mistyped_row(toy_bundle: Bundle, tmp_path: Path, options: dict[str, str], words: str) -> None:
    given = {"rows": "", "without": "", **options}
    with pytest.raises(OptionError, match=words):
        attempts.bench(toy_bundle.path, quick=True, out=tmp_path / "out.json", **given)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 3}', "\x00"])
def test_a_damaged_result_is_one_sentence(toy_bundle: Bundle, tmp_path: Path, text: str) -> None:
    (tmp_path / "out.json").write_text(text)
    with pytest.raises(OptionError, match=r"out\.json cannot be read"):
        attempts.bench(toy_bundle.path, rows="", without="", quick=True, out=tmp_path / "out.json")


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is no bundle at"):
        attempts.bench(tmp_path / "none", rows="", without="", quick=True, out=tmp_path / "out.json")


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(f"<!-- {each}: {page.MARK} -->" in page.PAGE.read_text() for each in ("begin", "end"))
    row = {"tried": "a | b", "must": "m", "happened": "h", "held": True, "skipped": "", "commit": "c" * 40}
    numbers = {"neighbours_answered": 90, "neighbours_failed": 10, "leaks": 0, "texts": 7, "recovery_seconds": 4.5}
    rows = {
        "good": {**row, "quick": False, "numbers": numbers},
        "bad": {**row, "held": False, "quick": True, "numbers": {}},
        "away": {**row, "held": False, "skipped": "no disk", "quick": False, "numbers": {}},
    }
    where = {"cpu": "a processor", "cores": 2}
    text = page.table({"environment": where, "bundle": "toy", "rows": rows})
    assert text.startswith("1 of 2 rows hold. a processor, 2 cores")
    assert "In short form: bad." in text
    assert "| a \\| b | m | h | 4.5 s until it answers again; neighbours: 10 of 100 failed; 0 of 7 texts" in text
    assert "**Does not hold.** h" in text
    assert "Not tried: no disk" in text


def test_every_attack_of_the_issue_has_its_row_and_names_are_unique() -> None:
    every = [row.name for kind in attempts.KINDS for row in kind.ROWS]
    assert len(every) == len(set(every)) == len(attempts.ROWS)
    for who in ("worker", "tritonserver", "gateway", "envoy", "supervisor"):
        assert {f"{who}-killed", f"{who}-halted"} <= set(every)


# What it judges by


@pytest.mark.parametrize(
    "text",
    [
        "Traceback (most recent call last)",
        "in /usr/lib/python3/x",
        "model.py",
        "at 0x7f3a2b",
        "<class 'KeyError'>",
        "the stub process is not healthy",
        "site-packages",
        "/tmp/fieldmark-serve-x/models/full",
    ],
)
def test_a_text_from_inside_is_seen(text: str) -> None:
    heard = Heard()
    heard.note(text)
    heard.note("alpha 0.005 is below 0.01, the smallest p-value there is. Nothing would ever be flagged.")
    assert (heard.texts, len(heard.leaks)) == (2, 1)


def test_no_documented_sentence_is_taken_for_one_from_inside() -> None:
    assert not [each.meaning for each in FAILURES.values() if INSIDE.search(each.meaning)]


def test_a_wrong_answer_is_seen(toy_bundle: Bundle) -> None:
    known, spec = Known(toy_bundle), toy_bundle.manifest.image
    local = LocalInference(toy_bundle)
    for number in range(IMAGES):
        outputs = local.infer(spec.decode(known.files[number])[None], "full")
        best = int(outputs["probabilities"][0].argmax())
        said = {"score": float(outputs["instance_score"][0]), "p_value": float(outputs["p_value"][0])}
        label = {
            "label": toy_bundle.manifest.labels[best],
            "probability": float(outputs["probabilities"][0, best]),
        }

        def answer(network: str = "full", **changes: Any) -> v1.ClassifyResponse:
            first = v1.Prediction(**{name: changes.get(name, value) for name, value in label.items()})  # noqa: B023
            judged = v1.Adversarial(**{name: changes.get(name, value) for name, value in said.items()})  # noqa: B023
            return v1.ClassifyResponse(predictions=[first], adversarial=judged, network=network)

        other = toy_bundle.manifest.labels[int(outputs["probabilities"][0].argmin())]
        assert known.right(answer(), number, "full")
        assert not known.right(answer(label=other), number, "full")
        assert not known.right(answer(label="no label"), number, "full")
        assert not known.right(answer(probability=label["probability"] - 0.1), number, "full")
        assert not known.right(answer(score=1.1 * said["score"] + 0.1), number, "full")
        assert not known.right(answer(p_value=said["p_value"] + 0.1), number, "full")
        assert not known.right(answer("attention"), number, "full")


def test_damage_is_the_same_for_the_same_seed_and_no_two_are_alike() -> None:
    files = [bytes(range(200)), b"other" * 40]
    first, second = (Mutations(files, seed=3) for _ in range(2))
    messages = [first.message() for _ in range(200)]
    assert messages == [second.message() for _ in range(200)]
    assert len(set(messages)) > 190


def test_growth_is_of_the_end_against_the_beginning() -> None:
    assert _growth([100.0] * 10) == 0
    assert _growth([*np.linspace(100, 110, 50)]) == pytest.approx(0.08, abs=0.005)
    assert tally({"a": 1, "b": 2000}) == "2,000 x b, 1 x a"


# Over the wire


@pytest.fixture(scope="module")
def ground(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("ground")
    make_certificates(folder)
    made = Ground(toy_bundle, folder, quick=True)
    yield made
    made.drop()


@pytest.mark.triton
@pytest.mark.hostile
@pytest.mark.parametrize(
    "name",
    [
        "large-bodies",
        "deep-json",
        "lying-shape",
        "huge-messages",
        "bombs",
        "seen-by-strangers",
        "malformed",
        "one-in-a-batch",
        "bad-input",
        "not-http",
    ],
)
def test_a_row_holds(ground: Ground, name: str) -> None:
    found = attempts._try(attempts.ROWS[name], ground)
    assert found["held"], json.dumps(found)
    assert found["numbers"]["neighbours_answered"] > 0
    assert found["numbers"]["leaks"] == found["numbers"]["wrong_answers"] == 0


@pytest.mark.triton
def test_an_attack_that_ends_a_process_has_won(ground: Ground) -> None:
    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        heard.note("it stands at /usr/lib/x.py")
        os.kill(deployment.pids()["the gateway"], signal.SIGKILL)
        return "the gateway was ended", True

    found = beside_neighbours(ground, attack)
    assert not found.held
    assert found.numbers["neighbours_failed"] > 0
    assert found.numbers["processes_replaced"] > 0
    assert found.numbers["leaks"] == 1
    assert re.search("neighbours were told .*UNAVAILABLE", found.happened)
