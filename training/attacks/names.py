"""Attacks by name, as users type them.

A name is `clean`, `noise`, `autoattack-EPS`, `apgd-EPS` (its two gradient attacks alone) or a gradient attack's with
eps in 1/255 (pgd10-8), which may say what loss it raises (pgd10-8:margin; cross-entropy if it does not) and which class
it wants to be answered (pgd10-8:least-likely; any wrong one if it does not). Any of these may have a source:
NAME@SOURCE is made on another network and transferred, as by an attacker who does not have the weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bundle.errors import OptionError
from training.attacks.autoattack import PARTS
from training.attacks.loop import Attack
from training.attacks.losses import LOSSES, TARGETS, LogitLoss
from training.networks import Network

CLEAN, NOISE = "clean", "noise"
AUTO_CLASSES = 4  # AutoAttack's targeted ratio of logits divides by the gap to the fourth
_AUTO = re.compile(rf"({'|'.join(PARTS)})-([1-9][0-9]{{0,2}}|0)")
_NAME = re.compile(r"(fgsm|rfgsm|bim|pgd|mim)([1-9][0-9]{0,5}|0)?(?:x([1-9][0-9]{0,3}|0))?-([1-9][0-9]{0,2}|0)")
_FORM = "Attacks are named METHOD[STEPS][xRESTARTS]-EPS: fgsm-8, rfgsm-8, bim10-2, pgd10-8, pgd100x10-8, mim10-8."


def attack_named(name: str) -> Attack:
    """An attack by name, eps in 1/255, with the paper's step sizes (Sec. 5.1): PGD 1/255 at eps 2 and 2/255 at eps 8,
    the others eps / steps. `rfgsm` is the FGSM of the authors' columns: a random start, then one step of eps.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise OptionError(f"unknown attack {name!r}", hint=_FORM)
    method, single = match[1], match[1] in ("fgsm", "rfgsm")
    steps, restarts, eps = int(match[2] or (1 if single else 10)), int(match[3] or 1), int(match[4]) / 255
    if single and steps != 1:
        raise OptionError(f"attack {name}: {method} takes one step", hint=f"Use bim{steps}-{match[4]}.")
    step = (2 if eps > 4 / 255 else 1) / 255 if method == "pgd" else eps / max(steps, 1)
    return Attack(
        name=name,
        eps=eps,
        steps=steps,
        step=step,
        random_start=method in ("rfgsm", "pgd"),
        momentum=1.0 if method == "mim" else None,
        restarts=restarts,
    )


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What a name says: the `attack`, the `loss` of logits that it raises, and the `target`, one of TARGETS, towards
    which it goes; None of one that is content with any wrong answer.
    """

    attack: Attack
    loss: LogitLoss
    target: str | None


def aim_named(name: str) -> Aim:
    """ATTACK[:LOSS][:TARGET] in parts."""
    method, *words = name.split(":")
    loss = words.pop(0) if words and words[0] in LOSSES else "ce"
    target = words.pop(0) if words and words[0] in TARGETS else None
    if words:
        raise OptionError(
            f"attack {name!r} names no loss and no target by {':'.join(words)!r}",
            hint=f"ATTACK[:LOSS][:TARGET]; losses: {', '.join(LOSSES)}; targets: {', '.join(TARGETS)}.",
        )
    return Aim(attack=attack_named(method), loss=LOSSES[loss], target=target)


def auto_named(name: str) -> tuple[str, int] | None:
    """Which of AutoAttack's suites a name means and its eps in 1/255; None of another attack's name."""
    found = _AUTO.fullmatch(name)
    return None if found is None else (found[1], int(found[2]))


def check_attacks(names: tuple[str, ...], sources: Mapping[str, Network], network: Network) -> None:
    """Raises OptionError for a name that an attacker on `network` would not understand."""
    for name in names:
        method, at, source = name.partition("@")
        if at and source not in sources:
            known = ", ".join(sources) or "none"
            raise OptionError(
                f"attack {name!r} names the source {source!r}", hint=f"Sources: {known}; give one by --source."
            )
        if method in (CLEAN, NOISE):
            continue
        auto = auto_named(method)
        if auto is None:
            aim_named(method)
        elif auto[1] > 255:
            raise OptionError(f"attack {name}: eps {auto[1]}/255 is outside [0, 1]")
        elif (sources[source] if at else network).config.classes < AUTO_CLASSES:
            raise OptionError(f"{method} needs at least {AUTO_CLASSES} classes", hint="Use pgd100x10 there.")
