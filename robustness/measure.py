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
from bundle.progress import Work, shown
from detector.model import Detector
from robustness.accuracy import AUTOATTACK, WORST
from robustness.adaptive import AdaptiveAttack, attack_both
from robustness.defended import Defended
from robustness.fitting import Images, Labels, Lessons, attacked, by_batch
from robustness.gates import ANY, STATIC, gates
from robustness.metrics import auroc, auroc_interval, share, true_negatives
from robustness.suites import CURVE, JOINT_WEIGHTS, ORTHOGONAL, OWN_HEAD, SELECTIVE, Suite
from training.adversaries import AUTO_CLASSES, CLEAN, NOISE, check_attacks, spread
from training.attack_losses import judge_of, loss_of, losses_against
from training.attacks import Attack, from_bytes, round_to_bytes, worst_case
from training.data import Dataset
from training.data.loading import images_array
from training.networks import Network
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


def measure(
    record: RunRecord,
    network: Network,
    detectors: Mapping[str, Detector],
    dataset: Dataset,
    suite: Suite,
    *,
    lessons: Mapping[str, Lessons],
    sources: Mapping[str, Network],
    seed: int,
) -> dict[str, Any]:
    """By head of `detectors`, everything in docs/report.md below `heads`. `lessons` are what their combinations were
    learnt from.
    """
    transferred = tuple(f"pgd10-8@{source}" for source in sources)
    names = (CLEAN, NOISE, *suite.attacks, *transferred)
    check_attacks(names, sources, network)
    if not dataset.parts["test"]:
        raise OptionError("the dataset has no test part", hint="A report is about images that nothing was fitted on.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for each in (network, *sources.values()):
        each.to(device).eval()
    spec = image_spec(record.config)
    chosen = images_array(spread(dataset.parts["test"], suite.count), spec)
    clean = images_array(spread(dataset.parts["test"], suite.clean_count), spec)
    found = {
        head: _Bench(Defended(network, head, detector).to(device), lessons[head], sources, suite, seed).measure(
            chosen, clean, names
        )
        for head, detector in detectors.items()
    }
    for head, measured in found.items():
        judged = gates(head, measured, network.config.classes, record.results.get("outcome"))
        measured["gates"] = [asdict(gate) for gate in judged]
    return found


class _Bench:
    """One defended head under one suite."""

    def __init__(
        self, defended: Defended, lessons: Lessons, sources: Mapping[str, Network], suite: Suite, seed: int
    ) -> None:
        self.defended, self.lessons, self.sources = defended, lessons, sources
        self.suite, self.seed = suite, seed
        self.network, self.head = defended.network, defended.head
        self.alpha = defended.detector.alpha
        self.device = next(defended.parameters()).device

    def measure(
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
            picked = _evenly(len(labels), self.suite.autoattack_count)
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
            "curve": self._curve(images, labels),
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
        part = images, labels
        return attacked(name, self.network, self.head, part, self._generator(), self.sources, work=work)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    @torch.no_grad()
    def see(self, images: Images, labels: Labels) -> Seen:
        """What the service would say of (n, H, W, 3) uint8."""
        answers = [self.defended(from_bytes(batch)) for batch, _ in by_batch(images, labels, self.device)]
        predicted = torch.cat([answer.logits for answer in answers]).argmax(1).cpu().numpy()
        score = torch.cat([answer.score for answer in answers]).cpu().numpy()
        evidence = torch.cat([answer.evidence for answer in answers]).cpu().numpy()
        p_value = self.defended.detector.p_values(score, predicted)
        return Seen(right=predicted == labels, predicted=predicted, score=score, evidence=evidence, p_value=p_value)

    def _curve(self, images: Images, labels: Labels) -> list[dict[str, Any]]:
        """Accuracy against eps (Fig. 6): PGD from a random start, steps of 2.5 eps / steps (Madry et al. 2018)."""
        steps, points = self.suite.curve_steps, []
        if not steps:
            return []
        losses, judge = losses_against(self.network, self.head), judge_of(self.network, self.head)
        for level in shown(CURVE, f"{self.head}: accuracy against eps", unit="points"):
            eps = level / 255
            attack = Attack(name="curve", eps=eps, steps=steps, step=2.5 * eps / steps, random_start=True)
            generator = self._generator()
            made = [
                round_to_bytes(worst_case(attack, losses, judge, from_bytes(batch), known, generator).images)
                .cpu()
                .numpy()
                for batch, known in by_batch(images, labels, self.device)
            ]
            found = self.see(np.concatenate(made), labels)
            points.append({"eps": eps, "right": share(found.right.sum(), len(labels))})
        return points

    def _detection(self, clean: Seen, picked: npt.NDArray[np.integer], attacked: Seen) -> dict[str, Any]:
        """Attacked images that fool the network against all clean ones, and all attacked ones against them."""
        fooled = clean.right[picked] & ~attacked.right
        positives = attacked.score[fooled]
        low, high = auroc_interval(clean.score, positives, picked[fooled], self.seed)
        return {
            "fooled": int(fooled.sum()),
            "auroc": _rounded(auroc(clean.score, positives)),
            "interval": [round(low, 4), round(high, 4)],
            "auroc_all": _rounded(auroc(clean.score, attacked.score)),
            "tnr_at_95": _rounded(true_negatives(clean.score, positives)),
            "flagged": share(attacked.flagged(self.alpha).sum(), len(picked)),
            "flagged_of_fooled": share(attacked.flagged(self.alpha)[fooled].sum(), int(fooled.sum())),
        }

    def _left_out(self, name: str, clean: Seen, picked: npt.NDArray[np.integer], attacked: Seen) -> dict[str, Any]:
        """AUROC of fooled images where the attack did not teach the weights, and where none did."""
        fooled = clean.right[picked] & ~attacked.right
        taught = tuple(each for each in self.lessons.fooled if each != name)
        found: dict[str, Any] = {"fooled": int(fooled.sum()), "taught": list(taught)}
        for key, attacks in (("left_out", taught), ("attack_free", ())):
            combination = self.lessons.combination(attacks)
            negatives = combination.score(clean.evidence)
            positives = combination.score(attacked.evidence[fooled])
            low, high = auroc_interval(negatives, positives, picked[fooled], self.seed)
            interval = [round(low, 4), round(high, 4)]
            found[key] = {"auroc": _rounded(auroc(negatives, positives)), "interval": interval}
        return found

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
        """Success: answered wrongly and not flagged at 5 % false positives, of all images, as in `system`."""
        suite, alpha = self.suite, 0.05
        picked = _evenly(len(labels), suite.adaptive_count)
        known = {
            **{name: _adaptive_attack(name, "joint", suite, weight=weight) for name, weight in JOINT_WEIGHTS.items()},
            SELECTIVE: _adaptive_attack(SELECTIVE, "selective", suite),
            ORTHOGONAL: _adaptive_attack(ORTHOGONAL, "orthogonal", suite),
        }
        if len(losses_against(self.network, self.head)) > 1:
            known[OWN_HEAD] = _adaptive_attack(OWN_HEAD, "selective", suite, own=True)
        attacks = [known[name] for name in suite.adaptive if name in known]
        static = [each for name, each in seen.items() if name not in (CLEAN, NOISE)]
        success = {STATIC: np.any([(~each.right & ~each.flagged(alpha))[picked] for each in static], axis=0)}
        for attack in shown(attacks, f"{self.head}: attacks that know the detector", unit="attacks"):
            generator = self._generator()
            parts = [
                attack_both(attack, self.defended, from_bytes(batch), truth, generator).fooled.cpu()
                for batch, truth in by_batch(images[picked], labels[picked], self.device)
            ]
            success[attack.name] = torch.cat(parts).numpy()
        success[ANY] = np.any(list(success.values()), axis=0)
        return {
            "eps": EPS,
            "steps": suite.adaptive_steps,
            "alpha": alpha,
            "images": len(picked),
            "success": {name: share(each.sum(), len(picked)) for name, each in success.items()},
        }

    def _clean(self, seen: Seen) -> dict[str, Any]:
        """Whether the p-values of clean test images are what they say."""
        flags = seen.flagged(self.alpha)
        classes = {
            str(label): share(flags[seen.predicted == label].sum(), int((seen.predicted == label).sum()))
            for label in np.unique(seen.predicted)
        }
        return {
            "right": share(seen.right.sum(), len(seen.right)),
            "flagged": share(flags.sum(), len(flags)),
            "alpha": self.alpha,
            "calibration_n": self.defended.detector.calibration_n,
            "by_predicted_class": classes,
            "p_values": np.sort(seen.p_value).round(5).tolist(),
        }

    def _zero_gradients(self, images: Images, labels: Labels) -> dict[str, Any]:
        loss, zero = loss_of(self.network, self.head), 0
        for batch, known in by_batch(images, labels, self.device):
            pixels = from_bytes(batch).requires_grad_()
            (gradient,) = torch.autograd.grad(loss(pixels, known).sum(), pixels)
            zero += int((gradient.flatten(1).abs().amax(1) == 0).sum())
        return share(zero, len(labels))


def _evenly(n: int, count: int) -> npt.NDArray[np.int64]:
    """Positions of at most `count` of n images."""
    return np.array(spread(tuple(range(n)), count), np.int64)


def _adaptive_attack(name: str, method: str, suite: Suite, **more: Any) -> AdaptiveAttack:
    return AdaptiveAttack(name=name, method=method, eps=EPS, steps=suite.adaptive_steps, **more)


def _plain(seen: Seen) -> dict[str, Any]:
    return {
        "right": "".join("01"[each] for each in seen.right.astype(int)),
        "score": seen.score.astype(float).round(4).tolist(),
        "p_value": seen.p_value.astype(float).round(5).tolist(),
    }


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)
