"""The Triton behind the gateway, over gRPC and asyncio: deadlines and cancellation go along, failures get a reason.

Tensors are built here and nowhere else, one image a request, in the manifest's own shape: nothing that a caller sends
reaches Triton but decoded pixels.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from bundle import Manifest, tensors
from bundle.errors import EndpointError, OptionError, RequestRefused
from serving.client.prediction import Outputs
from serving.client.remote import ServedBundle, explain, numpy_type, parse_url, served_bundle, shaped
from serving.gateway import failures
from serving.triton.config import BUNDLE_ID

RESTRICTED = "triton-grpc-protocol-"  # Triton wants its flag's name behind this
CA, CERTIFICATE, KEY = "ca.pem", "client.pem", "client.key"
MAX_SECRET_BYTES = 4096
_ANSWERS = (
    tensors.PROBABILITIES,
    tensors.INSTANCE_SCORE,
    tensors.P_VALUE,
    tensors.IS_ADVERSARIAL,
    tensors.LAYER_SCORES,
)
# Triton's words for a worker process that is gone: the request was fine, and another try may be answered.
_GONE = ("stub process", "is not healthy", "shutting down", "unknown model", "not ready", "stopping")


@dataclass(frozen=True, kw_only=True)
class TritonAddress:
    """Where Triton is, and what lets the gateway in.

    `header` is the (name, value) that --grpc-restricted-protocol asks for; `tls` a folder with ca.pem, client.pem and
    client.key, for a Triton with --grpc-use-ssl-mutual. Both come from files: an argument stands in the process list.
    """

    url: str
    header: tuple[str, str] | None = None
    tls: Path | None = None


class Triton:
    """One channel to a Triton; make it inside the event loop, and close it there."""

    def __init__(self, address: TritonAddress) -> None:
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        self.url = parse_url(address.url)
        self._messages = service_pb2
        self._metadata = (address.header,) if address.header else ()
        options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
        # A Triton that comes back must be seen within a probe, not after two minutes of growing patience.
        options += [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
        options += [("grpc.use_local_subchannel_pool", 1)]
        if address.tls is None:
            self._channel = grpc.aio.insecure_channel(self.url, options=options)
        else:
            self._channel = grpc.aio.secure_channel(self.url, _credentials(address.tls), options=options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Close the channel; calls in work are cancelled."""
        await self._channel.close()

    async def learn(self, *, timeout: float, known: str = "", expect_bundle: str | None = None) -> ServedBundle | None:
        """What is served there, or None if it still is the bundle of the id `known`; raises EndpointError.

        `timeout` is in seconds, for each call.
        """
        found: dict[str, Any] = {}
        for network in tensors.NETWORKS:
            started = time.monotonic()
            request = self._messages.ModelConfigRequest(name=network)
            try:
                answer = await self._stub.ModelConfig(request, timeout=timeout, metadata=self._metadata)
            except grpc.aio.AioRpcError as problem:
                if "unknown model" in (problem.details() or "").lower():
                    continue
                elapsed = time.monotonic() - started
                raise explain(problem.code().name, problem.details() or "", self.url, elapsed) from None
            found[network] = answer.config
        if found and all(config.parameters[BUNDLE_ID].string_value == known for config in found.values()):
            return None
        return served_bundle(found, self.url, expect_bundle)

    async def infer(
        self,
        image: npt.NDArray[np.uint8],
        manifest: Manifest,
        network: str,
        *,
        timeout: float,
        explained: bool,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> Outputs:
        """Every output that an answer needs, for one image : (H, W, 3) uint8; with those of a picture if `explained`.

        `timeout` is in seconds; `headers` go along. Raises RequestRefused, also for an answer that makes no sense.
        """
        info = manifest.networks[network]
        wanted = [tensor for tensor in info.outputs if explained or tensor.name in _ANSWERS]
        request = self._messages.ModelInferRequest(model_name=network, raw_input_contents=[image.tobytes()])
        request.inputs.add(name=info.inputs[0].name, datatype=info.inputs[0].dtype, shape=(1, *image.shape))
        for tensor in wanted:
            request.outputs.add(name=tensor.name)
        try:
            answer = await self._stub.ModelInfer(request, timeout=timeout, metadata=(*self._metadata, *headers))
        except grpc.aio.AioRpcError as problem:
            raise _refused(problem) from None
        try:
            outputs = _read(answer, wanted, self.url)
            _check(outputs)
        except (EndpointError, ValueError):
            raise RequestRefused(
                f"the network {network!r} gave no sensible answer", reason=failures.NETWORK_FAILED
            ) from None
        return outputs


def read_header(path: Path) -> tuple[str, str]:
    """Header (name, value) from a file with the NAME=VALUE of Triton's flag; raises OptionError, without the value."""
    try:
        text = path.read_bytes()[: MAX_SECRET_BYTES + 1].decode("ascii").strip()
    except OSError as problem:
        raise OptionError(f"{path}: {(problem.strerror or 'cannot be read').lower()}") from None
    except UnicodeDecodeError:
        text = ""
    name, separator, value = text.partition("=")
    if not (separator and name and value) or len(text) > MAX_SECRET_BYTES or not text.isprintable():
        raise OptionError(
            f"{path} does not hold one line NAME=VALUE", hint="It is what Triton's flag has after the ':'."
        )
    return RESTRICTED + name.lower(), value


def _credentials(folder: Path) -> Any:
    try:
        root, chain, key = (folder.joinpath(name).read_bytes() for name in (CA, CERTIFICATE, KEY))
    except OSError as problem:
        raise OptionError(
            f"{problem.filename}: {(problem.strerror or 'cannot be read').lower()}",
            hint=f"The folder holds {CA}, {CERTIFICATE} and {KEY}.",
        ) from None
    return grpc.ssl_channel_credentials(root, key, chain)


def _refused(problem: Any) -> RequestRefused:
    code, words = problem.code(), (problem.details() or "").lower()
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return RequestRefused("the network did not answer within the deadline", reason=failures.TOO_LATE)
    gone = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.NOT_FOUND)
    if gone or any(word in words for word in _GONE):
        return RequestRefused(
            "the network is not available",
            hint="Try again in a moment.",
            reason=failures.NETWORK_UNAVAILABLE,
            retry_after=1.0,
        )
    return RequestRefused("the network could not answer this request", reason=failures.NETWORK_FAILED)


def _read(answer: Any, wanted: Sequence[tensors.TensorSpec], url: str) -> dict[str, npt.NDArray[Any]]:
    """The one row of each output, by name; raises EndpointError or ValueError."""
    raw = dict(zip((each.name for each in answer.outputs), answer.raw_output_contents, strict=True))
    rows = {}
    for tensor in wanted:
        value = np.frombuffer(raw[tensor.name], numpy_type(tensor)) if tensor.name in raw else None
        rows[tensor.name] = shaped(value, tensor, 1, url)[0]
    return rows


def _check(outputs: Outputs) -> None:
    """Raise ValueError unless every number can be believed; a wrong answer is worse than none."""
    if not all(np.isfinite(value).all() for value in outputs.values()):
        raise ValueError("an output is not finite")
    total, p_value = float(outputs[tensors.PROBABILITIES].sum()), float(outputs[tensors.P_VALUE])
    if not math.isclose(total, 1.0, abs_tol=0.01) or not 0.0 < p_value <= 1.0:
        raise ValueError("probabilities do not sum to 1, or the p-value is none")
