"""Hundreds of random and damaged requests: the gateway survives each, refuses it with a reason, answers the next."""

import re
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.gateway.failures import DETAILS, FAILURES, read_details
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.server import Gateway
from tests.serving.gateway.gateway_thread import encode, metric

pytestmark = [pytest.mark.triton, pytest.mark.hostile]

PIXELS = np.random.default_rng(3).integers(0, 256, (48, 40, 3), dtype=np.uint8)
FILES = [encode(PIXELS, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")]
GOOD = encode(np.full((40, 40, 3), 140, np.uint8))
many = settings(
    derandomize=True, deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file of an image with some bytes changed, cut out or put in."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(["change", "cut", "insert", "end"]))
        if how == "change" and data:
            data[place] = draw(st.integers(0, 255))
        elif how == "cut":
            del data[place : place + draw(st.integers(1, 64))]
        elif how == "insert":
            data[place:place] = draw(st.binary(max_size=32))
        else:
            del data[place:]
    return bytes(data)


requests = st.builds(
    v1.ClassifyRequest,
    image=st.one_of(st.binary(max_size=200), damaged(), st.just(GOOD)),
    network=st.one_of(st.sampled_from(["", "full", "attention"]), st.text(max_size=40)),
    top_k=st.one_of(st.none(), st.integers(0, 2**32 - 1), st.integers(1, 5)),
    alpha=st.one_of(st.none(), st.floats(), st.floats(0.01, 0.99)),
    explain=st.booleans(),
)


def check(answer: v1.ClassifyResponse) -> None:
    assert 1 <= len(answer.predictions) <= 5
    assert 0 < answer.adversarial.p_value <= 1
    assert answer.adversarial.flagged == (
        np.float32(answer.adversarial.p_value) <= np.float32(answer.adversarial.alpha)
    )


def reason_of(problem: grpc.RpcError) -> str:
    """Its documented reason; the sentence shows nothing from inside."""
    data: Any = dict(problem.trailing_metadata() or ())[DETAILS]
    reason = read_details(data, problem.details()).reason
    assert problem.code().name == FAILURES[reason].code
    assert problem.code() != grpc.StatusCode.INTERNAL, problem.details()
    assert not re.search(r"Traceback|\.py\b|/usr|/tmp|0x[0-9a-f]{6}|<class|object at", problem.details())
    return reason


@many
@given(request_=requests)
def test_any_request(stub: Any, request_: v1.ClassifyRequest) -> None:
    try:
        check(stub.Classify(request_, timeout=20))
    except grpc.RpcError as problem:
        reason_of(problem)


@many
@given(data=st.one_of(st.binary(max_size=300), requests.map(lambda each: each.SerializeToString()[:-1])))
def test_any_bytes(gateway: Gateway, channel: Any, data: bytes) -> None:
    try:
        answer = channel.unary_unary("/fieldmark.v1.Fieldmark/Classify")(data, timeout=20)
        check(v1.ClassifyResponse.FromString(answer))
    except grpc.RpcError as problem:
        reason_of(problem)


@settings(parent=many, max_examples=30)
@given(batch=st.lists(st.tuples(st.text(max_size=20), requests), max_size=12))
def test_any_stream(stub: Any, batch: list[tuple[str, v1.ClassifyRequest]]) -> None:
    asked = [v1.ClassifyStreamRequest(id=name, request=request) for name, request in batch]
    found = list(stub.ClassifyStream(iter(asked), timeout=60))
    assert sorted(each.id for each in found) == sorted(name for name, _ in batch)
    for each in found:
        if each.HasField("response"):
            check(each.response)
        else:
            assert each.error.code == grpc.StatusCode[FAILURES[each.error.reason].code].value[0]


@pytest.fixture(scope="module")
def channel(gateway: Gateway) -> Any:
    with grpc.insecure_channel(gateway.url) as opened:
        yield opened


def test_after_all_that_it_answers_rightly(gateway: Gateway, stub: Any) -> None:
    first, second = (stub.Classify(v1.ClassifyRequest(image=GOOD, top_k=5)) for _ in range(2))
    assert list(first.predictions) == list(second.predictions)
    assert metric(gateway, "in_flight", network="full") == metric(gateway, "waiting", network="full") == 0
    assert metric(gateway, "streams") == 0
    for method in ("Classify", "ClassifyStream/request"):
        assert metric(gateway, "requests_total", method=method, code="INTERNAL", reason="BUG") == 0
