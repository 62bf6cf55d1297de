"""What a robustness report says of a network and its detectors, measured on the test part and nowhere else.

Attacked images are rounded to 8 bits, as files are, and judged as the service would: an answer and a p-value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bundle.errors import OptionError
from bundle.progress import Work
from robustness.accuracy import AUTOATTACK, WORST
from robustness.curve import accuracy_curve
from robustness.defended import Defended
from robustness.families import family, strangers
from robustness.fitting import Images, Labels, Lessons, Taught, attacked, by_batch
from robustness.gates import ANY, STATIC, gates
from robustness.journal import Journal, success
from robustness.metrics import auroc, auroc_interval, flagged_interval, fooled, share, true_negatives
from robustness.suites import Suite, attacks_on_both
from training.attacks.attacker import Attackers
from training.attacks.loop import gradient_of
from training.attacks.losses import loss_of
from training.attacks.names import AUTO_CLASSES, CLEAN, NOISE
from training.data import Dataset
from training.data.choice import evenly, spread
from training.data.loading import images_array
from training.pixels import from_bytes
from training.run import RunRecord, image_spec

EPS = 8 / 255
ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.2)
WORST_THERE = "worst there"  # of all attacks, on AutoAttack's images


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the service says of n images: `predicted` (n,) and whether that is `right`, adversarial `score` (n,) of the
    `evidence` (n, columns), `p_value` (n,).
    """

    right: npt.NDArray[np.bool_]
    predicted: Labels
    score: npt.NDArray[np.float32]
    evidence: npt.NDArray[np.float32]
    p_value: npt.NDArray[np.float32]

    def flagged(self, alpha: float) -> npt.NDArray[np.bool_]:
        """(n,) bool."""
        return self.p_value <= np.float32(alpha)


def measure_heads(
    record: RunRecord,
    attackers: Attackers,
    taught: Mapping[str, Taught],
    dataset: Dataset,
    suite: Suite,
    *,
    journal: Journal | None = None,
) -> dict[str, Any]:
    """By head of `taught`, everything in docs/report.md below `heads`; `journal` keeps what attacks on both have
    reached.
    """
    transferred = tuple(f"pgd10-8@{source}" for source in attackers.sources)
    names = (CLEAN, NOISE, *suite.attacks, *transferred)
    attackers.check(names)
    if not dataset.parts["test"]:
        raise OptionError("the dataset has no test part", hint="A report is about images that nothing was fitted on.")
    device, network = attackers.to_device(), attackers.network
    spec = image_spec(record.config)
    chosen = images_array(spread(dataset.parts["test"], suite.count), spec)
    clean = images_array(spread(dataset.parts["test"], suite.clean_count), spec)
    kept = Journal() if journal is None else journal
    found = {
        head: _Bench(Defended(network, head, detector).to(device), lessons, attackers, suite, kept).measured(
            chosen, clean, names
        )
        for head, (detector, lessons) in taught.items()
    }
    for head, measured in found.items():
        judged = gates(head, measured, network.config.classes, record.results.get("outcome"))
        measured["gates"] = [asdict(gate) for gate in judged]
    return found


class _Bench:
    """One defended head under one suite."""

    def __init__(
        self,
        defended: Defended,
        lessons: Lessons,
        attackers: Attackers,
        suite: Suite,
        journal: Journal,
    ) -> None:
        self.defended, self.lessons, self.attackers = defended, lessons, attackers
        self.suite, self.seed, self.journal = suite, attackers.seed, journal
        self.network, self.head = defended.network, defended.head
        self.alpha = defended.detector.alpha
        self.device = next(defended.parameters()).device

    def measured(
        self, chosen: tuple[Images, Labels], clean: tuple[Images, Labels], names: Sequence[str]
    ) -> dict[str, Any]:
        images, labels = chosen
        with Work(f"{self.head}: attacks", (len(names) - 1) * len(labels)) as work:
            seen = {name: self.see(self.attacked(name, images, labels, work), labels) for name in names}
        accuracy = {name: share(each.right.sum(), len(labels)) for name, each in seen.items()}
        worst = np.all([each.right for name, each in seen.items() if name != NOISE], axis=0)
        accuracy[WORST] = share(worst.sum(), len(labels))
        able = self.network.config.classes >= AUTO_CLASSES and AUTOATTACK not in names
        if self.suite.autoattack_count and able:
            picked = evenly(len(labels), self.suite.autoattack_count)
            with Work(f"{self.head}: AutoAttack", len(picked)) as work:
                made = self.attacked(AUTOATTACK, images[picked], labels[picked], work)
            found = self.see(made, labels[picked])
            accuracy[AUTOATTACK] = share(found.right.sum(), len(picked))
            accuracy[WORST_THERE] = share((worst[picked] & found.right).sum(), len(picked))
            seen_auto = {AUTOATTACK: (picked, found)}
        else:
            seen_auto = {}
        pairs = {name: (np.arange(len(labels)), each) for name, each in seen.items()} | seen_auto
        adaptive = self._adaptive(images, labels, seen)
        everything = self.see(*clean)
        return {
            "accuracy": accuracy,
            "curve": accuracy_curve(self.network, self.head, chosen, self.suite.curve_steps, self.seed),
            "detection": {name: self._detection(seen[CLEAN], *each) for name, each in pairs.items() if name != CLEAN},
            "left_out": {
                name: self._left_out(name, seen[CLEAN], *each)
                for name, each in pairs.items()
                if name not in (CLEAN, NOISE)
            },
            "system": {name: self._system(each) for name, (_, each) in pairs.items()},
            "adaptive": adaptive,
            "clean": self._clean(everything),
            "zero_gradients": self._zero_gradients(images, labels),
            "answers": {name: _plain(each) for name, each in seen.items()},
        }

    def attacked(self, name: str, images: Images, labels: Labels, work: Work | None = None) -> Images:
        """(n, H, W, 3) after an attack by name."""
        return attacked(name, self.attackers.on(self.head), (images, labels), work=work)

    @torch.no_grad()
    def see(self, images: Images, labels: Labels) -> Seen:
        """What the service would say of (n, H, W, 3) uint8."""
        answers = [self.defended(from_bytes(batch)) for batch, _ in by_batch(images, labels, self.device)]
        predicted = torch.cat([answer.logits for answer in answers]).argmax(1).cpu().numpy()
        score = torch.cat([answer.score for answer in answers]).cpu().numpy()
        evidence = torch.cat([answer.evidence for answer in answers]).cpu().numpy()
        p_value = self.defended.detector.p_values(score, predicted)
        return Seen(right=predicted == labels, predicted=predicted, score=score, evidence=evidence, p_value=p_value)

    def _detection(self, clean: Seen, picked: npt.NDArray[np.integer], attacked: Seen) -> dict[str, Any]:
        """Attacked images that fool the network against all clean ones, and all attacked ones against them."""
        positive = fooled(clean.right[picked], attacked.right)
        positives = attacked.score[positive]
        return {
            "fooled": int(positive.sum()),
            **self._area(clean.score, positives, picked[positive]),
            "auroc_all": _rounded(auroc(clean.score, attacked.score)),
            "tnr_at_95": _rounded(true_negatives(clean.score, positives)),
            "flagged": share(attacked.flagged(self.alpha).sum(), len(picked)),
            "flagged_of_fooled": share(attacked.flagged(self.alpha)[positive].sum(), int(positive.sum())),
        }

    def _left_out(self, name: str, clean: Seen, picked: npt.NDArray[np.integer], attacked: Seen) -> dict[str, Any]:
        """AUROC of fooled images where the attack did not teach the weights, where none of its family did, and where no
        attack did.
        """
        positive = fooled(clean.right[picked], attacked.right)
        taught = tuple(each for each in self.lessons.fooled if each != name)
        distant = strangers(name, self.lessons.fooled)
        found: dict[str, Any] = {
            "fooled": int(positive.sum()),
            "taught": list(taught),
            "family": family(name),
            "taught_without_family": list(distant),
        }
        for key, attacks in (("left_out", taught), ("family_left_out", distant), ("attack_free", ())):
            combination = self.lessons.combination(attacks)
            negatives = combination.score(clean.evidence)
            found[key] = self._area(negatives, combination.score(attacked.evidence[positive]), picked[positive])
        return found

    def _area(
        self, negatives: npt.NDArray[np.float32], positives: npt.NDArray[np.float32], pairs: npt.NDArray[np.integer]
    ) -> dict[str, Any]:
        low, high = auroc_interval(negatives, positives, pairs, self.seed)
        return {"auroc": _rounded(auroc(negatives, positives)), "interval": [round(low, 4), round(high, 4)]}

    def _system(self, seen: Seen) -> list[dict[str, Any]]:
        """What a user meets: answered wrongly and not flagged, and flagged at all, by alpha."""
        return [
            {
                "alpha": alpha,
                "missed": share((~seen.right & ~seen.flagged(alpha)).sum(), len(seen.right)),
                "flagged": share(seen.flagged(alpha).sum(), len(seen.right)),
            }
            for alpha in dict.fromkeys((*ALPHAS, self.alpha))
        ]

    def _adaptive(self, images: Images, labels: Labels, seen: Mapping[str, Seen]) -> dict[str, Any]:
        """Success: answered wrongly and not flagged at the detector's alpha, of all images, as in `system`."""
        suite, alpha = self.suite, self.alpha
        picked = evenly(len(labels), suite.adaptive_count)
        known = {
            attack.name: attack
            for attack in attacks_on_both(self.network, self.head, eps=EPS, steps=suite.adaptive_steps, alpha=alpha)
        }
        attacks = [known[name] for name in suite.adaptive if name in known]
        found = {STATIC: np.zeros(len(picked), bool)}  # nobody, where no attack was asked for
        for name, each in seen.items():
            if name not in (CLEAN, NOISE):
                found[STATIC] |= (~each.right & ~each.flagged(alpha))[picked]
        with Work(f"{self.head}: attacks that know the detector", len(attacks) * len(picked)) as work:
            for attack in attacks:
                part = images[picked], labels[picked]
                found[attack.name] = success(attack, self.defended, part, self.seed, self.journal, work)
        found[ANY] = np.any(list(found.values()), axis=0)
        return {
            "eps": EPS,
            "steps": suite.adaptive_steps,
            "alpha": alpha,
            "images": len(picked),
            "success": {name: share(each.sum(), len(picked)) for name, each in found.items()},
        }

    def _clean(self, seen: Seen) -> dict[str, Any]:
        """Whether the p-values of clean test images are what they say, and whether it is mistakes that are flagged."""
        flags, groups = seen.flagged(self.alpha), self.defended.detector.groups(seen.predicted)
        mistakes = seen.score[~seen.right]
        classes = {
            str(label): share(flags[seen.predicted == label].sum(), int((seen.predicted == label).sum()))
            for label in np.unique(seen.predicted)
        }
        return {
            "right": share(seen.right.sum(), len(seen.right)),
            "flagged": share(flags.sum(), len(flags)),
            "alpha": self.alpha,
            "groups": [list(each) for each in groups],
            "coverage": [
                {
                    "alpha": alpha,
                    "flagged": share(seen.flagged(alpha).sum(), len(flags)),
                    "expected": [round(each, 4) for each in flagged_interval(groups, alpha, 0.95)],
                }
                for alpha in sorted({*ALPHAS, self.alpha})
            ],
            "median_p_value": round(float(np.median(seen.p_value)), 4),
            "flagged_of_right": share(flags[seen.right].sum(), int(seen.right.sum())),
            "flagged_of_wrong": share(flags[~seen.right].sum(), int((~seen.right).sum())),
            "mistakes": {"auroc": _rounded(auroc(seen.score[seen.right], mistakes)), "count": len(mistakes)},
            "by_predicted_class": classes,
            "p_values": np.sort(seen.p_value).round(5).tolist(),
        }

    def _zero_gradients(self, images: Images, labels: Labels) -> dict[str, Any]:
        loss, zero = loss_of(self.network, self.head), 0
        for batch, known in by_batch(images, labels, self.device):
            gradient = gradient_of(loss, from_bytes(batch), known)
            zero += int((gradient.flatten(1).abs().amax(1) == 0).sum())
        return share(zero, len(labels))


def _plain(seen: Seen) -> dict[str, Any]:
    return {
        "right": "".join("01"[each] for each in seen.right.astype(int)),
        "score": seen.score.astype(float).round(4).tolist(),
        "p_value": seen.p_value.astype(float).round(5).tolist(),
    }


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)
