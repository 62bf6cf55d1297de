"""The edit of a served graph: what `onnx` makes of it, and what is refused."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundle.errors import BundleUnsupported
from calibration.graph import recalibrated

SCORES = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)


def model(*, total: str = "total", alpha: str = "limit", shared: bool = False) -> onnx.ModelProto:
    """p_value = count / total, is_adversarial = p_value <= limit, with n = 2; `shared` uses the total elsewhere too."""
    nodes = [
        helper.make_node("GreaterOrEqual", ["calibration", "score"], ["at_least"]),
        helper.make_node("Cast", ["at_least"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ones"], ["count"], keepdims=0),
        helper.make_node("Div", ["count", total], ["p_value"]),
        helper.make_node("LessOrEqual", ["p_value", alpha], ["is_adversarial"]),
        helper.make_node("Mul", ["score", "total" if shared else "factor"], ["scaled"]),
    ]
    values = {"calibration": [[1, 2]], "total": 3, "limit": 0.5, "factor": 3}
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [1])],
        [
            helper.make_tensor_value_info("p_value", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("is_adversarial", TensorProto.BOOL, []),
            helper.make_tensor_value_info("scaled", TensorProto.FLOAT, [1]),
        ],
        [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in values.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(made, {"fieldmark.network": "full"})
    return made


def constants(data: bytes) -> dict[str, list[float]]:
    graph = onnx.load_from_string(data).graph
    return {each.name: numpy_helper.to_array(each).tolist() for each in graph.initializer}


def run(data: bytes, score: float) -> list[float]:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return [np.asarray(each).item() for each in session.run(None, {"score": np.array([score], np.float32)})]


def test_scores_their_number_and_alpha_change_and_nothing_else() -> None:
    before = model()
    after = recalibrated(before.SerializeToString(), {"calibration": SCORES}, 0.25)
    assert constants(after) == {"calibration": SCORES.tolist(), "total": 5, "limit": 0.25, "factor": 3}
    changed = onnx.load_from_string(after)
    onnx.checker.check_model(changed, full_check=True)
    del before.graph.initializer[:], changed.graph.initializer[:]
    assert changed == before  # nodes, names, metadata
    assert run(after, 2.5) == pytest.approx([2 / 5, False, 7.5])
    assert run(after, 3.5) == pytest.approx([1 / 5, True, 10.5])


def test_a_constant_that_others_use_stays_and_a_new_one_takes_its_place() -> None:
    once = recalibrated(model(shared=True).SerializeToString(), {"calibration": SCORES}, 0.25)
    assert constants(once)["total"] == 3
    assert constants(once)["calibration_total"] == 5
    assert run(once, 2.5) == pytest.approx([2 / 5, False, 7.5])
    twice = recalibrated(once, {"calibration": SCORES[:, :3]}, 0.5)
    assert constants(twice)["calibration_total"] == 4
    assert len(constants(twice)) == len(constants(once))


def test_scores_by_class_need_no_total() -> None:
    made = model()
    made.graph.initializer.append(numpy_helper.from_array(np.array([[0, 1]]), "calibration_classes"))
    rows = {"calibration": SCORES, "calibration_classes": np.array([[0, 1, 0, 1]])}
    after = constants(recalibrated(made.SerializeToString(), rows, 0.25))
    assert after["calibration_classes"] == [[0, 1, 0, 1]]
    assert after["total"] == 3


def damaged() -> dict[str, bytes]:
    whole = model().SerializeToString()
    renamed = model()
    renamed.graph.initializer[0].name = "scores"
    computed = model(total="count")
    return {
        "it ends too early": whole[:-3],
        "no ONNX file": b"\x0f" + whole,
        "no initializer 'calibration'": renamed.SerializeToString(),
        "p_value is not made with a constant": computed.SerializeToString(),
        "no node makes": onnx.ModelProto(graph=onnx.GraphProto(name="empty")).SerializeToString(),
    }


@pytest.mark.parametrize("problem", damaged())
def test_another_graph_is_refused(problem: str) -> None:
    with pytest.raises(BundleUnsupported, match=f"{problem}.*Export the run again"):
        recalibrated(damaged()[problem], {"calibration": SCORES}, 0.25)


def test_whatever_bytes_come_it_ends_in_a_sentence_or_a_graph() -> None:
    whole, random = model().SerializeToString(), np.random.default_rng(0)
    for _ in range(300):
        spoilt = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            spoilt[place] = random.integers(0, 256)
        try:
            recalibrated(bytes(spoilt), {"calibration": SCORES}, 0.25)
        except BundleUnsupported:
            continue
