"""How a run goes on after it was stopped, and what it refuses to go on from."""

import shutil
from dataclasses import replace
from itertools import count

import pytest
import torch

from bundle.errors import CheckpointError
from training.run import Run


def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    make_trainer, stopping_before, tiny_config, tiny_run, tmp_path
):
    with stopping_before(2):
        make_trainer(tiny_config).fit(resume=False)
    assert not Run(tmp_path / "run").finished
    make_trainer(tiny_config).fit(resume=True)
    resumed, whole = (Run(path).read_state("model.pt") for path in (tmp_path / "run", tiny_run))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert Run(tmp_path / "run").read_prototypes() == Run(tiny_run).read_prototypes()


def test_killed_between_the_best_weights_and_the_state_the_epoch_is_repeated(
    make_trainer, tiny_config, tmp_path, monkeypatch
):
    class Stop(Exception):
        pass

    # Every epoch the best so far, whatever so small a network learns on this number of threads.
    monkeypatch.setattr("training.selection.shares_of", lambda row, scores=count(): {"full": next(scores)})
    make_trainer(tiny_config, tmp_path / "whole").fit(resume=False)
    stopping = make_trainer(tiny_config)
    save, kept = stopping.checkpoint.save, []

    def die_while_writing():
        if kept and kept[-1] != stopping.standing.best:
            raise Stop  # best.pt is of this epoch, state.pt of the one before
        kept.append(stopping.standing.best)
        save()

    stopping.checkpoint.save = die_while_writing
    with pytest.raises(Stop):
        stopping.fit(resume=False)
    assert Run(tmp_path / "run").read_state("state.pt")["best"] < stopping.standing.best
    make_trainer(tiny_config).fit(resume=True)
    for name in ("best.pt", "model.pt"):
        resumed, whole = (Run(tmp_path / run).read_state(name) for run in ("run", "whole"))
        assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_a_stopped_run_goes_on_to_the_same_weights(make_trainer, stopping_before, tiny_config, tmp_path):
    config = replace(tiny_config, epochs=2, warmup_steps=5, warmup_copies=1, ema=0.5)
    whole = make_trainer(config, tmp_path / "whole")
    whole.fit(resume=False)
    with stopping_before(1):
        make_trainer(config, tmp_path / "stopped").fit(resume=False)
    again = make_trainer(config, tmp_path / "stopped")
    again.fit(resume=True)
    ours, theirs = (Run(tmp_path / name).read_state("model.pt") for name in ("stopped", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert again.standing.warmed == whole.standing.warmed


def test_a_state_holds_what_runs_of_older_versions_have_in_it(make_trainer, stopping_before, tiny_config, tmp_path):
    with stopping_before(1):
        make_trainer(replace(tiny_config, ema=0.5)).fit(resume=False)
    state = Run(tmp_path / "run").read_state("state.pt")
    assert set(state) == {"epoch", "learner", "optimizer", "history", "warmed", "best", "caution", "average"}
    assert "network.prototype_head.prototypes" in state["learner"]
    assert "module.prototype_head.prototypes" in state["average"]
    assert set(state["history"][0]) == {"loss", "full", "attention", "seconds"}
    assert {"lr", "base", "weight_decay", "params"} <= set(state["optimizer"]["param_groups"][0])


def test_the_curves_hold_every_epoch_once_also_after_a_resume(make_trainer, tiny_config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Stop(Exception):
        pass

    stopping = make_trainer(tiny_config)
    save = stopping.checkpoint.save

    def die_while_writing():
        if stopping.standing.done == 2:
            raise Stop
        save()

    stopping.checkpoint.save = die_while_writing
    with pytest.raises(Stop):
        stopping.fit(resume=False)
    record = make_trainer(tiny_config).fit(resume=True)
    curves = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    curves.Reload()
    losses = curves.Scalars("loss")
    assert [point.step for point in losses] == [1, 2, 3]
    assert [point.value for point in losses] == pytest.approx([row["loss"] for row in record.results["history"]])
    assert {"loss", "full", "attention", "seconds", "learning rate"} <= set(curves.Tags()["scalars"])


def test_resuming_on_changed_data_or_settings_is_refused(make_trainer, tiny_birds, tiny_config, tiny_run, tmp_path):
    with pytest.raises(CheckpointError, match="other settings"):
        make_trainer(replace(tiny_config, epochs=4), tiny_run).fit(resume=True)
    shutil.copytree(tiny_birds, tmp_path / "birds")
    boxes = (tmp_path / "birds" / "bounding_boxes.txt").read_text().splitlines()
    boxes[0] = "1 0.0 0.0 20.0 20.0"
    (tmp_path / "birds" / "bounding_boxes.txt").write_text("\n".join(boxes) + "\n")
    with pytest.raises(CheckpointError, match="other data"):
        make_trainer(tiny_config, tiny_run, data=tmp_path / "birds").fit(resume=True)


def of_another_system(state):
    return {**state, "learner": {}}


def of_another_kind(state):
    return {"epoch": 1}


@pytest.mark.parametrize("damage", [of_another_system, of_another_kind, lambda state: {}, lambda state: torch.ones(3)])
def test_a_state_of_another_run_is_one_sentence(make_trainer, tiny_config, tiny_run, tmp_path, damage):
    shutil.copytree(tiny_run, tmp_path / "run")
    run = Run(tmp_path / "run")
    (run.path / "model.pt").unlink()
    run.write_state("state.pt", damage(run.read_state("state.pt")))
    with pytest.raises(CheckpointError, match=r"state\.pt is (not|no state) of (this|a) run"):
        make_trainer(tiny_config).fit(resume=True)


def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(tiny_run):
    """Also on a machine whose own choice would be another; who asks for another is told."""
    run = Run(tiny_run)
    assert run.precision("auto") == run.precision("32-true") == run.read_record().versions["precision"] == "32-true"
    with pytest.raises(CheckpointError, match=r"was started in 32-true, not bf16-mixed\. Resume with the same"):
        run.precision("bf16-mixed")
