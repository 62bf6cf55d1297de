"""Two processes that train one network: the curve of one process with the same batch, and errors that come home."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from rich.console import Console

from bundle.errors import OptionError, TrainingError
from training.augment import Augmentation
from training.data import open_dataset
from training.fit import train_run
from training.parallel import Devices, in_parallel
from training.run import Run

STILL = Augmentation(rotate=0, shear=0, scale=0, flip=False)
TWO = Devices(accelerator="cpu", devices=2)


def explode(fabric):
    """For a process of its own: only one of the two has something to say."""
    if fabric.global_rank == 1:
        raise TrainingError("the loss became nan in epoch 1, batch 1", hint="Lower the rate.")
    fabric.barrier()


def leave(fabric):
    """A process that is killed."""
    import os

    os._exit(9)


@pytest.mark.parametrize(
    ("system", "terms", "changes"),
    [
        ("maxsep", {"cluster": 50.0}, {}),
        ("ap-triplet", {"triplet": 5.0}, {}),
        ("ap", {}, {"warmup_epochs": 1}),
        ("ap", {}, {"warmup_steps": 8}),
    ],
)
def test_two_processes_give_the_loss_curve_of_one_with_the_same_batch(
    tiny_birds, tiny_config, tmp_path, system, terms, changes
):
    """Without draws that differ by process (augmentation, dropout), and with batches that divide by two."""
    from training.presets import preset

    config = replace(
        tiny_config,
        system=system,
        loss=replace(preset("small", system=system).loss, **terms),
        augmentation=STILL,
        attention_dropout=0.0,
        batch_size=30,
        epochs=2,
        **changes,
    )
    data = open_dataset(tiny_birds, seed=config.seed)
    assert len(data.parts["train"]) % 2 == 0
    records, states = [], []
    for devices in (Devices(accelerator="cpu"), TWO):
        run = Run(tmp_path / str(devices.devices))
        records.append(train_run(run, data, config, devices, Console(quiet=True), resume=False))
        states.append(run.read_state("model.pt"))
    losses = [[row["loss"] for row in record.results["history"]] for record in records]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=2e-3)
    assert losses[1][1] == pytest.approx(losses[0][1], rel=5e-2)  # Adam makes steps of rounding errors
    for name, value in states[0].items():
        if value.is_floating_point() and "prototype" not in name:
            assert (states[1][name] - value).norm() <= 0.2 * value.norm() + 0.05, name
    assert records[1].results["validation"].keys() == records[0].results["validation"].keys()
    assert records[1].versions["devices"] == "2"
    written = json.loads((tmp_path / "2" / "run.json").read_text())
    assert len(written["results"]["history"]) == 2


def test_a_batch_that_does_not_divide_is_told_before_a_finished_run_is_touched(tiny_birds, tiny_config, tiny_run):
    before = {path: path.read_bytes() for path in tiny_run.rglob("*") if path.is_file()}
    data = open_dataset(tiny_birds, seed=3)
    with pytest.raises(OptionError, match="does not divide among 17 devices"):
        many = Devices(accelerator="cpu", devices=17)
        train_run(Run(tiny_run), data, tiny_config, many, Console(quiet=True), resume=False)
    assert {path: path.read_bytes() for path in tiny_run.rglob("*") if path.is_file()} == before


def test_two_processes_in_mixed_precision_finish(tiny_birds, tiny_config, tmp_path):
    data, run = open_dataset(tiny_birds, seed=3), Run(tmp_path / "run")
    mixed = replace(TWO, precision="bf16-mixed")
    record = train_run(run, data, replace(tiny_config, epochs=1), mixed, Console(quiet=True), resume=False)
    assert run.finished
    assert record.results["history"][0]["loss"] > 0


def test_whoever_stops_the_first_process_stops_them_all(tiny_birds, tmp_path):
    command = [sys.executable, "-m", "fieldmark", "train", str(tiny_birds), "--out", str(tmp_path / "run")]
    options = ["--image-size", "32", "--epochs", "400", "--devices", "2", "--accelerator", "cpu"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    written = (tmp_path / "run" / "state.pt").stat().st_mtime_ns
    time.sleep(2)
    assert (tmp_path / "run" / "state.pt").stat().st_mtime_ns == written
    assert not Run(tmp_path / "run").finished


def test_an_error_of_one_process_is_raised_as_itself():
    with pytest.raises(TrainingError, match=r"batch 1\. Lower the rate"):
        in_parallel(TWO, explode)


def test_a_process_that_dies_is_one_sentence():
    with pytest.raises(TrainingError, match="training process died"):
        in_parallel(TWO, leave)


@pytest.mark.parametrize("devices", [{"accelerator": "abacus"}, {"accelerator": "cuda", "devices": 64}])
def test_devices_that_are_not_there_are_one_sentence(devices):
    with pytest.raises(OptionError, match="cannot compute there"):
        Devices(**devices).fabric()


def test_a_precision_that_heads_and_detector_cannot_use_is_refused():
    with pytest.raises(OptionError, match=r"unknown precision '64-true'\. Choose one of: 32-true, bf16-mixed"):
        Devices(precision="64-true").fabric()
