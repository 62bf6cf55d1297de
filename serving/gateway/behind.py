"""One Triton behind the gateway: its channel, the prober that asks it, and who waits for its answers.

There is a second one while the gateway moves to another bundle, and while a bundle answers in the shadow of another.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

from bundle import Bundle, Manifest
from bundle.errors import EndpointError, first_line
from serving.client.remote import ServedBundle
from serving.gateway.probing import Prober
from serving.gateway.upstream import Triton, TritonAddress


class Behind:
    """Make it inside the event loop, and close it there. Its networks are told of only after `take_over`."""

    def __init__(
        self,
        address: TritonAddress,
        seconds: float,
        *,
        bundle: Bundle | None,
        on_change: Callable[[str, bool], Awaitable[None]],
        on_bundle: Callable[["Behind"], object],
    ) -> None:
        self.bundle, self.triton = bundle, Triton(address)
        self.prober = Prober(
            self.triton,
            seconds,
            expect_bundle=bundle.bundle_id if bundle else None,
            on_change=self._changed,
            on_bundle=self._learnt,
        )
        self._on_change, self._on_bundle = on_change, on_bundle
        self._manifest: Manifest | None = None
        self._in_charge = False
        self._probing: asyncio.Task[None] | None = None
        self._users = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def manifest(self) -> Manifest:
        """Of the bundle there; raises EndpointError before `start`."""
        if self._manifest is None:
            raise EndpointError(f"{self.triton.url} has not told its bundle")
        return self._manifest

    @property
    def death(self) -> str:
        """What has ended the prober, in words; empty while it lives, and it does not end by itself."""
        if self._probing is None or not self._probing.done():
            return ""
        problem = None if self._probing.cancelled() else self._probing.exception()
        return "cancelled" if problem is None else f"{type(problem).__name__}: {first_line(problem)}"

    async def start(self, *, ready: bool = False) -> None:
        """Learn the bundle and probe once; raises EndpointError, with `ready` also where a network does not answer."""
        await self.prober.start()
        silent = [network for network in self.manifest.networks if not self.prober.serving(network)]
        if ready and silent:
            raise EndpointError(f"the network {silent[0]!r} does not answer its probe")

    async def take_over(self) -> None:
        """Tell of the bundle and of its networks, now and whenever they change; and go on probing."""
        self._in_charge = True
        self._on_bundle(self)
        self._probing = asyncio.create_task(self.prober.run())
        for network in self.manifest.networks:
            await self._on_change(network, self.prober.serving(network))

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """A request of the body's is answered from here, so that this is not closed meanwhile."""
        self._users += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._idle.set()

    async def retire(self, seconds: float) -> None:
        """Tell of nothing any more, and close once nobody uses it, after at most `seconds`."""
        self._in_charge = False
        if self._probing is not None:
            self._probing.cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        await self.triton.close()

    async def _changed(self, network: str, serving: bool) -> None:
        if self._in_charge:
            await self._on_change(network, serving)

    def _learnt(self, learnt: ServedBundle) -> None:
        self._manifest = learnt.manifest
        if self._in_charge:
            self._on_bundle(self)
