"""Triton's Python-backend adapter over ONNX Runtime. `serving.triton.repository` copies it into a model folder.

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
        self.shape = tuple(int(size) for size in config["input"][0]["dims"])  # (H, W, 3)
        self.outputs = [output["name"] for output in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response for each request: an error for what cannot be run, and nonetheless answers for its neighbours."""
        batches = [self._read(request) for request in requests]
        sound = [batch for batch in batches if batch is not None]
        answers = iter(self._run(sound) if sound else [])
        return [_respond(self.outputs, None if batch is None else next(answers)) for batch in batches]

    def _read(self, request: Any) -> Any:
        """The request's images : (n, H, W, 3) uint8, or None if it holds none that the network can take."""
        try:
            batch = pb_utils.get_input_tensor_by_name(request, self.input).as_numpy()
        except Exception as problem:  # an uncaught one would fail the whole batch, and send its stack to the client
            _log(problem)
            return None
        return batch if batch.dtype == np.uint8 and len(batch) and batch.shape[1:] == self.shape else None

    def _run(self, batches: list[Any]) -> list[Any]:
        """The outputs of each batch, or None: of all together, and where that fails of each one alone."""
        try:
            answers = self.session.run(self.outputs, {self.input: np.concatenate(batches)})
        except Exception as problem:
            if len(batches) > 1:
                return [self._run([batch])[0] for batch in batches]
            _log(problem)
            return [None]
        ends = np.cumsum([len(batch) for batch in batches])
        parts = [np.split(answer, ends[:-1]) for answer in answers]  # for each output, a part for each request
        return list(zip(*parts, strict=True))


def _respond(outputs: list[str], answer: Any) -> Any:
    if answer is None:
        error = pb_utils.TritonError("the network could not be run on this request; the server's log says why")
        return pb_utils.InferenceResponse(error=error)
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, part) for name, part in zip(outputs, answer, strict=True)])


def _log(problem: Exception) -> None:
    pb_utils.Logger.log_error(f"{type(problem).__name__}: {problem}")
