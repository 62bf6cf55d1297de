"""Whether each network answers, found out by asking it: Triton's own health is green over a dead or a hung worker.

A network serves if, within the last probe interval, it has answered a probe or a caller. The same loop notices another
bundle behind the address.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np

from bundle import Manifest
from bundle.errors import EndpointError, RequestRefused
from serving.client.remote import ServedBundle
from serving.gateway.upstream import Triton
from serving.triton.probe import GREY


class Prober:
    """Asks every network every `seconds` seconds, and waits as long for an answer.

    `on_change(network, serving)` is called whenever a network begins or ceases to serve, `on_bundle` with another
    bundle than the one served so far.
    """

    def __init__(
        self,
        triton: Triton,
        seconds: float,
        *,
        expect_bundle: str | None,
        on_change: Callable[[str, bool], Awaitable[None]],
        on_bundle: Callable[[ServedBundle], object],
    ) -> None:
        self.seconds = seconds
        self._triton, self._expected = triton, expect_bundle
        self._on_change, self._on_bundle = on_change, on_bundle
        self._manifest: Manifest | None = None
        self._heard: dict[str, float] = {}
        self._serving: dict[str, bool] = {}
        self._next = 0.0  # when the next probe is due

    def serving(self, network: str) -> bool:
        """Whether the network answered within the last probe interval."""
        return self._serving.get(network, False)

    @property
    def ready(self) -> bool:
        """Whether every network serves."""
        return bool(self._serving) and all(self._serving.values())

    def heard(self, network: str) -> None:
        """The network has answered somebody: under load, a probe may be what waits longest."""
        self._heard[network] = time.monotonic()

    async def start(self) -> None:
        """Learn the bundle and probe once; raises EndpointError if there is none."""
        self._next = time.monotonic() + self.seconds
        learnt = await self._triton.learn(timeout=self.seconds, expect_bundle=self._expected)
        if learnt is not None:
            await self._learn(learnt)
        await self._probe_all()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            await asyncio.sleep(max(0.0, self._next - time.monotonic()))
            self._next = time.monotonic() + self.seconds
            try:
                known = self._manifest.bundle_id if self._manifest else ""
                learnt = await self._triton.learn(timeout=self.seconds, known=known, expect_bundle=self._expected)
                if learnt is not None:
                    await self._learn(learnt)
            except EndpointError:
                for network in list(self._serving):
                    await self._set(network, False)
            else:
                await self._probe_all()

    async def _learn(self, learnt: ServedBundle) -> None:
        self._manifest = learnt.manifest
        self._on_bundle(learnt)
        for network in set(self._serving) - set(learnt.manifest.networks):
            del self._serving[network]  # before it is told of: whether all are ready is asked meanwhile
            await self._on_change(network, False)

    async def _probe_all(self) -> None:
        if self._manifest is not None:
            await asyncio.gather(*(self._probe(self._manifest, network) for network in self._manifest.networks))

    async def _probe(self, manifest: Manifest, network: str) -> None:
        began = time.monotonic()
        image = np.full((manifest.image.height, manifest.image.width, 3), GREY, dtype=np.uint8)
        try:
            await self._triton.infer(image, manifest, network, timeout=self.seconds, explained=False)
            self.heard(network)
        except RequestRefused:
            pass  # what matters is when it last answered anybody
        await self._set(network, self._heard.get(network, -1.0) >= began)

    async def _set(self, network: str, serving: bool) -> None:
        if self._serving.get(network) != serving:
            self._serving[network] = serving
            await self._on_change(network, serving)
