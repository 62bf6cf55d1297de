"""How hard a report tries: attacks by name, images, steps."""

from dataclasses import dataclass, replace
from typing import Any

from robustness.adaptive import AdaptiveAttack
from training.attacks.losses import losses_against
from training.networks import Network

# Clean and the white-box columns of the paper; black-box ones are ATTACK@SOURCE.
PAPER = ("clean", "fgsm-2", "fgsm-8", "bim10-2", "bim10-8", "pgd10-2", "pgd10-8", "mim10-2", "mim10-8")
CURVE = (0, 1, 2, 4, 8, 16, 64)  # eps in 1/255
JOINT_WEIGHTS = {f"joint, weight {weight:g}": weight for weight in (0.03, 0.1, 1.0)}
SELECTIVE, ORTHOGONAL = "selective PGD", "orthogonal PGD"
OWN_HEAD = f"{SELECTIVE}, own head"  # for a gated head, which falls to its own loss or to the sum of both
ADAPTIVE = (*JOINT_WEIGHTS, SELECTIVE, ORTHOGONAL, OWN_HEAD)
KEPT = ("fgsm-8", "pgd10-8", SELECTIVE)  # what is measured however little time there is


@dataclass(frozen=True, kw_only=True)
class Suite:
    """How hard is tried: attacks by name, images, steps. `left_out` says what there was no time for."""

    name: str
    attacks: tuple[str, ...]
    count: int  # test images under attack, spread over the classes
    curve_steps: int
    adaptive_steps: int
    adaptive_count: int
    adaptive: tuple[str, ...] = ADAPTIVE
    autoattack_count: int = 0
    clean_count: int = 2000  # test images for the p-values of clean ones
    left_out: tuple[str, ...] = ()


_LONG = ("pgd100x10-8:margin", "pgd100-8:least-likely", "pgd100-8:random", "pgd100x10-8")
SUITES = {
    "paper": Suite(
        name="paper",
        attacks=PAPER,
        count=400,
        curve_steps=0,
        adaptive_steps=0,
        adaptive_count=0,
        adaptive=(),
        autoattack_count=32,
        clean_count=0,
    ),
    "quick": Suite(
        name="quick",
        attacks=("fgsm-8", "bim10-8", "mim10-8", "pgd10-2", "pgd10-8:margin", "pgd10-8", "pgd20-8"),
        count=60,
        curve_steps=10,
        adaptive_steps=40,
        adaptive_count=40,
    ),
    "full": Suite(
        name="full",
        attacks=(*PAPER[1:], *_LONG),
        count=400,
        curve_steps=20,
        adaptive_steps=1000,
        adaptive_count=200,
        autoattack_count=100,
    ),
    "adaptive": Suite(
        name="adaptive", attacks=("pgd10-8",), count=200, curve_steps=0, adaptive_steps=1000, adaptive_count=200
    ),
}


def attacks_on_both(network: Network, head: str, *, eps: float, steps: int, alpha: float) -> list[AdaptiveAttack]:
    """All attacks on a head and its detector together; a head that another gates is also attacked by its own loss."""
    numbers: dict[str, Any] = {"eps": eps, "steps": steps, "alpha": alpha}
    found = [
        AdaptiveAttack(name=name, method="joint", weight=weight, **numbers) for name, weight in JOINT_WEIGHTS.items()
    ]
    found.append(AdaptiveAttack(name=SELECTIVE, method="selective", **numbers))
    found.append(AdaptiveAttack(name=ORTHOGONAL, method="orthogonal", **numbers))
    if len(losses_against(network, head)) > 1:
        found.append(AdaptiveAttack(name=OWN_HEAD, method="selective", own=True, **numbers))
    return found


def suite_named(name: str, *, quick: bool) -> Suite:
    """A suite by name, or what of it takes minutes."""
    chosen = SUITES[name]
    if not quick:
        return chosen
    if name == "full":
        return SUITES["quick"]
    small = SUITES["quick"]
    return replace(chosen, count=small.count, adaptive_count=small.adaptive_count, adaptive_steps=small.adaptive_steps)
