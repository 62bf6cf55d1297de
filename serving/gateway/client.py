"""fieldmark.v1 from Python: image bytes in, the answer as its protobuf message out.

    with FieldmarkClient("localhost:8010") as client:
        answer = client.classify(Path("bird.jpg").read_bytes(), top_k=3)
        print(answer.predictions[0].label, answer.adversarial.p_value)

`serving.gateway.aio_client` has the same for asyncio. Every failure is a RequestRefused with a documented reason.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

from bundle.errors import RequestRefused
from serving.gateway.calls import Budget, Retries, Tls, explain_error, make_request, metadata, open_channel, with_trace
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.generated.fieldmark_pb2_grpc import FieldmarkStub


class FieldmarkClient:
    """One channel; close it, or use it in a `with`. `timeout` in seconds holds for a call with all its retries."""

    def __init__(
        self,
        url: str,
        *,
        key: str = "",
        tls: Tls | None = None,
        timeout: float = 30.0,
        retries: Retries | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.url, self._channel = open_channel(url, key, tls, grpc)
        self.timeout = timeout
        self._metadata, self._budget, self._sleep = metadata(key), Budget(retries or Retries()), sleep
        self._stub: Any = FieldmarkStub(self._channel)

    def classify(self, image: bytes, *, timeout: float | None = None, **asked: Any) -> v1.ClassifyResponse:
        """The answer to one encoded image. `asked`: network, top_k, alpha, explain, as in the request's message."""
        answer: v1.ClassifyResponse = self._call(self._stub.Classify, make_request(image, **asked), timeout)
        return answer

    def describe(self, *, timeout: float | None = None) -> v1.DescribeResponse:
        """What is served, and its limits."""
        answer: v1.DescribeResponse = self._call(self._stub.Describe, v1.DescribeRequest(), timeout)
        return answer

    def classify_stream(
        self, images: Iterable[tuple[str, bytes]], *, timeout: float | None = None, **asked: Any
    ) -> Iterator[v1.ClassifyStreamResponse]:
        """Answers of (id, encoded image) pairs as they come, in any order; an image's own error is its answer.

        Pairs are taken no faster than answers are. A stream is not repeated when it breaks: what is missing, the ids
        tell. `timeout`, if any, holds for all of it.
        """
        requests = (v1.ClassifyStreamRequest(id=name, request=make_request(data, **asked)) for name, data in images)
        stream = self._stub.ClassifyStream(requests, timeout=timeout, metadata=with_trace(self._metadata))
        try:
            yield from stream
        except grpc.RpcError as problem:
            raise explain_error(problem, self.url) from None
        finally:
            stream.cancel()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def __enter__(self) -> "FieldmarkClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        self._budget.earn()
        attempt = 0
        while True:
            attempt += 1
            try:
                return method(request, timeout=deadline - time.monotonic(), metadata=with_trace(self._metadata))
            except grpc.RpcError as problem:
                refused: RequestRefused = explain_error(problem, self.url)
            wait = self._budget.wait(refused, attempt, deadline - time.monotonic())
            if wait is None:
                raise refused
            self._sleep(wait)
