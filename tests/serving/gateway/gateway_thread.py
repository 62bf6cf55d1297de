"""A gateway in a thread of its own, as real as in a process: every test talks to it over the wire."""

import asyncio
import contextlib
import io
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
from PIL import Image

from bundle import Bundle
from serving.gateway.generated.fieldmark_pb2_grpc import FieldmarkStub
from serving.gateway.options import GatewayOptions
from serving.gateway.retention import RetentionOptions
from serving.gateway.server import Gateway
from serving.gateway.upstream import TritonAddress


@contextlib.contextmanager
def running(
    triton: str | TritonAddress,
    *,
    bundle: Bundle | None = None,
    log: Any = None,
    retention: RetentionOptions | None = None,
    **options: Any,
) -> Iterator[Gateway]:
    """A gateway before the Triton at an address, on free ports; drained at the end."""
    address = triton if isinstance(triton, TritonAddress) else TritonAddress(url=triton)
    settings = GatewayOptions(**{"port": 0, "metrics_port": 0, "probe_seconds": 1.0, "drain_seconds": 2.0, **options})
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def do(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(timeout=60)

    async def make() -> Gateway:
        gateway = Gateway(settings, address, bundle=bundle, log=log, retention=retention)
        await gateway.start()
        return gateway

    try:
        gateway = do(make())
        try:
            yield gateway
        finally:
            do(gateway.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()


@contextlib.contextmanager
def stub_of(gateway: Gateway, *options: tuple[str, Any]) -> Iterator[Any]:
    """A stub on a channel of its own, with no limits but those of the gateway."""
    settings = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1), *options]
    with grpc.insecure_channel(gateway.url, options=settings) as channel:
        yield FieldmarkStub(channel)


def encode(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """An image file of pixels : (H, W, 3) uint8."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=kind, **options)
    return stream.getvalue()


def metric(gateway: Gateway, name: str, **labels: str) -> float:
    """A metric's value now; 0 if it was never counted."""
    return float(gateway.metrics.registry.get_sample_value(f"fieldmark_gateway_{name}", labels) or 0.0)
