"""Attacked images as files: which images, which labels, how much noise."""

import csv
import json

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from bundle import tensors
from training.attacks.attacker import Attackers
from training.attacks.files import AttackOrder, write_attacks
from training.cli import app
from training.data import open_dataset
from training.run import Run, image_spec


def test_the_index_tells_the_truth_of_every_file(tiny_run, tiny_birds, tmp_path):
    record, network = Run(tiny_run).load_network()
    order = AttackOrder(attacks=("clean", "noise", "fgsm-8"), heads=("full",), count=6)
    written = write_attacks(record, Attackers(network=network), tiny_birds, tmp_path / "out", order)
    samples = {sample.key: sample for sample in open_dataset(tiny_birds, seed=record.dataset.seed).parts["test"]}
    with (tmp_path / "out" / "index.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert written == len(rows) == 18
    assert {row["label"] for row in rows} == set(record.labels)
    spec = image_spec(record.config)
    for row in rows:
        sample = samples[row["source"]]
        assert row["label"] == record.labels[sample.label]
        pixels = np.asarray(Image.open(tmp_path / "out" / row["path"])).astype(int)
        difference = np.abs(pixels - spec.read(sample.path, sample.box).astype(int))
        if row["attack"] == "clean":
            assert difference.max() == 0
        elif row["attack"] == "fgsm-8":
            assert difference.max() == 8
        else:
            assert 4 < difference.mean() < 8  # |normal| of standard deviation 8 has mean 6.4, less where it is clipped


def test_the_verb_says_as_json_what_it_wrote(tiny_run, tiny_birds, tmp_path):
    place = ["--out", str(tmp_path / "out"), "--data", str(tiny_birds)]
    words = ["attack", str(tiny_run), *place, "--count", "2", "--json"]
    done = CliRunner().invoke(app, [*words, "--attacks", "clean,noise", "--network", "attention"])
    assert json.loads(done.stdout) == {
        "out": str(tmp_path / "out"),
        "images": 4,
        "attacks": ["clean", "noise"],
        "networks": ["attention"],
        "part": "test",
    }


def test_what_is_piped_holds_no_progress(tiny_run, tiny_birds, tmp_path, capsys):
    record, network = Run(tiny_run).load_network()
    order = AttackOrder(attacks=("clean",), heads=tensors.NETWORKS, count=2)
    write_attacks(record, Attackers(network=network), tiny_birds, tmp_path / "out", order)
    assert capsys.readouterr() == ("", "")
