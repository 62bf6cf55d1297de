"""fieldmark.v1 from asyncio: `serving.gateway.client` for who has an event loop."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from bundle.errors import RequestRefused
from serving.gateway.calls import Budget, Retries, Tls, explain_error, make_request, metadata, open_channel, with_trace
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.generated.fieldmark_pb2_grpc import FieldmarkStub


class AsyncFieldmarkClient:
    """One channel of the running event loop; close it, or use it in an `async with`. Otherwise as FieldmarkClient."""

    def __init__(
        self,
        url: str,
        *,
        key: str = "",
        tls: Tls | None = None,
        timeout: float = 30.0,
        retries: Retries | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.url, self._channel = open_channel(url, key, tls, grpc.aio)
        self.timeout = timeout
        self._metadata, self._budget, self._sleep = metadata(key), Budget(retries or Retries()), sleep
        self._stub: Any = FieldmarkStub(self._channel)

    async def classify(self, image: bytes, *, timeout: float | None = None, **asked: Any) -> v1.ClassifyResponse:
        """The answer to one encoded image. `asked`: network, top_k, alpha, explain, as in the request's message."""
        answer: v1.ClassifyResponse = await self._call(self._stub.Classify, make_request(image, **asked), timeout)
        return answer

    async def describe(self, *, timeout: float | None = None) -> v1.DescribeResponse:
        """What is served, and its limits."""
        answer: v1.DescribeResponse = await self._call(self._stub.Describe, v1.DescribeRequest(), timeout)
        return answer

    async def classify_stream(
        self, images: AsyncIterable[tuple[str, bytes]], *, timeout: float | None = None, **asked: Any
    ) -> AsyncIterator[v1.ClassifyStreamResponse]:
        """Answers of (id, encoded image) pairs as they come, in any order; an image's own error is its answer."""

        async def requests() -> AsyncIterator[v1.ClassifyStreamRequest]:
            async for name, data in images:
                yield v1.ClassifyStreamRequest(id=name, request=make_request(data, **asked))

        stream = self._stub.ClassifyStream(requests(), timeout=timeout, metadata=with_trace(self._metadata))
        try:
            async for answer in stream:
                yield answer
        except grpc.RpcError as problem:
            raise explain_error(problem, self.url) from None
        finally:
            stream.cancel()

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def __aenter__(self) -> "AsyncFieldmarkClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        self._budget.earn()
        attempt = 0
        while True:
            attempt += 1
            try:
                return await method(request, timeout=deadline - time.monotonic(), metadata=with_trace(self._metadata))
            except grpc.RpcError as problem:
                refused: RequestRefused = explain_error(problem, self.url)
            wait = self._budget.wait(refused, attempt, deadline - time.monotonic())
            if wait is None:
                raise refused
            await self._sleep(wait)
