"""What `fieldmark serve` tells its gateway: move to another Triton, compare with one, say what is there."""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from bundle import Bundle
from serving.control import Control
from serving.gateway.server import Gateway
from serving.gateway.upstream import TritonAddress

SECONDS = 120.0  # that an order may take


@contextlib.contextmanager
def orders(path: Path, gateway: Gateway, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Take orders at the socket `path` for a gateway of an event loop, while the body runs."""

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        order = asyncio.run_coroutine_threadsafe(_obey(gateway, request), loop)
        return order.result(timeout=SECONDS)

    control = Control(path, handle)
    control.open()
    try:
        yield
    finally:
        control.close()


def _obey(gateway: Gateway, request: dict[str, Any]) -> Coroutine[Any, Any, dict[str, Any]]:
    verbs = {"move": _move, "settle": _settle, "shadow": _shadow, "status": _status}
    return verbs[request["verb"]](gateway, request)


async def _move(gateway: Gateway, request: dict[str, Any]) -> dict[str, Any]:
    bundle = await asyncio.to_thread(Bundle.open, Path(request["bundle"]))
    await gateway.move(TritonAddress(url=request["triton"]), bundle)
    return gateway.facts()


async def _settle(gateway: Gateway, _: dict[str, Any]) -> dict[str, Any]:
    await gateway.settle()
    return {}


async def _shadow(gateway: Gateway, request: dict[str, Any]) -> dict[str, Any]:
    """A share of 0 ends it."""
    if not request["share"]:
        await gateway.stop_shadow()
    else:
        bundle = await asyncio.to_thread(Bundle.open, Path(request["bundle"]))
        await gateway.start_shadow(TritonAddress(url=request["triton"]), bundle, float(request["share"]))
    return gateway.facts()


async def _status(gateway: Gateway, _: dict[str, Any]) -> dict[str, Any]:
    return gateway.facts()
