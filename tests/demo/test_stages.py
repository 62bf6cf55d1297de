"""Stages run once, begin anew when what they were made from changes, and say when they were interrupted."""

import pytest
from rich.console import Console

from demo.stages import StageFailed, Stages, fieldmark


@pytest.fixture
def run(tmp_path):
    product, calls = tmp_path / "product", []

    def run(key, *, fail=False):
        def action():
            calls.append(key)
            if fail:
                raise StageFailed("broken")
            product.write_text(key)

        stages = Stages(tmp_path, Console(quiet=True))
        stages.run("stage", key, product, action)
        return stages

    run.calls, run.product, run.folder = calls, product, tmp_path
    return run


def test_a_stage_is_reused_until_its_key_changes_or_its_product_is_gone(run):
    first = run("a")
    again = run("a")
    assert run.calls == ["a"]
    assert again.reused == ["stage"]
    assert again.seconds == first.seconds
    run("b")
    run.product.unlink()
    run("b")
    assert run.calls == ["a", "b", "b"]


def test_a_failed_stage_is_not_taken_for_done_and_is_known_as_interrupted(run):
    with pytest.raises(StageFailed):
        run("a", fail=True)
    assert Stages(run.folder, Console(quiet=True)).interrupted("stage", "a")
    assert not Stages(run.folder, Console(quiet=True)).interrupted("stage", "b")
    run("a")
    assert run.calls == ["a", "a"]
    assert not Stages(run.folder, Console(quiet=True)).interrupted("stage", "a")


def test_a_damaged_memory_means_everything_is_made_again(run):
    run("a")
    (run.folder / "stages.json").write_text("{ not json")
    run("a")
    assert run.calls == ["a", "a"]


def test_a_failing_verb_stops_the_demo_with_its_name(capfd):
    with pytest.raises(StageFailed, match="'fieldmark bundle' ended with exit code 1"):
        fieldmark("bundle", "verify", "nowhere")
    assert "there is no bundle at nowhere" in capfd.readouterr().err
