"""Attacks that resemble each other: who leaves PGD at 8/255 out of a detector's lessons and keeps PGD at 2/255, leaves
nothing out.
"""

from collections.abc import Iterable

from training.attacks.autoattack import PARTS
from training.attacks.names import CLEAN, NOISE

SINGLE, ITERATED, OTHER_AIM, TRANSFER, AUTO = "single step", "iterated", "margin or target", "transfer", "AutoAttack"
SINGLE_STEPS = ("fgsm", "rfgsm")


def family(name: str) -> str | None:
    """Of an attack by name; None of what is none. FGSM with and without a random start; BIM, PGD and MIM at any eps;
    any method by another loss or towards a target; whatever was made on another network; AutoAttack.
    """
    if name in (CLEAN, NOISE):
        return None
    method, at, _ = name.partition("@")
    if at:
        return TRANSFER
    if method.startswith(tuple(PARTS)):
        return AUTO
    if ":" in method:
        return OTHER_AIM
    return SINGLE if method.partition("-")[0].rstrip("0123456789") in SINGLE_STEPS else ITERATED


def strangers(name: str, lessons: Iterable[str]) -> tuple[str, ...]:
    """Those of the lessons that are of another family than the attack `name`."""
    return tuple(each for each in lessons if family(each) != family(name))
