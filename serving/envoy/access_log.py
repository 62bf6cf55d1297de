"""A line of the log for every request, whoever has answered it. docs/gateway.md has its fields."""

from typing import Any

from serving.envoy.keys import KEY_NAME
from serving.envoy.messages import typed


def access_log() -> dict[str, Any]:
    """One JSON object a line, without a query, a key, or a header that is the caller's but for his request id."""
    fields = {
        "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3f+00:00)%",
        "event": "access",
        "method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ:ORIG_OR_PATH):200%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS%",
        "why": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "request_id": "%REQ(X-REQUEST-ID):128%",
        "traceparent": "%REQ(TRACEPARENT):55%",
        "key_name": f"%REQ({KEY_NAME.upper()}):64%",
        "caller": "%DOWNSTREAM_REMOTE_ADDRESS%",
        "certificate": "%DOWNSTREAM_PEER_SUBJECT%",
        "protocol": "%PROTOCOL%",
        "bytes": "%BYTES_RECEIVED%",
        "sent_bytes": "%BYTES_SENT%",
        "milliseconds": "%DURATION%",
    }
    return {
        "name": "envoy.access_loggers.stdout",
        "typed_config": typed(
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog", log_format={"json_format": fields}
        ),
    }
