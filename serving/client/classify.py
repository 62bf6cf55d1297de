"""Image files to answers over any Inference: decoded by the served bundle's own image spec, sent in batches."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle import Bundle, Manifest
from bundle.errors import BundleError, EndpointError, ImageError, OptionError
from serving.client.prediction import Inference, Prediction, check_alpha, predictions
from serving.gateway.answer import LookUp, make_explanation
from serving.gateway.generated import fieldmark_pb2 as v1

BATCH = 64  # images in one request, and so the most that is held decoded at a time


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One file's answer, or why there is none. `image` : (H, W, 3) uint8, and the pictures behind the answer where they
    were asked for.
    """

    path: Path
    prediction: Prediction | None = None
    error: str = ""
    image: npt.NDArray[np.uint8] | None = None
    explanation: v1.Explanation | None = None


def check_options(manifest: Manifest, network: str, alpha: float | None, top: int) -> None:
    """Raise OptionError, or EndpointError for a network that is not there, before any image is read."""
    check_names(list(manifest.networks), len(manifest.labels), network, top)
    check_alpha(manifest, network, alpha)


def check_names(networks: Sequence[str], labels: int, network: str, top: int) -> None:
    """The same of a network's name and a number of labels alone."""
    if network not in networks:
        raise EndpointError(f"the served bundle has no network {network!r}", hint=f"It has: {', '.join(networks)}.")
    if not 1 <= top <= labels:
        raise OptionError(f"--top {top} is not between 1 and {labels}, the number of labels")


def classify_files(
    inference: Inference,
    paths: Sequence[Path],
    network: str,
    *,
    alpha: float | None = None,
    top: int = 1,
    look_up: LookUp | None = None,
) -> Iterator[Answer]:
    """An answer for each path, in order; a file that cannot be decoded gets its error and does not stop the others.

    `look_up` gives prototypes' images for explanations; without it there are none.
    """
    for start in range(0, len(paths), BATCH):
        answers = [_read(inference.manifest, path) for path in paths[start : start + BATCH]]
        images = [answer.image for answer in answers if answer.image is not None]
        if images:
            outputs = inference.infer(np.stack(images), network)
            found = iter(enumerate(predictions(outputs, inference.manifest, network, alpha=alpha, top=top)))
        for answer in answers:
            if answer.image is None:
                yield answer
                continue
            row, prediction = next(found)
            explanation = None
            if look_up is not None:
                rows = {name: value[row] for name, value in outputs.items()}
                explanation = make_explanation(rows, inference.manifest, look_up)
            yield dataclasses.replace(answer, prediction=prediction, explanation=explanation)


def as_record(answer: Answer, name: str) -> dict[str, Any]:
    """An answer as JSON's own types, for `--json`; `name` is how the file is called there."""
    if answer.prediction is None:
        return {"file": name, "error": answer.error}
    return {"file": name, **dataclasses.asdict(answer.prediction)}


def prototype_images(bundle: Bundle | None, manifest: Manifest) -> Callable[[int], npt.NDArray[np.uint8] | None]:
    """How to look up a prototype's training image: in `bundle`, if it is the one of the manifest, else nowhere."""
    if bundle is None or bundle.bundle_id != manifest.bundle_id:
        return lambda index: None

    image = bundle.manifest.image
    # They are kept at the input size. A bundle sets the limits of images itself, so it could hold enormous ones.
    limits = dataclasses.replace(image, max_pixels=image.width * image.height)

    def look_up(index: int) -> npt.NDArray[np.uint8] | None:
        try:
            return limits.read(bundle.file(bundle.manifest.prototypes[index].image))
        except (IndexError, BundleError, ImageError):
            return None

    return look_up


def _read(manifest: Manifest, path: Path) -> Answer:
    try:
        return Answer(path=path, image=manifest.image.read(path))
    except ImageError as problem:
        return Answer(path=path, error=str(problem))
