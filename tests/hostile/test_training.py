"""Training under bad conditions: stopped by hand, a full disk, a run that is not one. The real verb, a real disk."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from training.run import Run

pytestmark = pytest.mark.hostile
TINY = ("--image-size", "32", "--batch-size", "16", "--accelerator", "cpu")


def train(data, out, *options):
    command = [sys.executable, "-m", "fieldmark", "train", data, "--out", out, *TINY, *options]
    return [str(word) for word in command]


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_is_a_sentence_and_resume_finishes(stop, code, tiny_birds, tmp_path):
    command = train(tiny_birds, tmp_path / "run", "--epochs", "40")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert "--resume" in errors
    assert not Run(tmp_path / "run").finished
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.endswith(".tmp")]
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "going on after epoch" in again.stdout
    assert Run(tmp_path / "run").finished


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--precision", "fp7"), "unknown precision 'fp7'"),
        (("--set", "start=nowhere"), "nowhere"),
        (("--preset", "vgg16-96", "--weights", "nowhere.pth"), "no weights file at nowhere.pth"),
        (("--accelerator", "abacus"), "cannot compute there"),
    ],
)
def test_what_needs_no_image_is_refused_before_the_data_are_read(options, says, tmp_path):
    (tmp_path / "m.csv").write_text("no manifest")
    done = subprocess.run(
        [sys.executable, "-m", "fieldmark", "train", tmp_path / "m.csv", "--out", tmp_path / "run", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert says in done.stderr
    assert "m.csv" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_sentence_and_the_last_state_stays_whole(tiny_birds, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        done = subprocess.run(
            train(tiny_birds, place / "run", "--epochs", "3"), capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "no space left on the disk" in done.stderr
        assert "Traceback" not in done.stderr
        assert not Run(place / "run").finished
        for name in ("state.pt", "best.pt"):
            if (place / "run" / name).exists():
                Run(place / "run").read_state(name)
    finally:
        subprocess.run(["umount", place], check=True)


def contents(folder):
    """Every file below, with what it holds."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "nope"), "SYSTEM-"),
        (("--backbone", "vgg17"), "resnet34"),
        (("--weights", "missing.pth", "--backbone", "resnet34"), "no weights file"),
        (("--weights", "imagenet"), "takes no weights"),
        (("--precision", "7-bit"), "32-true, bf16-mixed"),
        (("--accelerator", "abacus"), "--accelerator"),
        (("--epochs", "0"), "epochs"),
        (("--seed", "-1"), "outside 0..4294967295"),
        (("--seed", "99999999999999999999"), "outside 0..4294967295"),
        (("--batch-size", "1", "--epochs", "1"), "batch"),
    ],
)
def test_bad_options_are_one_sentence(tiny_birds, tmp_path, options, message):
    command = [sys.executable, "-m", "fieldmark", "train", str(tiny_birds), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "--image-size", "32", *options], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr
    assert message in " ".join(done.stderr.split())
    assert not Run(tmp_path / "run").finished


def test_a_folder_that_holds_something_else_is_left_alone(tiny_birds, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    for options in ((), ("--force",), ("--resume",)):
        command = train(tiny_birds, tmp_path / "run", *options)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "holds no run" in done.stderr
    assert (tmp_path / "run" / "thesis.tex").read_text() == "precious"


def test_force_keeps_the_old_run_until_the_new_one_can_begin(tiny_birds, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    before = contents(tmp_path / "run")
    for data, options in (
        (tmp_path / "nowhere", ()),
        (tiny_birds, ("--precision", "7-bit")),
        (tiny_birds, ("--weights", "missing.pth", "--backbone", "resnet34")),
    ):
        command = train(data, tmp_path / "run", "--force", *options)
        assert subprocess.run(command, capture_output=True, text=True, check=False).returncode != 0
        assert contents(tmp_path / "run") == before
    done = subprocess.run(
        train(tiny_birds, tmp_path / "run", "--force", "--epochs", "1", "--json"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["epochs"] == 1
    validation = json.loads(done.stdout)["validation"]
    resume = train(tiny_birds, tmp_path / "run", "--resume", "--epochs", "1", "--json")
    again = subprocess.run(resume, capture_output=True, text=True)
    assert json.loads(again.stdout)["validation"] == validation  # a script gets its answer from a finished run too


def test_attacks_named_twice_are_made_once_and_seeds_have_bounds(tiny_run, tmp_path):
    command = [sys.executable, "-m", "fieldmark", "attack", str(tiny_run), "--attacks", "clean,clean", "--count", "3"]
    done = subprocess.run([*command, "--out", str(tmp_path / "a")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "6 images" in done.stdout
    command += ["--out", str(tmp_path / "b"), "--seed", "99999999999999999999"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "4294967295" in done.stderr
    assert not (tmp_path / "b").exists()


def test_resuming_a_finished_run_with_other_options_does_not_say_finished(tiny_run):
    """Told from run.json alone: the data need not be there."""
    other = train(tiny_run / "no data", tiny_run, "--epochs", "7", "--resume")
    done = subprocess.run(other, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {tiny_run} was started with other settings (epochs is 3 there, 7 here, ")
    assert done.stderr.endswith("seed is 3 there, 0 here). Resume with the same options.\n")


@pytest.mark.parametrize("option", ["--force", "--resume"])
def test_two_trainings_do_not_write_into_one_folder(tiny_birds, tiny_run, tmp_path, option):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "model.pt").unlink()  # not finished
    before = contents(run)
    command = train(tiny_birds, run, option, "--division-seed", "3")
    with Run(run).owned():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: another fieldmark train is writing to {run}. Wait for it, or choose another --out.\n"
    assert contents(run) == before
