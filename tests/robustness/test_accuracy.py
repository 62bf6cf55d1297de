"""Accuracy under attack, image by image: transfer, AutoAttack, the worst of all, and names that mean nothing."""

import json
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from robustness.accuracy import evaluate_run, show
from robustness.cli import app
from robustness.journal import Journal
from robustness.suites import PAPER, SUITES
from training.attacks.attacker import Attacker, Attackers
from training.data import open_dataset
from training.fit import Trainer
from training.parallel import Devices
from training.run import Run


@pytest.fixture(scope="module")
def evaluated(tiny_run, tiny_birds, substitute):
    record, network = Run(tiny_run).load_network()
    attackers = Attackers(network=network, sources={"twin": substitute.load_network()[1]})
    suite = replace(SUITES["paper"], attacks=(*PAPER, "pgd10-8@twin"), count=9, autoattack_count=4)
    return evaluate_run(record, attackers, tiny_birds, suite)


def test_every_column_is_there_for_every_image_and_head(evaluated):
    assert set(evaluated["right"]) == {"full", "attention"}
    for answers in evaluated["right"].values():
        assert list(answers) == [*PAPER, "pgd10-8@twin", "worst"]
        assert {len(text) for text in answers.values()} == {9}
    assert len(evaluated["images"]) == 9
    assert evaluated["autoattack_images"] == []  # three classes are too few for it
    assert evaluated["not_measured"] == ["not measured: AutoAttack needs four classes"]


def test_the_worst_case_is_right_only_where_every_attack_is(evaluated):
    for answers in evaluated["right"].values():
        columns = [text for name, text in answers.items() if name != "worst"]
        assert answers["worst"] == "".join("01"[all(bit == "1" for bit in bits)] for bits in zip(*columns, strict=True))


def test_stopped_at_any_attack_it_goes_on_to_the_same_answers(
    evaluated, tiny_run, tiny_birds, substitute, tmp_path, monkeypatch
):
    """Columns take minutes to hours, and a kill costs the one that was under way."""
    record, network = Run(tiny_run).load_network()
    suite = replace(SUITES["paper"], attacks=(*PAPER, "pgd10-8@twin"), count=9, autoattack_count=4)
    made, attack_bytes = [], Attacker.attack

    def counted(self, name, pixels, labels):
        if len(made) in (4, 19):
            made.append("killed")
            raise KeyboardInterrupt
        made.append((self.head, name))
        return attack_bytes(self, name, pixels, labels)

    monkeypatch.setattr(Attacker, "attack", counted)

    def evaluate(**changed):
        attackers = Attackers(network=network, sources={"twin": substitute.load_network()[1]}, **changed)
        return evaluate_run(record, attackers, tiny_birds, suite, journal=Journal(tmp_path / "progress.json"))

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluate()
    found = evaluate()
    assert found.pop("seconds").keys() < evaluated["seconds"].keys()
    assert found == {name: each for name, each in evaluated.items() if name != "seconds"}
    done = len(made)
    evaluate()
    assert len(made) == done
    evaluate(seed=1)  # another measurement
    assert len(made) > done


def test_autoattack_as_a_column_runs_once_on_all_images(tiny_birds, tiny_config, tmp_path):
    from training.data.cub_writer import BirdSet, write_birds

    birds = tmp_path / "birds"
    write_birds(birds, BirdSet(species=4, size=32, images_train=12, images_test=2, seed=1), workers=1)
    run, data = Run(tmp_path / "run"), open_dataset(birds, seed=3)
    config = replace(tiny_config, system="ap", preset="ap-small", epochs=1)
    Trainer(run, data, config, Devices(accelerator="cpu"), Console(quiet=True)).fit(resume=False)
    suite = replace(SUITES["paper"], count=6, autoattack_count=3)
    record, network = run.load_network()
    attackers = Attackers(network=network)
    names = ("autoattack-8", "fgsm-8")
    found = evaluate_run(record, attackers, birds, replace(suite, attacks=names))
    assert {name: len(text) for name, text in found["right"]["attention"].items()} == dict.fromkeys(
        ("clean", *names, "worst"), 6
    )
    found = evaluate_run(record, attackers, birds, replace(suite, attacks=("fgsm-8",)))
    assert len(found["right"]["attention"]["autoattack-8"]) == len(found["autoattack_images"]) == 3
    assert found["not_measured"] == []


def test_the_verb_prints_a_table_and_writes_every_answer(tiny_run, tiny_birds, substitute, tmp_path):
    out = tmp_path / "evaluation.json"
    arguments = ["evaluate", str(tiny_run), "--data", str(tiny_birds), "--count", "6", "--attacks", "fgsm-8"]
    done = CliRunner().invoke(app, [*arguments, "--source", f"twin={substitute.path}", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "fgsm-8" in done.output
    assert "not measured: AutoAttack needs four classes" in done.output
    written = json.loads(out.read_text())
    assert list(written["right"]["full"]) == ["clean", "fgsm-8", "worst"]


def test_the_table_shows_shares_with_their_intervals(evaluated):
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(show(evaluated))
    share = evaluated["right"]["full"]["clean"].count("1") / 9
    assert f"{share:.1%}" in capture.get()
