"""Envoy's configuration from the options: a document that Envoy reads as JSON, and nothing is pasted together as text.

    caller --TLS, connections, headers, memory--> serving.envoy.gateway, or serving.envoy.console

It has no admin interface. Limits that no flag sets are in `serving.envoy.limits`, what a refusal says in
`serving.envoy.refusals`.
"""

from pathlib import Path
from typing import Any

from serving.envoy.access_log import access_log
from serving.envoy.gateway import before_gateway
from serving.envoy.inside import Inside
from serving.envoy.keys import KEY_NAME
from serving.envoy.limits import (
    ADDED_HEADERS,
    BUFFER_BYTES,
    CALLS_OF_A_CONNECTION,
    CONNECTION_WINDOW,
    HANDSHAKE_SECONDS,
    HEADERS_SECONDS,
    HEAP_BYTES,
    HEAP_SHARES,
    MOST_HEADERS,
    STREAM_WINDOW,
)
from serving.envoy.messages import FILTERS, address, seconds, typed
from serving.envoy.options import EnvoyOptions
from serving.envoy.refusals import CAME_AS
from serving.envoy.tls import tls_context
from serving.gateway.options import METADATA_BYTES

_ROUTER = {  # the last of all filters
    "name": "envoy.filters.http.router",
    "typed_config": typed(f"{FILTERS}.router.v3.Router", suppress_envoy_headers=True),
}


def configuration(options: EnvoyOptions, renewals: Path | None = None, inside: Inside | None = None) -> dict[str, Any]:
    """The whole document. It holds the keys of all callers. `inside` is the gateway, unless something else is named.

    With `renewals`, the folder of the documents of `certificates`, Envoy reads certificates anew when other files take
    their names; else when it starts.
    """
    led_to = inside or before_gateway(options)
    return {
        "node": {"id": "fieldmark", "cluster": "fieldmark"},  # Envoy wants a name where it reads anything anew
        "static_resources": {
            "listeners": [_listener(options, renewals, led_to)],
            "clusters": [led_to.cluster],
        },
        "overload_manager": _overload(options),
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {}}]},
    }


def _listener(options: EnvoyOptions, renewals: Path | None, inside: Inside) -> dict[str, Any]:
    manager = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": _connection_manager(options, inside),
    }
    tls = {"name": "envoy.transport_sockets.tls", "typed_config": tls_context(options, renewals)}
    return {
        "name": "callers",
        "address": address(options.host.strip("[]"), options.port),
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "filter_chains": [
            {
                "filters": [manager],
                "transport_socket": tls,
                "transport_socket_connect_timeout": seconds(HANDSHAKE_SECONDS),
            }
        ],
    }


def _connection_manager(options: EnvoyOptions, inside: Inside) -> dict[str, Any]:
    kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    request_id = "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig"
    return typed(
        kind,
        stat_prefix="callers",
        codec_type="AUTO",
        server_header_transformation="PASS_THROUGH",
        use_remote_address=True,
        skip_xff_append=True,
        preserve_external_request_id=True,  # the gateway's answer and log have the caller's own
        request_id_extension={"typed_config": typed(request_id, pack_trace_reason=False)},
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        max_request_headers_kb=(METADATA_BYTES - ADDED_HEADERS) // 1024,
        common_http_protocol_options={
            "idle_timeout": seconds(options.idle_seconds),
            "max_connection_duration": seconds(options.connection_seconds),
            "max_stream_duration": seconds(options.timeout + options.stall_seconds),  # of streams, their routes tell
            "max_headers_count": MOST_HEADERS,
            "headers_with_underscores_action": "DROP_HEADER",
        },
        http2_protocol_options={
            "max_concurrent_streams": CALLS_OF_A_CONNECTION,
            "initial_stream_window_size": STREAM_WINDOW,
            "initial_connection_window_size": CONNECTION_WINDOW,
        },
        request_headers_timeout=seconds(HEADERS_SECONDS),
        stream_idle_timeout=seconds(options.stall_seconds),
        drain_timeout=seconds(options.timeout),
        early_header_mutation_extensions=[_first_headers()],
        access_log=[access_log()],
        local_reply_config=inside.replies,
        http_filters=[*inside.filters, _ROUTER],
        route_config=inside.routes,
    )


def _first_headers() -> dict[str, Any]:
    """Who a caller is, only his key says, and not he: before anything else, the log included."""
    came_as = {
        "header": {"key": CAME_AS, "value": "%REQ(CONTENT-TYPE):64%"},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
    kind = "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": typed(kind, mutations=[{"remove": KEY_NAME}, {"append": came_as}]),
    }


def _overload(options: EnvoyOptions) -> dict[str, Any]:
    heap = "envoy.resource_monitors.fixed_heap"
    connections = "envoy.resource_monitors.global_downstream_max_connections"
    monitors = "envoy.extensions.resource_monitors"
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            {
                "name": heap,
                "typed_config": typed(f"{monitors}.fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=HEAP_BYTES),
            },
            {
                "name": connections,
                "typed_config": typed(
                    f"{monitors}.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=options.connections,
                ),
            },
        ],
        "actions": [
            {
                "name": f"envoy.overload_actions.{action}",
                "triggers": [{"name": heap, "threshold": {"value": share}}],
            }
            for action, share in HEAP_SHARES.items()
        ],
    }
