"""What a reader of a report must not believe, in plain words: what was not measured, what is not to be trusted."""

from collections.abc import Mapping
from typing import Any

from robustness.accuracy import AUTOATTACK, NO_AUTOATTACK, WORST
from robustness.gates import ANY, broken
from robustness.measure import EPS, WORST_THERE
from robustness.suites import SUITES
from training.attacks.names import AUTO_CLASSES, CLEAN

FEW = 100  # images, below which figures are rough


def attacked_images(document: Mapping[str, Any]) -> int:
    """Test images under every attack."""
    of: int = next(iter(document["heads"].values()))["accuracy"][CLEAN]["of"]
    return of


def not_measured(document: Mapping[str, Any]) -> list[str]:
    """What this report leaves out though a reader may look for it, a sentence each."""
    said = [NO_AUTOATTACK] if len(document["labels"]) < AUTO_CLASSES else []
    for head, detector in document["detectors"].items():
        if (lessons := detector["lessons"])["images"] < lessons["of"]:
            said.append(
                f"{head}: its detector learnt from {lessons['images']} of {lessons['of']} validation images, for want "
                "of time"
            )
    return [*said, *document["suite"]["left_out"]]


def limits(document: Mapping[str, Any]) -> list[str]:
    """What a reader must not believe after reading, in plain words and with this report's own figures."""
    said = not_measured(document)
    if (of := attacked_images(document)) < FEW:
        said.append(
            f"Figures under attack are of {of} images, fewer than {FEW}: one image is {100 / of:.1f} points, and the "
            "intervals beside them are wide."
        )
    for head, measured in document["heads"].items():
        worst = measured["accuracy"][WORST]
        said.append(
            f"{head}: the worst of this suite's attacks, AutoAttack aside, leaves {worst['count']} of {worst['of']} "
            "images right."
        )
        if AUTOATTACK in measured["accuracy"]:
            there, auto = measured["accuracy"][WORST_THERE], measured["accuracy"][AUTOATTACK]
            said.append(
                f"{head}: of the {auto['of']} images under AutoAttack it leaves {auto['count']} right, and all attacks "
                f"together {there['count']}."
            )
        if ANY in measured["adaptive"]["success"]:
            won = measured["adaptive"]["success"][ANY]
            said.append(
                f"{head}: an attacker who knows the detector gets {won['count']} of {won['of']} images past "
                f"network and detector at eps {255 * EPS:g}/255."
                + (" Against such an attacker the detector is no defence." if won["interval"][0] > 0.5 else "")
            )
        right, wrong = measured["clean"]["flagged_of_right"], measured["clean"]["flagged_of_wrong"]
        if wrong["of"] and wrong["interval"][0] > right["interval"][1]:
            said.append(
                f"{head}: of clean images {100 * right['share']:.1f} % of those answered rightly are flagged and "
                f"{100 * wrong['share']:.1f} % of those answered wrongly: a detector of mistakes as much as of attacks."
            )
        if found := broken(measured):
            said.append(
                f"{head}: gates are broken ({'; '.join(found)}), so its accuracy under attack is not to be trusted."
            )
    said.append(
        "Perturbations are bounded in the maximum norm. Patches, rotations, paint on the bird and unknown species were "
        "not tried."
    )
    suite = document["suite"]
    if not suite["autoattack_count"] or suite["adaptive_steps"] < SUITES["full"].adaptive_steps:
        auto = "" if suite["autoattack_count"] else ", no AutoAttack"
        said.append(
            f"{worst['of']} images, {suite['adaptive_steps']} adaptive steps{auto}: harder attacks leave less. "
            "fieldmark evaluate RUN --suite full."
        )
    for head, detector in document["detectors"].items():
        rate = detector["calibration"]["false_alarms"]
        said.append(
            f"{head}: with {detector['calibration_n']} calibration images no p-value is below "
            f"{detector['calibration']['smallest_p_value']:.2g}, and the true share of false alarms is "
            f"{100 * rate['mean']:.1f} % give or take {100 * rate['deviation']:.1f} points."
        )
    said.append(
        "p-values are valid for images like the calibration images. Another camera or season shifts them; "
        "fieldmark drift shows it, fieldmark calibrate mends it."
    )
    said.append(f"One training (seed {document['run']['config']['seed']}) on {document['dataset']['name']}.")
    return said
