"""A bundle's graphs in this process, over ONNX Runtime: what `serving.client.remote` does, without a server."""

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import BundleUnsupported, MissingExtra, ScoringError, first_line
from bundle.folder import Bundle
from bundle.tensors import IMAGE
from serving.client.prediction import Outputs, check_processor, check_runtime

# Azure's provider calls a remote service, and TensorRT's compiles for minutes at every start: neither is taken unasked.
NOT_BY_DEFAULT = ("AzureExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")


class LocalInference:
    """Implements `serving.client.prediction.Inference`. A network's session is created when it is first asked for.

    `threads` is the number of cores one call may use (default: all this process may run on); `providers` are ONNX
    Runtime's execution providers in order of preference (default: the available ones, GPU before CPU).
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None, providers: Sequence[str] | None = None) -> None:
        os.environ.setdefault(
            "ORT_DISABLE_TELEMETRY", "1"
        )  # its Linux wheels report their use, unless told before import
        try:
            import onnxruntime
        except ImportError as problem:
            raise MissingExtra.named("scoring", "inference in this process", problem) from None
        check_runtime(bundle.manifest, onnxruntime.__version__)
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.bundle_id = bundle.bundle_id
        self.threads = threads or len(os.sched_getaffinity(0))
        available = onnxruntime.get_available_providers()
        self.providers = tuple(providers or (name for name in available if name not in NOT_BY_DEFAULT))
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()

    def infer(self, images: npt.NDArray[np.uint8], network: str) -> Outputs:
        """Run `network` on images : (N, H, W, 3) uint8; returns every output of the network by name."""
        session = self._session(network)
        names = [tensor.name for tensor in self.manifest.networks[network].outputs]
        try:
            values = session.run(names, {IMAGE: images})
        except Exception as problem:  # ONNX Runtime's exceptions share no base class but Exception
            raise ScoringError(
                f"ONNX Runtime failed on {len(images)} images of network {network!r} ({first_line(problem)[:300]})",
                hint="If memory ran out, try a smaller batch.",
            ) from None
        return dict(zip(names, values, strict=True))

    def provider(self, network: str) -> str:
        """The first execution provider that the session of `network` has: ONNX Runtime passes over those that fail."""
        first: str = self._session(network).get_providers()[0]
        return first

    def _session(self, network: str) -> Any:
        with self._lock:
            if network not in self._sessions:
                self._sessions[network] = self._create(network)
            return self._sessions[network]

    def _create(self, network: str) -> Any:
        import onnxruntime

        path = self.bundle.model(network)
        if self.providers == ("CPUExecutionProvider",):
            check_processor(self.manifest, network)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        # Spinning threads would take the cores away from image decoding, which runs at the same time.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=list(self.providers))
        except Exception as problem:
            raise BundleUnsupported(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {path} ({first_line(problem)[:300]})",
                hint="Install a newer onnxruntime, or export the bundle again.",
            ) from None
