"""A bundle whose `full` network fails on some images, as a network in life may: what then happens to the others?"""

import dataclasses
import shutil
from pathlib import Path

from bundle import Bundle, tensors
from bundle.folder import write_bundle


def brittle_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle, but its `full` graph looks up the darkest value of an image in a table that ends at 254.

    So only an image that is white all over fails, and the random ones of warm-up and probe do not.
    """
    import onnx
    from onnx import TensorProto, helper

    staged = folder / "staged"
    shutil.copytree(bundle.path, staged, ignore=shutil.ignore_patterns("manifest.json"))
    model = onnx.load(staged / "full/model.onnx")
    (last,) = [node for node in model.graph.node if tensors.INSTANCE_SCORE in node.output]
    last.output[list(last.output).index(tensors.INSTANCE_SCORE)] = "inner_score"
    for node in model.graph.node:
        node.input[:] = ["inner_score" if name == tensors.INSTANCE_SCORE else name for name in node.input]
    model.graph.initializer.extend(
        [
            helper.make_tensor("pixels", TensorProto.INT64, [3], [1, 2, 3]),
            helper.make_tensor("table", TensorProto.FLOAT, [255], [0.0] * 255),
        ]
    )
    model.graph.node.extend(
        [
            helper.make_node("Cast", [tensors.IMAGE], ["values"], to=TensorProto.INT64),
            helper.make_node("ReduceMin", ["values", "pixels"], ["darkest"], keepdims=0),
            helper.make_node("Gather", ["table", "darkest"], ["nothing"]),
            helper.make_node("Add", ["inner_score", "nothing"], [tensors.INSTANCE_SCORE]),
        ]
    )
    onnx.save(model, staged / "full/model.onnx")
    return rebuilt(bundle, staged, folder / "brittle")


def rebuilt(bundle: Bundle, staged: Path, path: Path) -> Bundle:
    """A bundle of staged files with the manifest of another."""
    fields = {field.name: getattr(bundle.manifest, field.name) for field in dataclasses.fields(bundle.manifest)}
    return write_bundle(path, staged, {name: value for name, value in fields.items() if name != "files"})
