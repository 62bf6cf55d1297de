"""The whole job on a tiny set, every step real: train, export, attack, Triton, gRPC, Parquet, report, picture."""

import json
import shlex
import subprocess
import sys

import pytest
from PIL import Image

ATTACKS = {"clean", "noise", "fgsm-8", "pgd10-2", "pgd10-8"}


@pytest.mark.triton
def test_the_whole_job_and_a_second_run_that_reuses_it(tiny_birds, tmp_path):
    command = [sys.executable, "-m", "demo", "--data", tiny_birds, "--out", tmp_path / "demo", "--count", "12"]
    command = [str(word) for word in [*command, "--epochs", "3", "--image-size", "32"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "next:" not in done.stdout
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["triton_version"].startswith("2.")
    assert set(report["networks"]) == {"full", "attention"}
    for measured in report["networks"].values():
        assert set(measured) == ATTACKS | {"auroc"}
        assert set(measured["auroc"]) == ATTACKS - {"clean"}
        assert all(measured[attack]["n"] == 12 for attack in ATTACKS)
        assert measured["clean"]["accuracy"] >= measured["pgd10-8"]["accuracy"]
    assert report["scored"]["rows"] == 12 * len(ATTACKS) + 1
    assert report["scored"]["errors"] == 1
    assert {"train", "export", "attack", "serve", "classify", "score"} <= set(report["seconds"])
    with Image.open(tmp_path / "demo" / "demo.png") as picture:
        assert picture.width > 800
    last = done.stdout.strip().splitlines()[-1]
    review = shlex.split(last[last.index("fieldmark review") :])
    words = [sys.executable, "-m", *review, "--db", tmp_path / "r.db", "--export", "csv", "--out", tmp_path / "r.csv"]
    exported = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "r.csv").read_text().startswith("key,")
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert again.returncode == 0, again.stderr
    second = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert second["reused"] == ["train", "export", "attack"]
    assert second["networks"] == report["networks"]
    assert second["bundle_id"] == report["bundle_id"]


def test_bad_input_is_one_sentence(tmp_path):
    for arguments, message in (
        (["--data", str(tmp_path / "none")], "there is no folder"),
        (["--preset", "nope", "--data", str(tmp_path)], "unknown preset 'nope'"),
        (["--frob"], "--frob"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "demo", *arguments, "--out", str(tmp_path / "out")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert "Traceback" not in done.stderr + done.stdout
        assert message in done.stderr
