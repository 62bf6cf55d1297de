"""Answers that nobody reads: Envoy holds a little of them, the gateway is held back, and others are answered."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.generated.fieldmark_pb2_grpc import add_FieldmarkServicer_to_server
from serving.gateway.server import Gateway
from tests.serving.envoy.door import ANN, BOB, before, metadata

pytestmark = pytest.mark.triton

MEGABYTE = 1 << 20
ANSWER = v1.ClassifyStreamResponse(response={"explanation": {"attention_png": bytes(MEGABYTE)}})
NARROW = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1))
STREAMS = 6


class Generous:
    """A gateway that never ends a stream, and counts what it could send of each."""

    def __init__(self) -> None:
        self.sent: dict[str, int] = {}

    def Classify(self, request: Any, context: Any) -> v1.ClassifyResponse:
        return v1.ClassifyResponse(network="full", explanation={"attention_png": bytes(MEGABYTE)})

    def ClassifyStream(self, requests: Any, context: Any) -> Iterator[v1.ClassifyStreamResponse]:
        name = dict(context.invocation_metadata())["x-request-id"]
        while context.is_active():
            self.sent[name] = self.sent.get(name, 0) + 1
            yield ANSWER

    def Describe(self, request: Any, context: Any) -> v1.DescribeResponse:
        return v1.DescribeResponse()


@pytest.fixture
def generous() -> Iterator[tuple[Generous, str]]:
    service, server = Generous(), grpc.server(ThreadPoolExecutor(2 * STREAMS))
    add_FieldmarkServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"127.0.0.1:{port}"
    server.stop(0).wait()


def test_streams_that_nobody_reads_cost_little_and_hold_back_nobody_else(
    generous: tuple[Generous, str], gateway: Gateway, certificates: Path
) -> None:
    service, url = generous
    with before(gateway, certificates, gateway=url, rate=1000, burst=1000) as opened:
        channels = [grpc.secure_channel(opened.url, opened.credentials(), NARROW) for _ in range(STREAMS)]
        call = "/fieldmark.v1.Fieldmark/ClassifyStream"
        streams = [
            channel.stream_stream(call)(iter(()), metadata=metadata(ANN, ("x-request-id", str(number))))
            for number, channel in enumerate(channels)
        ]
        before_that: dict[str, int] = {}
        while len(service.sent) < STREAMS or service.sent != before_that:  # until all of them stand still
            before_that = dict(service.sent)
            time.sleep(0.5)
        assert max(service.sent.values()) <= 4, "megabytes of one stream, in Envoy and under way"
        with opened.stub() as stub:
            for _ in range(20):
                answer = stub.Classify(v1.ClassifyRequest(), metadata=metadata(BOB), timeout=30)
                assert len(answer.explanation.attention_png) == MEGABYTE
        for stream in streams:
            stream.cancel()
        for channel in channels:
            channel.close()
