"""Whatever answers at an address: a service of fieldmark.v1, which is sent files as they are, or a bundle's Triton."""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from bundle import Bundle
from bundle.errors import ImageError, RequestRefused
from bundle.image import ImageSpec, encoded_image
from serving.client.classify import Answer, check_names, check_options, classify_files, prototype_images
from serving.client.prediction import Prediction, refuse_alpha
from serving.client.remote import UNIX, TritonInference, check_bundle
from serving.gateway.calls import AnotherService, Tls
from serving.gateway.client import FieldmarkClient
from serving.gateway.generated import fieldmark_pb2 as v1

AT_ONCE = 4  # requests to a service


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of every image; None leaves it to the bundle."""

    network: str | None = None
    alpha: float | None = None
    top: int = 1
    explain: bool = False


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer a file, in order, and how they are made: the network, and the alpha that flags are decided at."""

    each: Iterator[Answer]
    network: str
    alpha: float


class Endpoint(Protocol):
    """Something at `url` that serves the bundle of this id."""

    url: str
    bundle_id: str

    def ask(self, paths: Sequence[Path], question: Question) -> Reply:
        """Begin to classify files; raises OptionError or EndpointError for a question that has no answer here."""
        ...


@contextmanager
def open_endpoint(
    url: str, *, key: str = "", tls: Tls | None = None, timeout: float = 30.0, expected: Bundle | None = None
) -> Iterator[Endpoint]:
    """What answers at `url`; raises EndpointError, also where it serves another bundle than the `expected` one."""
    wanted = expected.bundle_id if expected else None
    if not url.startswith(UNIX):
        with FieldmarkClient(url, key=key, tls=tls, timeout=timeout) as client:
            try:
                described = client.describe()
            except AnotherService:
                if tls is not None:
                    raise
                url = client.url
            else:
                check_bundle(client.url, described.bundle_id, wanted)
                yield Service(client, described)
                return
    with TritonInference.connect(url, timeout=timeout, expect_bundle=wanted) as inference:
        yield Triton(inference, expected)


class Triton:
    """Images are decoded here; prototypes' images are those of `bundle`."""

    def __init__(self, inference: TritonInference, bundle: Bundle | None) -> None:
        self.url, self.bundle_id = inference.url, inference.bundle_id
        self._inference, self._bundle = inference, bundle

    def ask(self, paths: Sequence[Path], question: Question) -> Reply:
        """As `Endpoint` says."""
        manifest = self._inference.manifest
        network, alpha = question.network or manifest.main_network, question.alpha
        check_options(manifest, network, alpha, question.top)
        look_up = prototype_images(self._bundle, manifest) if question.explain else None
        found = classify_files(self._inference, paths, network, alpha=alpha, top=question.top, look_up=look_up)
        used = manifest.networks[network].detector.alpha if alpha is None else alpha
        return Reply(each=found, network=network, alpha=used)


class Service:
    """Images go as they are, some at a time; what is wrong with one of them alone is its answer."""

    def __init__(self, client: FieldmarkClient, described: v1.DescribeResponse) -> None:
        self.url, self.bundle_id = client.url, described.bundle_id
        self._client, self._described = client, described

    def ask(self, paths: Sequence[Path], question: Question) -> Reply:
        """As `Endpoint` says."""
        networks = {each.name: each for each in self._described.networks}
        network = question.network or next(iter(networks))
        check_names(list(networks), len(self._described.labels), network, question.top)
        refuse_alpha(question.alpha, networks[network].smallest_alpha)
        used = networks[network].alpha if question.alpha is None else question.alpha
        return Reply(each=self._answers(paths, network, question), network=network, alpha=used)

    def _answers(self, paths: Sequence[Path], network: str, question: Question) -> Iterator[Answer]:
        def answer(path: Path) -> Answer:
            try:
                content = encoded_image(path, self._described.limits.image_bytes)
                found = self._client.classify(
                    content, network=network, alpha=question.alpha, top_k=question.top, explain=question.explain
                )
            except ImageError as problem:
                return Answer(path=path, error=str(problem))
            except RequestRefused as refused:
                if not refused.reason.startswith("IMAGE_"):
                    raise
                return Answer(path=path, error=str(ImageError(f"{path}: {refused.what}", hint=refused.hint)))
            return _answer(path, found)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from pool.map(answer, paths)


def prediction_of(found: v1.ClassifyResponse) -> Prediction:
    """The same as this process would have it of the graph's outputs."""
    top, evidence = tuple((each.label, each.probability) for each in found.predictions), found.adversarial
    return Prediction(
        label=top[0][0],
        probability=top[0][1],
        top=top,
        instance_score=evidence.score,
        p_value=evidence.p_value,
        is_adversarial=evidence.flagged,
        layer_scores=tuple(each.squared_distance for each in evidence.layers),
        network=found.network,
        bundle_id=found.bundle_id,
    )


def _answer(path: Path, found: v1.ClassifyResponse) -> Answer:
    prediction = prediction_of(found)
    if not found.HasField("explanation"):
        return Answer(path=path, prediction=prediction)
    with Image.open(io.BytesIO(found.explanation.attention_png)) as attention:
        width, height = attention.size
    try:
        image = ImageSpec(width=width, height=height).read(path)
    except ImageError:  # the service knows a format that this machine does not
        image = np.full((height, width, 3), 255, np.uint8)
    return Answer(path=path, prediction=prediction, image=image, explanation=found.explanation)
