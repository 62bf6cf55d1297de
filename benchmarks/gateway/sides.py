"""The four ways to an answer that `python -m benchmarks gateway` compares, with the same JPEG bytes for each.

| side | what the caller does | what runs elsewhere |
|---|---|---|
| in process | decodes and runs ONNX Runtime, in a thread a core | nothing |
| Triton | decodes in a thread a core, sends the tensor over gRPC | Triton |
| gateway | sends the bytes over gRPC | gateway, Triton |
| Envoy | sends the bytes over gRPC, TLS and with a key | Envoy, gateway, Triton |

The caller runs on the same cores; what its work costs is counted too.
"""

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np
from PIL import Image

from benchmarks.certificates import make_certificate
from benchmarks.gateway.load import Parts
from bundle import Bundle
from bundle.errors import ServerError
from serving.client.local import LocalInference
from serving.envoy.keys import Key
from serving.envoy.options import EnvoyOptions
from serving.envoy.process import EnvoyServer
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.generated.fieldmark_pb2_grpc import FieldmarkStub
from serving.gateway.server import free_port
from serving.gateway.upstream import Triton, TritonAddress
from serving.processes import end_group, group
from serving.triton.config import available_cores
from serving.triton.server import TritonServer

IN_PROCESS, TRITON, GATEWAY, ENVOY = "in process", "triton", "gateway", "envoy"
CALLER = "caller"  # whose processor time is this process's
SIDES = (IN_PROCESS, TRITON, GATEWAY, ENVOY)
PHOTOGRAPH = (500, 375)  # pixels, as CUB's and ImageNet's are
UNLIMITED = 1_000_000  # the highest that Envoy's limits go to
TIMEOUT = 60.0
_KEY = Key(name="load", secret="load-" + "k3y" * 10)
_TICKS = os.sysconf("SC_CLK_TCK")


class Side(Protocol):
    """One way to an answer. Make it inside the event loop, and close it there."""

    async def ask(self, number: int) -> Parts:
        """An answer to image `number`, counted round and round; raises what its failures are."""

    async def close(self) -> None:
        """Let go of what it holds."""


@dataclass(frozen=True, kw_only=True)
class Servers:
    """What runs beside the caller: addresses, and the leader of each one's group of processes."""

    bundle: Bundle
    triton_url: str
    gateway_url: str
    envoy_url: str
    certificate: bytes
    leaders: dict[str, int]

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time that each has taken so far, and the caller, which is this process."""
        taken = {name: sum(map(_cpu_of, group(leader))) for name, leader in self.leaders.items()}
        return {CALLER: time.process_time(), **taken}


@contextlib.contextmanager
def servers(bundle: Bundle) -> Iterator[Servers]:
    """A Triton, a gateway before it and an Envoy before that, each in processes of its own."""
    with contextlib.ExitStack() as running:
        triton = running.enter_context(TritonServer(bundle, grpc_port=0, metrics_port=0))
        gateway, url = running.enter_context(_gateway(triton.grpc_url, bundle))
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="fieldmark-bench-")))
        make_certificate(folder, "server")
        envoy = running.enter_context(EnvoyServer(_open_to_load(folder, url)))
        yield Servers(
            bundle=bundle,
            triton_url=triton.grpc_url,
            gateway_url=url,
            envoy_url=envoy.url,
            certificate=(folder / "server.pem").read_bytes(),
            leaders={TRITON: triton.pid, GATEWAY: gateway.pid, ENVOY: envoy.pid},
        )


@contextlib.contextmanager
def _gateway(triton: str, bundle: Bundle) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """`fieldmark gateway` before the Triton at an address: the leader of its group, and where it listens."""
    command = [sys.executable, "-m", "fieldmark", "gateway", triton, "--bundle", str(bundle.path), "--quiet", "--json"]
    process = subprocess.Popen(
        [*command, "--port", "0", "--metrics-port", "0", "--drain-seconds", "1"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise ServerError("the gateway did not start", hint="Its message stands above.")
        yield process, json.loads(line)["url"]
    finally:
        end_group(process, 5.0)


def open_side(name: str, served: Servers, network: str, images: Sequence[bytes]) -> Side:
    """The side of this name; call it inside the event loop."""
    if name == IN_PROCESS:
        return InProcess(served.bundle, network, images)
    if name == TRITON:
        return Direct(served, network, images)
    return Service(served, network, images, guarded=name == ENVOY)


def photographs(count: int, seed: int = 0) -> list[bytes]:
    """JPEG files of 500 x 375 pixels that cost about what a photograph costs: broad colours, and noise."""
    rng, files = np.random.default_rng(seed), []
    for _ in range(count):
        colours = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            PHOTOGRAPH, Image.Resampling.BICUBIC
        )
        noisy = np.asarray(colours, np.int16) + rng.integers(-12, 13, (*PHOTOGRAPH[::-1], 1))
        stream = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, format="JPEG", quality=90)
        files.append(stream.getvalue())
    return files


class InProcess:
    """Decode and ONNX Runtime in one thread a core, one thread each: nothing is faster on one image at a time."""

    def __init__(self, bundle: Bundle, network: str, images: Sequence[bytes]) -> None:
        self._local, self._network, self._images = LocalInference(bundle, threads=1), network, images
        self._threads = ThreadPoolExecutor(available_cores())

    async def ask(self, number: int) -> Parts:
        data = self._images[number % len(self._images)]
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._work, data, time.perf_counter())

    async def close(self) -> None:
        self._threads.shutdown()

    def _work(self, data: bytes, asked: float) -> Parts:
        began = time.perf_counter()
        pixels = self._local.manifest.image.decode(data)
        decoded = time.perf_counter()
        self._local.infer(pixels[None], self._network)
        ended = time.perf_counter()
        return Parts(queue=began - asked, decode=decoded - began, compute=ended - decoded)


class Direct:
    """Triton over gRPC, as the gateway calls it; the caller decodes."""

    def __init__(self, served: Servers, network: str, images: Sequence[bytes]) -> None:
        self._manifest, self._network, self._images = served.bundle.manifest, network, images
        self._threads = ThreadPoolExecutor(available_cores())
        self._triton = Triton(TritonAddress(url=served.triton_url))

    async def ask(self, number: int) -> Parts:
        data, asked = self._images[number % len(self._images)], time.perf_counter()
        loop = asyncio.get_running_loop()
        pixels, began, decoded = await loop.run_in_executor(self._threads, self._decode, data)
        await self._triton.infer(pixels, self._manifest, self._network, timeout=TIMEOUT, explained=False)
        return Parts(queue=began - asked, decode=decoded - began)

    async def close(self) -> None:
        self._threads.shutdown()
        await self._triton.close()

    def _decode(self, data: bytes) -> tuple[Any, float, float]:
        began = time.perf_counter()
        return self._manifest.image.decode(data), began, time.perf_counter()


class Service:
    """fieldmark.v1, at the gateway itself or through Envoy."""

    def __init__(self, served: Servers, network: str, images: Sequence[bytes], *, guarded: bool) -> None:
        self._network, self._images = network, images
        options = [("grpc.use_local_subchannel_pool", 1)]
        if guarded:
            credentials = grpc.ssl_channel_credentials(served.certificate)
            self._channel = grpc.aio.secure_channel(served.envoy_url, credentials, options=options)
        else:
            self._channel = grpc.aio.insecure_channel(served.gateway_url, options=options)
        self._metadata = (("x-api-key", _KEY.secret),) if guarded else ()
        self._stub: Any = FieldmarkStub(self._channel)

    async def ask(self, number: int) -> Parts:
        request = v1.ClassifyRequest(image=self._images[number % len(self._images)], network=self._network)
        answer = await self._stub.Classify(request, timeout=TIMEOUT, metadata=self._metadata)
        return Parts(queue=answer.times.queue.ToNanoseconds() / 1e9, decode=answer.times.decode.ToNanoseconds() / 1e9)

    async def close(self) -> None:
        await self._channel.close()


def _open_to_load(folder: Path, gateway: str) -> EnvoyOptions:
    """An Envoy with every check in its place, and limits that a load test does not meet."""
    return EnvoyOptions(
        certificate=folder / "server.pem",
        certificate_key=folder / "server.key",
        keys=(_KEY,),
        host="127.0.0.1",
        port=free_port("127.0.0.1"),
        gateway=gateway,
        rate=UNLIMITED,
        burst=UNLIMITED,
    )


def _cpu_of(pid: int) -> float:
    """Processor seconds of one process so far; 0 once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS
