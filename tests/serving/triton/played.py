"""A gRPC server that plays Triton's protocol, and can be made any other server."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bundle import Bundle, tensors
from serving.client.local import LocalInference
from serving.triton.config import Served, Settings, model_config


class PlayedTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers with the bundle's graphs in process; its fields can be changed to make it any other server."""

    def __init__(self, bundle: Bundle) -> None:
        self.local = LocalInference(bundle)
        served = Served(number=1, manifest=bundle.manifest)
        settings, versions = Settings(cores=1), {1: bundle.bundle_id}
        self.configs = {name: model_config(name, settings, served, versions) for name in bundle.manifest.networks}
        self.batches: list[int] = []
        self.before: Callable[[Any], None] = lambda context: None
        self.change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda outputs: outputs

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="triton", version="9.9.9")

    def ModelConfig(self, request: Any, context: Any) -> Any:
        if request.name not in self.configs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        return service_pb2.ModelConfigResponse(config=self.configs[request.name])

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self.before(context)
        shape = tuple(request.inputs[0].shape)
        self.batches.append(shape[0])
        images = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(shape)
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, value in self.change(dict(self.local.infer(images, request.model_name))).items():
            outer = value.shape if value.ndim > 1 else (*value.shape, 1)
            response.outputs.add(name=name, datatype=tensors.DTYPES[name], shape=outer)
            response.raw_output_contents.append(np.ascontiguousarray(value).tobytes())
        return response


def listen(servicer: PlayedTriton | None, port: int = 0) -> tuple[Any, str]:
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    if servicer is not None:
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, f"127.0.0.1:{port}"
