"""Attacked images as files: which images, which labels, how much noise, and two losses tried on each."""

import csv
import json

import numpy as np
import torch
from PIL import Image
from typer.testing import CliRunner

from bundle import tensors
from training.adversaries import spread, write_attacks
from training.attack_losses import judge_of, loss_of, losses_against
from training.attacks import attack_named, from_bytes, round_to_bytes, run_attack, worst_case
from training.cli import app
from training.data import open_dataset
from training.data.loading import images_array
from training.run import Run, image_spec


def test_a_few_images_are_spread_over_the_classes_and_all_are_all(tiny_birds):
    samples = open_dataset(tiny_birds).parts["test"]
    assert len(samples) == 12
    assert [sample.label for sample in spread(samples, 3)] == [0, 1, 2]
    assert len(set(spread(samples, 7))) == 7
    assert spread(samples, 12) == spread(samples, 400) == samples


def test_the_index_tells_the_truth_of_every_file(tiny_run, tiny_birds, tmp_path):
    record, network = Run(tiny_run).load_network()
    attacks = ("clean", "noise", "fgsm-8")
    options = {"part": "test", "count": 6, "seed": 0}
    written = write_attacks(
        record, network, tiny_birds, tmp_path / "out", attacks=attacks, networks=("full",), **options
    )
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
    names = {"attacks": ("clean",), "networks": tensors.NETWORKS}
    write_attacks(record, network, tiny_birds, tmp_path / "out", part="test", count=2, seed=0, **names)
    assert capsys.readouterr() == ("", "")


def test_the_full_network_is_fooled_where_either_of_the_two_losses_fools_it(tiny_run, tiny_birds):
    record, network = Run(tiny_run).load_network()
    images, labels = images_array(open_dataset(tiny_birds).parts["test"], image_spec(record.config))
    pixels, truth = from_bytes(torch.from_numpy(images)), torch.from_numpy(labels)
    attack = attack_named("bim10-8")
    own, joint = losses_against(network, tensors.FULL)
    judge = judge_of(network, tensors.FULL)
    first, second = (run_attack(attack, loss, pixels, truth) for loss in (own, joint))
    assert not torch.equal(first, second)
    with torch.no_grad():
        fooled = ~judge(first, truth) | ~judge(second, truth)
        found = worst_case(attack, (own, joint), judge, pixels, truth)
        torch.testing.assert_close(found.fooled, fooled)
        torch.testing.assert_close(judge(found.images, truth), ~fooled)
        kept = own(found.images, truth)[~fooled]
        torch.testing.assert_close(kept, torch.maximum(own(first, truth), own(second, truth))[~fooled])


def test_the_attention_head_is_attacked_by_its_own_loss(tiny_run):
    _, network = Run(tiny_run).load_network()
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        forward = network(images)
        for head in tensors.NETWORKS:
            expected = torch.nn.functional.cross_entropy(forward.logits[head], labels, reduction="none")
            torch.testing.assert_close(loss_of(network, head)(images, labels), expected)


def test_momentum_remembers_where_the_loss_pointed_before():
    """The gradient turns against the first step; MIM (Dong et al. 2018, decay 1) goes on where BIM turns back."""
    calls = []

    def turning(images, labels):
        calls.append(None)
        return images.sum(dim=(1, 2, 3)) * (1.0 if len(calls) % 2 else -1.0)

    start, labels = torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, dtype=torch.long)
    bim = run_attack(attack_named("bim2-8"), turning, start, labels)
    mim = run_attack(attack_named("mim2-8"), turning, start, labels)
    torch.testing.assert_close(bim, start)  # one step up, one down
    torch.testing.assert_close(mim, start + 4 / 255)  # one step up; then the velocities cancel


def test_bytes_are_rounded_and_not_cut():
    values = torch.tensor([0.0, 0.4, 0.6, 254.6, 255.0, 300.0, -3.0]) / 255
    assert round_to_bytes(values.view(1, 1, 1, -1).expand(1, 3, 1, -1))[0, 0, :, 0].tolist() == [
        0,
        0,
        1,
        255,
        255,
        255,
        0,
    ]
