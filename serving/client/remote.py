"""A bundle's networks on a Triton server, over gRPC. All a client needs is the address: the manifest comes from there.

`TritonInference` is the `Inference` of `serving.client.prediction`; every failure is an EndpointError of one sentence.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from bundle import Manifest, tensors
from bundle.errors import BundleCorrupt, BundleUnsupported, EndpointError, InputError
from bundle.manifest import parse_manifest
from bundle.tensors import TensorSpec
from serving.client.prediction import Outputs
from serving.triton.config import BUNDLE_ID, MANIFEST

DEFAULT_PORT = 8001
UNIX = "unix:"  # before the path of a socket, where no port is listened at
_ADDRESS = re.compile(r"(?:grpc://)?(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+)(?::(?P<port>\d{1,5}))?/?")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_START = "Start one: fieldmark serve BUNDLE --grpc-port 8001"
NOBODY = ("connection refused", "unreachable", "no route to host", "timed out")  # in gRPC's words
NOBODY_ANSWERS = "no server answers at {url}"


class TritonInference:
    """Runs the networks of one served bundle. Use `TritonInference.connect`; close it, or use it in a `with`."""

    manifest: Manifest
    bundle_id: str
    triton_version: str
    max_batch_size: int

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = parse_url(url), timeout
        self._client = triton.InferenceServerClient(self.url, channel_args=channel_options(self.url))

    @classmethod
    def connect(cls, url: str, *, timeout: float = 30.0, expect_bundle: str | None = None) -> "TritonInference":
        """Connect to HOST:PORT and learn which bundle is served there; `timeout` in seconds holds for every call.

        `expect_bundle` is the bundle id that must be served there; raises EndpointError.
        """
        inference = cls(url, timeout)
        try:
            inference._learn(expect_bundle)
        except BaseException:
            inference.close()
            raise
        return inference

    def infer(self, images: npt.NDArray[np.uint8], network: str) -> Outputs:
        """Run `network` on images : (N, H, W, 3) uint8; more than the server's batch go in several requests."""
        if network not in self.manifest.networks:
            have = ", ".join(self.manifest.networks)
            raise EndpointError(f"{self.url} serves no network {network!r}", hint=f"It serves: {have}.")
        info = self.manifest.networks[network]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != info.inputs[0].shape:
            shape = "x".join(map(str, info.inputs[0].shape))
            raise InputError(f"images of shape {images.shape} and type {images.dtype} are not Nx{shape} uint8")
        if not len(images):
            return {tensor.name: np.empty((0, *tensor.shape), numpy_type(tensor)) for tensor in info.outputs}
        starts = range(0, len(images), self.max_batch_size)
        parts = [self._request(images[start : start + self.max_batch_size], network) for start in starts]
        return {tensor.name: np.concatenate([part[tensor.name] for part in parts]) for tensor in info.outputs}

    def check_lives(self) -> None:
        """Raise EndpointError unless the server answers at all, whatever its networks do."""
        self._call("is_server_live")

    def executed(self, network: str) -> int:
        """Batches that the server has run for a network since it loaded it; raises EndpointError."""
        (stats,) = self._call("get_inference_statistics", network).model_stats
        return int(stats.execution_count)

    def close(self) -> None:
        """Close the channel."""
        self._client.close()

    def __enter__(self) -> "TritonInference":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, images: npt.NDArray[np.uint8], network: str) -> dict[str, npt.NDArray[Any]]:
        info = self.manifest.networks[network]
        image = triton.InferInput(info.inputs[0].name, images.shape, info.inputs[0].dtype)
        image.set_data_from_numpy(np.ascontiguousarray(images))
        wanted = [triton.InferRequestedOutput(tensor.name) for tensor in info.outputs]
        answer = self._call("infer", network, [image], outputs=wanted)
        return {
            tensor.name: shaped(answer.as_numpy(tensor.name), tensor, len(images), self.url) for tensor in info.outputs
        }

    def _learn(self, expect_bundle: str | None) -> None:
        """Read manifest and bundle id from the model configurations; each network must belong to the same bundle."""
        self.triton_version = str(self._call("get_server_metadata").version)
        found: dict[str, Any] = {}
        for network in tensors.NETWORKS:
            try:
                found[network] = self._call("get_model_config", network).config
            except _UnknownModel:
                continue
        learnt = served_bundle(found, self.url, expect_bundle)
        self.manifest, self.bundle_id = learnt.manifest, learnt.manifest.bundle_id
        self.max_batch_size = learnt.max_batch_size

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        started = time.monotonic()
        try:
            return getattr(self._client, method)(*arguments, client_timeout=self.timeout, **options)
        except InferenceServerException as problem:
            elapsed = time.monotonic() - started
            raise explain(problem.status() or "", problem.message() or "", self.url, elapsed) from None
        except grpc.RpcError as problem:  # an error that tritonclient passes on, as for a cancelled call
            raise EndpointError(f"the call to {self.url} failed ({type(problem).__name__})") from None


@dataclass(frozen=True, kw_only=True)
class ServedBundle:
    """What a server's model configurations tell: the manifest, and the images of one request."""

    manifest: Manifest
    max_batch_size: int


def served_bundle(configs: Mapping[str, Any], url: str, expect_bundle: str | None) -> ServedBundle:
    """Manifest and bundle id from the model configurations by network; all must belong to the same bundle."""
    parameters = {name: config.parameters for name, config in configs.items()}
    if not configs or any(BUNDLE_ID not in each or MANIFEST not in each for each in parameters.values()):
        raise EndpointError(f"{url} is a Triton server, but not one that serves a fieldmark bundle", hint=_START)
    text, bundle_id = (next(iter(parameters.values()))[key].string_value for key in (MANIFEST, BUNDLE_ID))
    if any(each[BUNDLE_ID].string_value != bundle_id for each in parameters.values()):
        raise EndpointError(f"{url} serves networks of different bundles", hint="Restart it with one bundle.")
    check_bundle(url, bundle_id, expect_bundle)
    try:
        manifest = parse_manifest(text, f"the manifest at {url}")
    except BundleCorrupt as problem:
        raise EndpointError(problem.what, hint="Restart the server with a verified bundle.") from None
    except BundleUnsupported as problem:
        raise EndpointError(problem.what, hint=problem.hint) from None
    if manifest.bundle_id != bundle_id:
        raise EndpointError(f"the manifest at {url} does not match its bundle id", hint="Do not trust it.")
    if missing := sorted(set(manifest.networks) - set(configs)):
        raise EndpointError(f"{url} does not serve network {missing[0]!r} of its bundle")
    smallest = max(1, min(int(config.max_batch_size) for config in configs.values()))
    return ServedBundle(manifest=manifest, max_batch_size=smallest)


def check_bundle(url: str, served: str, expected: str | None) -> None:
    """Raise EndpointError where another bundle is served than is expected; None expects nothing."""
    if expected is not None and expected != served:
        raise EndpointError(
            f"{url} serves bundle {served[:12]}, and {expected[:12]} is expected",
            hint="Serve the expected bundle, or give the address or the bundle that belongs to the other.",
        )


def shaped(value: npt.NDArray[Any] | None, tensor: TensorSpec, count: int, url: str) -> npt.NDArray[Any]:
    """One output in the manifest's type and shape; Triton gives what is [N] there as [N, 1]."""
    expected = (count, *tensor.shape)
    if value is None or value.dtype != numpy_type(tensor) or value.size != np.prod(expected):
        found = "nothing" if value is None else f"{value.dtype} {value.shape}"
        raise EndpointError(f"{url} answered {found} as {tensor.name!r}, not {numpy_type(tensor)} {expected}")
    return value.reshape(expected)


def numpy_type(tensor: TensorSpec) -> np.dtype[Any]:
    """The numpy type of a tensor's elements."""
    return np.dtype({"FP32": "float32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8"}[tensor.dtype])


class _UnknownModel(EndpointError):
    """The server has no model of this name: another Triton, or a bundle with one network."""


def parse_url(url: str, *, port: int = DEFAULT_PORT) -> str:
    """HOST:PORT from what a person types (`host`, `host:port`, `grpc://host:port`, `[::1]:8001`); `port` if none is.

    `unix:/path` of a socket stays as it is.
    """
    if url.startswith(f"{UNIX}/") and url.isprintable():
        return url
    match = _ADDRESS.fullmatch(url.strip())
    if not match or not 0 < int(match["port"] or port) < 65536:
        hint = f"Give HOST:PORT of the server's gRPC port, such as localhost:{port}."
        raise EndpointError(f"{url!r} is not the address of a gRPC server", hint=hint)
    return f"{match['host']}:{match['port'] or port}"


def explain(status: str, message: str, url: str, elapsed: float) -> EndpointError:
    """The sentence for a failed call: `status` is a gRPC status code's name, `elapsed` the seconds it took.

    UNAVAILABLE alone says little: Triton and gRPC use it for a refused connection, a full queue, a lost connection,
    a name that does not resolve, a server that is stopping and a protocol that needs a secret header.
    """
    code, low = status.removeprefix("StatusCode."), message.lower()
    for fragments, what, hint in _SENTENCES:
        if any(fragment in low for fragment in fragments):
            return EndpointError(what.format(url=url), hint=hint)
    if "unknown model" in low:
        kind = EndpointError if "no available versions" in low else _UnknownModel
        return kind(f"{url} has no ready model of this name ({_first_line(message)})", hint=_START)
    if code == "DEADLINE_EXCEEDED":
        hint = "The server may be busy or unreachable; try again, or give it longer with --timeout."
        return EndpointError(f"{url} did not answer within {elapsed:.1f} seconds", hint=hint)
    if code == "UNIMPLEMENTED":
        return EndpointError(f"{url} is a gRPC server, but not a Triton", hint=_START)
    if code in ("UNAVAILABLE", "CANCELLED"):
        return EndpointError(f"{url} is not available ({_first_line(message)})", hint="Try again in a moment.")
    return EndpointError(f"{url} could not answer ({_first_line(message)})", hint="The server's log may say more.")


_SENTENCES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("exceeds maximum queue size",), "{url} is overloaded: its queue is full", "Send fewer requests at a time."),
    (("request timeout expired",), "{url} is overloaded: the request waited too long in its queue", "Try again later."),
    (("is restricted",), "{url} lets only holders of its secret header make this call", "Ask who runs it."),
    (("errors resolving", "dns resolution failed"), "the host of {url} cannot be found", "Check its name."),
    (NOBODY, NOBODY_ANSWERS, _START),
    (
        ("failed to connect to all addresses",),  # something listens there, and hangs up on gRPC's greeting
        "what listens at {url} does not speak plain gRPC",
        f"Give the server's gRPC port ({DEFAULT_PORT} by default), not its HTTP or metrics port.",
    ),
    (
        ("stub process", "is not healthy"),  # its health check stays green all the while
        "a worker process of the server at {url} has died",
        "Restart the server.",
    ),
    (
        ("socket closed", "stream removed", "connection reset", "goaway", "broken pipe", "stopping"),
        "the server at {url} stopped before it answered",
        "See why it stopped, start it again and repeat the call.",
    ),
)


def channel_options(url: str) -> list[tuple[str, int]]:
    """What a channel to HOST:PORT needs: messages of any size, no proxy to this machine, no memory of old failures."""
    return [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # Channels to one address share a connection and its back-off; a new client must see a new server at once.
        ("grpc.use_local_subchannel_pool", 1),
        # A proxy set for the internet must not be asked for this machine's own server.
        ("grpc.enable_http_proxy", 0 if url.startswith(UNIX) or url.rpartition(":")[0] in _LOOPBACK else 1),
    ]


def _first_line(message: str) -> str:
    """A server's words, short enough for a sentence and without a stack or a control character."""
    line = next((line.strip() for line in message.splitlines() if line.strip()), "no reason given")
    return "".join(c if c.isprintable() else "?" for c in line)[:200]
