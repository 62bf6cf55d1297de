"""Gates: each can hold, each can break, and what was not measured is not called good."""

import math
from typing import Any

import pytest

from robustness.gates import BROKEN, HOLDS, UNKNOWN, gates

GOOD = {"clean": 97, "noise": 96, "fgsm-8": 40, "pgd10-8": 20, "pgd100x10-8": 18, "pgd10-8@twin": 60}
CURVE = [(0, 97), (2, 80), (8, 20), (64, 3)]


def measured(right: dict[str, int], curve: list[tuple[int, int]], zero: int = 0, success: Any = None) -> dict[str, Any]:
    return {
        "clean": {"right": {"count": right["clean"], "of": 100}},
        "accuracy": {name: {"count": count, "of": 100} for name, count in right.items()},
        "curve": [{"eps": level / 255, "right": {"count": count, "of": 100}} for level, count in curve],
        "zero_gradients": {"count": zero, "of": 100},
        "adaptive": {"success": success or {}},
    }


def states(*arguments: Any) -> list[str]:
    return [gate.state for gate in gates("full", measured(*arguments), 20, [])]


def adaptive(blind: int, knowing: int) -> dict[str, Any]:
    counts = {"attacks above": blind, "selective PGD": knowing, "joint": 0, "any": 90}
    return {name: {"count": count, "of": 100} for name, count in counts.items()}


def test_sound_figures_pass_every_gate():
    assert states(GOOD, CURVE, 0, adaptive(20, 60)) == [HOLDS] * 10
    shuffled = dict(reversed(GOOD.items()))
    assert states(shuffled, CURVE, 0, adaptive(20, 60)) == [HOLDS] * 10


@pytest.mark.parametrize(
    ("place", "right", "curve", "zero"),
    [
        (0, {**GOOD, "clean": 9}, CURVE, 0),
        (2, GOOD, [(0, 97), (2, 50), (8, 60), (64, 3)], 0),
        (3, GOOD, [(0, 97), (2, 80), (8, 20), (64, 12)], 0),
        (4, {**GOOD, "pgd10-8": 50, "pgd100x10-8": 49}, CURVE, 0),
        (5, {**GOOD, "noise": 30}, CURVE, 0),
        (6, {**GOOD, "pgd10-8@twin": 10}, CURVE, 0),
        (7, {**GOOD, "pgd100x10-8": 9}, CURVE, 0),
        (8, GOOD, CURVE, 1),
    ],
)
def test_each_artefact_breaks_its_gate_and_no_other(place, right, curve, zero):
    found = states(right, curve, zero)
    assert [index for index, state in enumerate(found) if state == BROKEN] == [place]


def test_what_was_not_measured_is_not_called_good():
    assert states({"clean": 97}, []) == [HOLDS, HOLDS] + [UNKNOWN] * 6 + [HOLDS, UNKNOWN]


def test_an_attacker_who_gains_nothing_by_knowing_the_detector_did_not_try():
    assert states(GOOD, CURVE, 0, adaptive(40, 30))[9] == BROKEN


def test_a_substitute_without_its_white_box_attack_is_not_called_absent():
    gate = gates("full", measured({"clean": 97, "fgsm-8": 40, "pgd10-8@twin": 60}, CURVE), 20)[6]
    assert (gate.state, gate.evidence) == (UNKNOWN, "pgd10-8@twin needs pgd10-8 beside it")


@pytest.mark.parametrize(
    ("count", "of", "classes", "state"),
    [
        (5, 24, 6, BROKEN),  # four by chance: a network that has learnt nothing
        (9, 24, 6, BROKEN),
        (10, 24, 6, HOLDS),
        (0, 24, 6, BROKEN),
        (4, 4, 2, UNKNOWN),  # even four of four happen to a guesser once in sixteen times
        (7, 7, 2, HOLDS),
        (6, 7, 2, BROKEN),
        (0, 0, 2, UNKNOWN),
        (40, 2000, 81, HOLDS),
        (33, 2000, 81, BROKEN),
    ],
)
def test_a_network_that_may_be_guessing_breaks_its_gate(count, of, classes, state):
    """Against the tail of the binomial distribution added up by hand."""
    figures = measured({"clean": 1}, []) | {"clean": {"right": {"count": count, "of": of}}}
    gate = gates("full", figures, classes)[0]
    assert gate.state == state
    tail = sum(math.comb(of, k) * (classes - 1) ** (of - k) for k in range(count, of + 1)) / classes**of
    assert (tail <= 0.01) == (state == HOLDS)


@pytest.mark.parametrize(
    ("outcome", "state"), [(None, UNKNOWN), ([], HOLDS), (["full ended at 2 %, below 13 % after its warm-up."], BROKEN)]
)
def test_what_training_says_of_itself_is_a_gate(outcome, state):
    gate = gates("full", measured(GOOD, CURVE), 20, outcome)[1]
    assert gate.state == state
    assert gate.evidence == (outcome[0] if outcome else gate.evidence)
    assert gate.evidence
