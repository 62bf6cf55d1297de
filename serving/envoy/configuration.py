"""Envoy's configuration from the options: a document that Envoy reads as JSON, and nothing is pasted together as text.

    caller --TLS, connections--> who is it? --> rate --> load --> body --> JSON to gRPC --> gateway

It has no admin interface. Routes are `serving.envoy.routes`, what a refusal says `serving.envoy.refusals`.
"""

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.client.remote import parse_url
from serving.envoy.keys import KEY_NAME
from serving.envoy.options import EnvoyOptions
from serving.envoy.refusals import CAME_AS, local_replies
from serving.envoy.routes import (
    ADAPTIVE_CONCURRENCY,
    BODY,
    HEALTH,
    HEALTH_PATH,
    KEYS,
    RATE,
    RATE_KEY,
    TRANSCODER,
    rate_descriptors,
    route_configuration,
    seconds,
    typed,
)
from serving.envoy.transcoding import descriptors
from serving.gateway.calls import KEY_HEADER
from serving.gateway.handlers import SERVICE
from serving.gateway.options import DEFAULT_PORT, METADATA_BYTES

_GATEWAY = "gateway"
_CERTIFICATE, _CLIENT_CA = "certificate", "client_ca"  # Envoy's names of what may be renewed
_HANDSHAKE_SECONDS = 10.0
_HEADERS_SECONDS = 10.0
_ADDED_HEADERS = 2048  # bytes of the gateway's limit that are left for what Envoy adds
_STREAM_WINDOW, _CONNECTION_WINDOW = 1 << 20, 4 << 20  # bytes in flight
# From the gateway all callers' answers come on a few connections. Whose answers nobody reads may hold back his own
# stream and never the connection: so its window is a thousand times as large.
_ANSWER_WINDOW, _ANSWERS_WINDOW = 256 << 10, 256 << 20
_CALLS_OF_A_CONNECTION = 128
_ANSWER_BYTES = 32 << 20  # of a JSON answer with all its pictures
_BUFFER_BYTES = 1 << 20
_PROBE_SECONDS = 2.0
_HEAP_BYTES = 1 << 30

_FILTERS = "envoy.extensions.filters.http"
_ROUTER = {  # the last of all filters
    "name": "envoy.filters.http.router",
    "typed_config": typed(f"{_FILTERS}.router.v3.Router", suppress_envoy_headers=True),
}


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What the door leads to: the filters that ask who somebody is and what he may, the routes, Envoy's cluster behind
    them, and what those read who are refused.
    """

    filters: list[dict[str, Any]] = field(repr=False)  # keys stand in them
    routes: dict[str, Any]
    cluster: dict[str, Any]
    replies: dict[str, Any]


def configuration(options: EnvoyOptions, renewals: Path | None = None, inside: Inside | None = None) -> dict[str, Any]:
    """The whole document. It holds the keys of all callers. `inside` is the gateway, unless something else is named.

    With `renewals`, the folder of the documents of `certificates`, Envoy reads certificates anew when other files take
    their names; else when it starts.
    """
    led_to = inside or _gateway(options)
    return {
        "node": {"id": "fieldmark", "cluster": "fieldmark"},  # Envoy wants a name where it reads anything anew
        "static_resources": {
            "listeners": [_listener(options, renewals, led_to)],
            "clusters": [led_to.cluster],
        },
        "overload_manager": _overload(options),
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {}}]},
    }


def certificates(options: EnvoyOptions) -> dict[str, dict[str, Any]]:
    """The documents by which Envoy is told of certificates while it runs, by the names of their files: they name PEM
    files, and hold none of them.

    Envoy looks for files that are moved into their folders, and at certificate and private key together: a pair that
    does not match is not taken.
    """
    kind = "envoy.extensions.transport_sockets.tls.v3.Secret"
    secrets = {_CERTIFICATE: typed(kind, name=_CERTIFICATE, tls_certificate=_pair(options))}
    if options.client_ca is not None:
        secrets[_CLIENT_CA] = typed(kind, name=_CLIENT_CA, validation_context=_trusted(options.client_ca))
    return {_document(name): {"resources": [secret]} for name, secret in secrets.items()}


def _gateway(options: EnvoyOptions) -> Inside:
    return Inside(
        filters=_http_filters(options),
        routes=route_configuration(options, _GATEWAY),
        cluster=_cluster(options),
        replies=local_replies(),
    )


def _listener(options: EnvoyOptions, renewals: Path | None, inside: Inside) -> dict[str, Any]:
    manager = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": _connection_manager(options, inside),
    }
    return {
        "name": "callers",
        "address": address(options.host.strip("[]"), options.port),
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "filter_chains": [
            {
                "filters": [manager],
                "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": _tls(options, renewals)},
                "transport_socket_connect_timeout": seconds(_HANDSHAKE_SECONDS),
            }
        ],
    }


def _tls(options: EnvoyOptions, renewals: Path | None) -> dict[str, Any]:
    common: dict[str, Any] = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "alpn_protocols": ["h2", "http/1.1"],
    }
    if renewals is None:
        common["tls_certificates"] = [_pair(options)]
    else:
        common["tls_certificate_sds_secret_configs"] = [_renewed(_CERTIFICATE, renewals)]
    if options.client_ca is not None and renewals is None:
        common["validation_context"] = _trusted(options.client_ca)
    elif options.client_ca is not None and renewals is not None:
        common["validation_context_sds_secret_config"] = _renewed(_CLIENT_CA, renewals)
    return typed(
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context=common,
        require_client_certificate=options.client_ca is not None,
    )


def _pair(options: EnvoyOptions) -> dict[str, Any]:
    return {
        "certificate_chain": {"filename": str(options.certificate.absolute())},
        "private_key": {"filename": str(options.certificate_key.absolute())},
    }


def _trusted(client_ca: Path) -> dict[str, Any]:
    return {"trusted_ca": {"filename": str(client_ca.absolute())}}


def _renewed(name: str, folder: Path) -> dict[str, Any]:
    return {"name": name, "sds_config": {"path_config_source": {"path": str(folder.absolute() / _document(name))}}}


def _document(name: str) -> str:
    return f"{name}.json"


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
        max_request_headers_kb=(METADATA_BYTES - _ADDED_HEADERS) // 1024,
        common_http_protocol_options={
            "idle_timeout": seconds(options.idle_seconds),
            "max_connection_duration": seconds(options.connection_seconds),
            "max_stream_duration": seconds(options.timeout + options.stall_seconds),  # of streams, their routes tell
            "max_headers_count": 64,
            "headers_with_underscores_action": "DROP_HEADER",
        },
        http2_protocol_options={
            "max_concurrent_streams": _CALLS_OF_A_CONNECTION,
            "initial_stream_window_size": _STREAM_WINDOW,
            "initial_connection_window_size": _CONNECTION_WINDOW,
        },
        request_headers_timeout=seconds(_HEADERS_SECONDS),
        stream_idle_timeout=seconds(options.stall_seconds),
        drain_timeout=seconds(options.timeout),
        early_header_mutation_extensions=[_first_headers()],
        access_log=[_access_log()],
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


def _access_log() -> dict[str, Any]:
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


def _http_filters(options: EnvoyOptions) -> list[dict[str, Any]]:
    health: list[dict[str, Any]] = []
    if options.health:
        health = [
            {
                "name": HEALTH,
                "typed_config": typed(
                    f"{_FILTERS}.health_check.v3.HealthCheck",
                    pass_through_mode=False,
                    cluster_min_healthy_percentages={_GATEWAY: {"value": 100}},
                    headers=[{"name": ":path", "string_match": {"exact": HEALTH_PATH}}],
                ),
            }
        ]
    return [
        *health,
        {
            "name": KEYS,
            "typed_config": typed(
                f"{_FILTERS}.api_key_auth.v3.ApiKeyAuth",
                credentials=[{"key": each.secret, "client": each.name} for each in options.keys],
                key_sources=[{"header": KEY_HEADER}],
                forwarding={"header": KEY_NAME, "hide_credentials": True},
            ),
        },
        {"name": RATE, "typed_config": _rate(options)},
        {"name": ADAPTIVE_CONCURRENCY, "typed_config": _adaptive_concurrency(options)},
        {
            "name": BODY,
            "typed_config": typed(f"{_FILTERS}.buffer.v3.Buffer", max_request_bytes=options.message_bytes),
        },
        {
            "name": TRANSCODER,
            "typed_config": typed(
                f"{_FILTERS}.grpc_json_transcoder.v3.GrpcJsonTranscoder",
                proto_descriptor_bin=base64.b64encode(descriptors()).decode(),
                services=[SERVICE],
                match_incoming_request_route=True,
                convert_grpc_status=True,
                print_options={"always_print_primitive_fields": True},  # "flagged": false is an answer
                request_validation_options={
                    "reject_unknown_method": False,  # gRPC's own health and reflection pass
                    "reject_unknown_query_parameters": True,
                },
                max_request_body_size=options.json_bytes,
                max_response_body_size=_ANSWER_BYTES,
            ),
        },
    ]


def _rate(options: EnvoyOptions) -> dict[str, Any]:
    whole = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return typed(
        f"{_FILTERS}.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="rate",
        filter_enabled=whole,
        filter_enforced=whole,
        rate_limited_as_resource_exhausted=True,
        # Every key has a bucket of its own; the one that the filter wants besides is for all of them together.
        token_bucket={
            "max_tokens": options.burst * len(options.keys),
            "tokens_per_fill": options.rate * len(options.keys),
            "fill_interval": "1s",
        },
        descriptors=rate_descriptors(options),
        rate_limits=[{"actions": [{"request_headers": {"header_name": KEY_NAME, "descriptor_key": RATE_KEY}}]}],
    )


def _adaptive_concurrency(options: EnvoyOptions) -> dict[str, Any]:
    """Sheds when answers take longer and longer, but never below what the gateway works on at a time.

    It is below its floor that this filter would look for the shortest time, and refuse honest callers meanwhile.
    """
    return typed(
        f"{_FILTERS}.adaptive_concurrency.v3.AdaptiveConcurrency",
        gradient_controller_config={
            "sample_aggregate_percentile": {"value": 90},
            "concurrency_limit_params": {
                "max_concurrency_limit": 16 * options.concurrency,
                "concurrency_update_interval": "0.5s",
            },
            "min_rtt_calc_params": {
                "interval": "60s",
                "request_count": 50,
                "jitter": {"value": 10},
                "min_concurrency": options.concurrency,
                "buffer": {"value": 50},
            },
        },
    )


def _cluster(options: EnvoyOptions) -> dict[str, Any]:
    host, _, port = parse_url(options.gateway, port=DEFAULT_PORT).rpartition(":")
    endpoint = {"endpoint": {"address": address(host.strip("[]"), int(port))}}
    protocol = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    windows = {"initial_stream_window_size": _ANSWER_WINDOW, "initial_connection_window_size": _ANSWERS_WINDOW}
    return {
        "name": _GATEWAY,
        "type": "STRICT_DNS",
        "connect_timeout": "2s",
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "load_assignment": {"cluster_name": _GATEWAY, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            protocol: typed(protocol, explicit_http_config={"http2_protocol_options": windows})
        },
        # It tells the truth at HEALTH_PATH and takes no request away: one network may serve while the other does not,
        # and the gateway itself says so best. Envoy goes on to a host that is not healthy when no other is.
        "health_checks": [
            {
                "timeout": seconds(_PROBE_SECONDS),
                "interval": seconds(_PROBE_SECONDS),
                "no_traffic_interval": seconds(_PROBE_SECONDS),  # else a minute, while nobody calls
                "unhealthy_threshold": 1,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ],
        "common_lb_config": {"healthy_panic_threshold": {"value": 100}},
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
                "typed_config": typed(f"{monitors}.fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=_HEAP_BYTES),
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
            for action, share in (
                ("shrink_heap", 0.8),
                ("disable_http_keepalive", 0.9),
                ("stop_accepting_requests", 0.95),
            )
        ],
    }


def address(host: str, port: int) -> dict[str, Any]:
    """A place as Envoy writes it."""
    return {"socket_address": {"address": host, "port_value": port}}
