"""Triton's Python-backend adapter over ONNX Runtime. `serving.repository` copies it into a model folder as model.py.

It stands alone: it runs inside Triton's Python stub, beside model.onnx, and may import nothing of ours.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance: one ONNX Runtime session, run once for every batch that Triton's dynamic batcher puts together."""

    def initialize(self, args: dict[str, str]) -> None:
        # ONNX Runtime reports its use to its makers over the internet unless this is set before it is imported.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["intra_op_threads"]["string_value"])
        # Instances share the cores, so an idle one must not burn its share by spinning.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = Path(__file__).with_name("model.onnx")
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.input = config["input"][0]["name"]
        self.outputs = [output["name"] for output in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        try:
            batches = [pb_utils.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
            answers = self.session.run(self.outputs, {self.input: np.concatenate(batches)})
        except Exception as problem:  # an uncaught one would send its stack to the client
            pb_utils.Logger.log_error(f"{type(problem).__name__}: {problem}")
            error = pb_utils.TritonError("the network could not be run on this batch; the server's log says why")
            return [pb_utils.InferenceResponse(error=error) for _ in requests]
        ends = np.cumsum([len(batch) for batch in batches])
        parts = [np.split(answer, ends[:-1]) for answer in answers]  # for each output, a part for each request
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, part) for name, part in zip(self.outputs, response, strict=True)]
            )
            for response in zip(*parts, strict=True)
        ]
