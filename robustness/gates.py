"""Signs that a robustness figure is an artefact (Athalye et al. 2018; Carlini et al. 2019): what must hold if attacks
work and gradients tell the truth. A gate is broken, or it holds, or what it needs was not measured.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.attacks.names import NOISE, attack_named

STATIC, ANY = "attacks above", "any"  # among successes: attacks that do not know the detector, and all together
HOLDS, BROKEN, UNKNOWN = "holds", "broken", "not measured"
_NO_SUBSTITUTE = "no substitute was given (--source NAME=RUN)"
CHANCE = 0.01  # how rarely a guessing network may do as well
SLACK = 0.02  # share of images, at least one image, by which a figure may miss its gate


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One sign, for one head; `evidence` are the figures it was judged by, in words."""

    name: str
    head: str
    state: str
    evidence: str


def broken(measured: Mapping[str, Any]) -> list[str]:
    """Names of the broken gates of a head's entry in report.json."""
    return [gate["name"] for gate in measured["gates"] if gate["state"] == BROKEN]


def gates(head: str, measured: Mapping[str, Any], classes: int, outcome: Sequence[str] | None = None) -> list[Gate]:
    """Judge one head's measurements, as in report.json under `heads`. `outcome` is what training said against its own
    end, nothing where all went well; None of a run that does not say.
    """
    right = {name: (each["count"], each["of"]) for name, each in measured["accuracy"].items()}
    curve = [(point["eps"], point["right"]["count"], point["right"]["of"]) for point in measured["curve"]]
    return [
        _better_than_chance(head, measured["clean"]["right"], classes),
        _learnt(head, outcome),
        _monotone(head, curve, classes),
        _chance(head, curve, classes),
        _not_above(head, "iterative attacks are no weaker than single steps", right, "fgsm-8", "pgd10-8"),
        _not_above(head, "random noise is weaker than attacks", right, NOISE, "fgsm-8"),
        _transfer(head, right),
        _more_steps(head, right),
        _gradients(head, measured["zero_gradients"]),
        _adaptive(head, measured["adaptive"]["success"]),
    ]


def _better_than_chance(head: str, right: Mapping[str, Any], classes: int) -> Gate:
    """An exact binomial test: would a network that guesses do as well at least once in a hundred times?"""
    from scipy.stats import binom

    name = "clean accuracy is better than chance"
    count, of = right["count"], right["of"]
    guessed = float(binom.sf(count - 1, of, 1 / classes))
    odds = "p < 1e-9" if guessed < 1e-9 else f"p = {guessed:.2g}"
    evidence = f"{count} of {of} clean images right, {of / classes:.1f} by chance; {odds}"
    if guessed <= CHANCE:
        return Gate(name=name, head=head, state=HOLDS, evidence=evidence)
    if classes ** -float(of) > CHANCE:
        return Gate(name=name, head=head, state=UNKNOWN, evidence=f"{of} images are too few to tell")
    return Gate(name=name, head=head, state=BROKEN, evidence=evidence)


def _learnt(head: str, outcome: Sequence[str] | None) -> Gate:
    name = "training ended better than its warm-up"
    if outcome is None:
        return Gate(name=name, head=head, state=UNKNOWN, evidence="the run does not say; train it again")
    evidence = " ".join(outcome) or "the run has nothing to say against it"
    return Gate(name=name, head=head, state=BROKEN if outcome else HOLDS, evidence=evidence)


def _monotone(head: str, curve: Sequence[tuple[float, int, int]], classes: int) -> Gate:
    name = "accuracy falls as eps grows"
    if len(curve) < 2:
        return Gate(name=name, head=head, state=UNKNOWN, evidence="no curve")
    chance = curve[0][2] / classes  # below it, ups and downs mean nothing
    rises = [
        after for before, after in itertools.pairwise(curve) if after[1] - max(before[1], chance) > _slack(after[2])
    ]
    figures = ", ".join(f"{count}/{of} at {255 * eps:g}" for eps, count, of in curve)
    return Gate(name=name, head=head, state=BROKEN if rises else HOLDS, evidence=f"right: {figures}/255")


def _chance(head: str, curve: Sequence[tuple[float, int, int]], classes: int) -> Gate:
    name = "a large eps leaves no more than chance"
    if not curve:
        return Gate(name=name, head=head, state=UNKNOWN, evidence="no curve")
    eps, count, of = curve[-1]
    allowed = of / classes + _slack(of)
    state = HOLDS if count <= allowed else BROKEN
    return Gate(name=name, head=head, state=state, evidence=f"{count} of {of} right at {255 * eps:g}/255")


def _not_above(head: str, name: str, right: Mapping[str, tuple[int, int]], weaker: str, stronger: str) -> Gate:
    if weaker not in right or stronger not in right:
        return Gate(name=name, head=head, state=UNKNOWN, evidence=f"needs {weaker} and {stronger}")
    (weak, of), (strong, _) = right[weaker], right[stronger]
    state = HOLDS if strong <= weak + _slack(of) else BROKEN
    return Gate(name=name, head=head, state=state, evidence=f"of {of}: {weaker} leaves {weak}, {stronger} {strong}")


def _transfer(head: str, right: Mapping[str, tuple[int, int]]) -> Gate:
    name = "white-box attacks are no weaker than transferred ones"
    transferred = {each: found for each, found in right.items() if "@" in each and each.partition("@")[0] in right}
    if not transferred:
        made = [each for each in right if "@" in each]
        missing = f"{made[0]} needs {made[0].partition('@')[0]} beside it" if made else _NO_SUBSTITUTE
        return Gate(name=name, head=head, state=UNKNOWN, evidence=missing)
    weaker, figures = False, []
    for each, (count, of) in transferred.items():
        own = right[each.partition("@")[0]][0]
        weaker |= own > count + _slack(of)
        figures.append(f"{each} leaves {count}, white-box {own}")
    return Gate(name=name, head=head, state=BROKEN if weaker else HOLDS, evidence="; ".join(figures))


def _more_steps(head: str, right: Mapping[str, tuple[int, int]]) -> Gate:
    """The longest PGD against the one before it."""
    name = "more steps and restarts change little"
    kinds = [each for each in right if each.startswith("pgd") and each.endswith("-8")]
    kinds.sort(key=lambda each: (attack := attack_named(each)).steps * attack.restarts)
    if len(kinds) < 2:
        return Gate(name=name, head=head, state=UNKNOWN, evidence="needs two lengths of pgd")
    first, last = kinds[-2:]
    (shorter, of), (longer, _) = right[first], right[last]
    state = HOLDS if shorter - longer <= max(2, 2 * SLACK * of) else BROKEN
    evidence = f"{first} leaves {shorter} of {of}, {last} {longer}"
    return Gate(name=name, head=head, state=state, evidence=evidence)


def _gradients(head: str, zero: Mapping[str, Any]) -> Gate:
    name = "no image has a vanishing gradient"
    evidence = f"{zero['count']} of {zero['of']} clean images"
    return Gate(name=name, head=head, state=HOLDS if zero["count"] == 0 else BROKEN, evidence=evidence)


def _adaptive(head: str, success: Mapping[str, Mapping[str, Any]]) -> Gate:
    """Who knows the detector must get through at least as often as who does not."""
    name = "knowing the detector helps"
    known = [found for each, found in success.items() if each not in (STATIC, ANY)]
    if STATIC not in success or not known:
        return Gate(name=name, head=head, state=UNKNOWN, evidence="no adaptive attack")
    best, blind, of = max(found["count"] for found in known), success[STATIC]["count"], success[STATIC]["of"]
    state = HOLDS if best >= blind - _slack(of) else BROKEN
    return Gate(name=name, head=head, state=state, evidence=f"of {of}: {blind} get through blind, {best} knowing it")


def _slack(of: int) -> float:
    return max(1.0, SLACK * of)
