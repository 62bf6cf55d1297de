"""fieldmark.v1's methods as gRPC wants them, with one thing more: what is no message gets a documented status.

gRPC itself answers other bytes with the name of a Python class, and writes a stack into the log. A call whose only
message is cut off, or never comes, it does not answer at all. So the message is read here: on the wire, a method that
takes one message and one that takes a stream of them are the same.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from bundle.errors import RequestRefused
from serving.gateway import failures
from serving.gateway.generated import fieldmark_pb2 as v1

SERVICE = v1.DESCRIPTOR.services_by_name["Fieldmark"].full_name


def add_service(service: Any, server: Any) -> None:
    """Register the servicer with a server of grpc.aio.

    Its methods get a message, or the RequestRefused that stands for a malformed one.
    """
    seconds = service.options.timeout
    handlers = {
        "Classify": grpc.stream_unary_rpc_method_handler(
            _with_one(service.Classify, v1.ClassifyRequest, seconds),
            _parser(v1.ClassifyRequest),
            v1.ClassifyResponse.SerializeToString,
        ),
        "ClassifyStream": grpc.stream_stream_rpc_method_handler(
            service.ClassifyStream, _parser(v1.ClassifyStreamRequest), v1.ClassifyStreamResponse.SerializeToString
        ),
        "Describe": grpc.stream_unary_rpc_method_handler(
            _with_one(service.Describe, v1.DescribeRequest, seconds),
            _parser(v1.DescribeRequest),
            v1.DescribeResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def well_formed(message: Any) -> Any:
    """The message; raises the RequestRefused that stands for a malformed one."""
    if isinstance(message, RequestRefused):
        raise message
    return message


def _with_one(method: Callable[[Any, Any], Awaitable[Any]], kind: Any, seconds: float) -> Callable[..., Awaitable[Any]]:
    """The method, called with the one message of its call, which must be there within `seconds`."""

    async def call(_: Any, context: Any) -> Any:
        try:
            async with asyncio.timeout(seconds):
                message = await context.read()
        except TimeoutError:
            message = RequestRefused("the request did not arrive in time", reason=failures.TOO_LATE)
        if message is grpc.aio.EOF:
            name = kind.DESCRIPTOR.full_name
            message = RequestRefused(
                f"the call holds no whole message of type {name}", reason=failures.MESSAGE_MALFORMED
            )
        return await method(message, context)

    return call


def _parser(kind: Any) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        try:
            return kind.FromString(data)
        except DecodeError:
            return RequestRefused(
                f"the request is no message of type {kind.DESCRIPTOR.full_name}", reason=failures.MESSAGE_MALFORMED
            )

    return parse
