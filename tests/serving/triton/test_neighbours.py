"""One request that cannot be answered never harms the others in its batch: the adapter inside a real Triton."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bundle import Bundle, tensors
from serving.client.local import LocalInference
from serving.triton.config import Settings
from serving.triton.repository import write_repository
from tests.serving.triton.process import Triton, triton_over

pytestmark = pytest.mark.triton

POISON = 255  # of an image's first value: the graph below cannot look it up


def make_fragile(path: Path) -> None:
    """Change a graph: it looks the first value of each image up in a table of 255 zeros, and adds what it finds."""
    model = onnx.load(path)
    nodes, constants = model.graph.node, model.graph.initializer

    def constant(name: str, value: list[int]) -> str:
        constants.append(numpy_helper.from_array(np.array(value, dtype=np.int64), name))
        return name

    for node in nodes:
        node.output[:] = ["sound_score" if name == tensors.INSTANCE_SCORE else name for name in node.output]
    constants.append(numpy_helper.from_array(np.zeros(POISON, np.float32), "table"))
    corner = [tensors.IMAGE, constant("from", [0, 0, 0]), constant("to", [1, 1, 1]), constant("axes", [1, 2, 3])]
    nodes.append(helper.make_node("Slice", corner, ["corner"]))
    nodes.append(helper.make_node("Cast", ["corner"], ["corner_index"], to=TensorProto.INT64))
    nodes.append(helper.make_node("Reshape", ["corner_index", constant("flat_index", [-1])], ["index"]))
    nodes.append(helper.make_node("Gather", ["table", "index"], ["nothing"]))
    nodes.append(helper.make_node("Add", ["sound_score", "nothing"], [tensors.INSTANCE_SCORE]))
    onnx.save(model, path)


@pytest.fixture(scope="module")
def fragile(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A Triton that waits a while for a full batch, and whose `full` network fails on an image that begins with 255."""
    models = tmp_path_factory.mktemp("fragile") / "models"
    write_repository(toy_bundle, models, Settings(cores=1))
    make_fragile(models / "full" / "1" / "model.onnx")
    config = models / "full" / "config.pbtxt"
    patient, count = re.subn(r"(max_queue_delay_microseconds): \d+", r"\1: 300000", config.read_text())
    assert count == 1
    config.write_text(patient)
    with triton_over(models, "--disable-auto-complete-config") as triton:
        yield triton


def ask(stub: Any, image: np.ndarray, shape: tuple[int, ...] | None = None) -> Any:
    """Triton's answer to one image : (32, 32, 3) uint8, sent as if it had `shape`; or its error."""
    request = service_pb2.ModelInferRequest(model_name="full", raw_input_contents=[image.tobytes()])
    request.inputs.add(name=tensors.IMAGE, datatype="UINT8", shape=shape or (1, *image.shape))
    request.outputs.add(name=tensors.INSTANCE_SCORE)
    try:
        return np.frombuffer(stub.ModelInfer(request, timeout=30).raw_output_contents[0], np.float32)[0]
    except grpc.RpcError as problem:
        return problem


def together(triton: Triton, *asked: tuple[Any, ...]) -> list[Any]:
    """What all of them are answered, sent in the same moment."""
    start = threading.Barrier(len(asked))

    def one(arguments: tuple[Any, ...]) -> Any:
        start.wait()
        return ask(stub, *arguments)

    with grpc.insecure_channel(triton.url) as channel, ThreadPoolExecutor(len(asked)) as pool:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return list(pool.map(one, asked))


def test_one_image_that_breaks_the_graph_fails_alone(
    fragile: Triton, toy_bundle: Bundle, toy_images: np.ndarray
) -> None:
    poisoned = toy_images[7].copy()
    poisoned[0, 0, 0] = POISON
    images = [*toy_images[:7], poisoned]
    *answers, failed = together(fragile, *((image,) for image in images))
    expected = LocalInference(toy_bundle).infer(toy_images[:7], "full")[tensors.INSTANCE_SCORE]
    np.testing.assert_allclose(answers, expected, rtol=1e-4)
    assert "could not be run on this request" in failed.details()
    assert "Traceback" not in failed.details()
    assert "model.py" not in failed.details()


@pytest.mark.parametrize("count", [2**32, 2**32 + 1, 2**63 - 1, 0, -1])
def test_a_shape_that_lies_harms_nobody_else(
    fragile: Triton, toy_bundle: Bundle, toy_images: np.ndarray, count: int
) -> None:
    expected = LocalInference(toy_bundle).infer(toy_images[:7], "full")[tensors.INSTANCE_SCORE]
    for _ in range(3):
        liar = (toy_images[7], (count, *toy_images[7].shape))
        *answers, _ = together(fragile, *((image,) for image in toy_images[:7]), liar)
        np.testing.assert_allclose(answers, expected, rtol=1e-4)
