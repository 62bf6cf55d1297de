"""fieldmark.v1's methods as gRPC wants them, with one thing more: bytes that are no message get a documented status.

gRPC itself answers those with the name of a Python class, and writes a stack into the log.
"""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from bundle.errors import RequestRefused
from serving.gateway import failures
from serving.gateway.generated import fieldmark_pb2 as v1

SERVICE = v1.DESCRIPTOR.services_by_name["Fieldmark"].full_name


def add_service(service: Any, server: Any) -> None:
    """Register the servicer; its methods get a message, or the RequestRefused that stands for a malformed one."""
    handlers = {
        "Classify": grpc.unary_unary_rpc_method_handler(
            service.Classify, _parser(v1.ClassifyRequest), v1.ClassifyResponse.SerializeToString
        ),
        "ClassifyStream": grpc.stream_stream_rpc_method_handler(
            service.ClassifyStream, _parser(v1.ClassifyStreamRequest), v1.ClassifyStreamResponse.SerializeToString
        ),
        "Describe": grpc.unary_unary_rpc_method_handler(
            service.Describe, _parser(v1.DescribeRequest), v1.DescribeResponse.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def well_formed(message: Any) -> Any:
    """The message; raises the RequestRefused that stands for a malformed one."""
    if isinstance(message, RequestRefused):
        raise message
    return message


def _parser(kind: Any) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        try:
            return kind.FromString(data)
        except DecodeError:
            return RequestRefused(
                f"the request is no message of type {kind.DESCRIPTOR.full_name}", reason=failures.MESSAGE_MALFORMED
            )

    return parse
