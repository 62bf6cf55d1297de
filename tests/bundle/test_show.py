"""What `fieldmark bundle show` says of a bundle, on a narrow terminal too."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import fieldmark
from bundle import Bundle
from bundle.manifest import MANIFEST

GOLDEN = Path(__file__).parent / "golden"


def shown(path: Path, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as ended:
        fieldmark.main(["bundle", "show", str(path)])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    return out


def test_a_narrow_terminal_cuts_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(GOLDEN, 80, monkeypatch, capsys)
    assert "…" not in said
    for whole in ("prototype_similarities", "fgsm-8 0.970", "pgd10-8 0.991"):
        assert whole in said
    assert re.search(r"largest +mean *\n.* difference +difference *\n", said)
    assert "differences from PyTorch; layer_scores are squared distances" in said


def test_sentences_of_the_training_record_have_lines_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Bundle.open(shutil.copytree(GOLDEN, tmp_path / "bundle"))
    outcome = [f"{head} answers 2 of 12 images, no better than guessing" for head in ("full", "attention")]
    record = {
        "results": {"validation": {"full": 0.25, "attention": 0.5}, "outcome": outcome},
        "left_out": ["left out for want of time: bim10-8, mim10-8", "fewer images for want of time: 20 of 60"],
        "detector": {"attacks": ["fgsm-8", "pgd10-8"], "alpha": 0.05, "nothing": []},
        "versions": {"device": "NVIDIA H100", "torch": "2.14"},
    }
    (bundle.path / MANIFEST).write_text(replace(bundle.manifest, training=record).to_json())
    lines = shown(bundle.path, 80, monkeypatch, capsys).splitlines()
    assert lines[3 : lines.index("versions  device NVIDIA H100, torch 2.14") + 1] == [
        "detector  alpha 0.05, attacks fgsm-8 pgd10-8",
        "left_out  left out for want of time: bim10-8, mim10-8",
        "left_out  fewer images for want of time: 20 of 60",
        "results  validation (attention 0.5, full 0.25)",
        "  outcome: full answers 2 of 12 images, no better than guessing",
        "  outcome: attention answers 2 of 12 images, no better than guessing",
        "versions  device NVIDIA H100, torch 2.14",
    ]
