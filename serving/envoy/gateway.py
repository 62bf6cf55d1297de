"""An Envoy before a gateway: a key, a rate and a body's size for every call, JSON for who has no gRPC.

who is it? --> rate --> load --> body --> JSON to gRPC --> gateway
"""

import base64
from typing import Any

from serving.envoy.inside import Inside
from serving.envoy.keys import KEY_NAME
from serving.envoy.limits import (
    ANSWER_BYTES,
    ANSWER_WINDOW,
    ANSWERS_WINDOW,
    BUFFER_BYTES,
    MOST_AT_ONCE,
    PROBE_SECONDS,
)
from serving.envoy.messages import FILTERS, cluster, seconds, typed
from serving.envoy.options import EnvoyOptions
from serving.envoy.refusals import local_replies
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
)
from serving.envoy.transcoding import descriptors
from serving.gateway.calls import KEY_HEADER
from serving.gateway.handlers import SERVICE

_GATEWAY = "gateway"


def before_gateway(options: EnvoyOptions) -> Inside:
    """What leads to the gateway at `options.gateway`."""
    return Inside(
        filters=_filters(options),
        routes=route_configuration(options, _GATEWAY),
        cluster=_cluster(options),
        replies=local_replies(),
    )


def _filters(options: EnvoyOptions) -> list[dict[str, Any]]:
    health: list[dict[str, Any]] = []
    if options.health:
        health = [
            {
                "name": HEALTH,
                "typed_config": typed(
                    f"{FILTERS}.health_check.v3.HealthCheck",
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
                f"{FILTERS}.api_key_auth.v3.ApiKeyAuth",
                credentials=[{"key": each.secret, "client": each.name} for each in options.keys],
                key_sources=[{"header": KEY_HEADER}],
                forwarding={"header": KEY_NAME, "hide_credentials": True},
            ),
        },
        {"name": RATE, "typed_config": _rate(options)},
        {"name": ADAPTIVE_CONCURRENCY, "typed_config": _adaptive_concurrency(options)},
        {
            "name": BODY,
            "typed_config": typed(f"{FILTERS}.buffer.v3.Buffer", max_request_bytes=options.message_bytes),
        },
        {
            "name": TRANSCODER,
            "typed_config": typed(
                f"{FILTERS}.grpc_json_transcoder.v3.GrpcJsonTranscoder",
                proto_descriptor_bin=base64.b64encode(descriptors()).decode(),
                services=[SERVICE],
                match_incoming_request_route=True,
                convert_grpc_status=True,
                # "flagged": false is an answer, and fields are called as the proto and every page call them.
                print_options={"always_print_primitive_fields": True, "preserve_proto_field_names": True},
                request_validation_options={
                    "reject_unknown_method": False,  # gRPC's own health and reflection pass
                    "reject_unknown_query_parameters": True,
                },
                max_request_body_size=options.json_bytes,
                max_response_body_size=ANSWER_BYTES,
            ),
        },
    ]


def _rate(options: EnvoyOptions) -> dict[str, Any]:
    whole = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return typed(
        f"{FILTERS}.local_ratelimit.v3.LocalRateLimit",
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
        f"{FILTERS}.adaptive_concurrency.v3.AdaptiveConcurrency",
        gradient_controller_config={
            "sample_aggregate_percentile": {"value": 90},
            "concurrency_limit_params": {
                "max_concurrency_limit": MOST_AT_ONCE * options.concurrency,
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
    windows = {"initial_stream_window_size": ANSWER_WINDOW, "initial_connection_window_size": ANSWERS_WINDOW}
    return cluster(
        _GATEWAY,
        options.gateway,
        http={"explicit_http_config": {"http2_protocol_options": windows}},
        per_connection_buffer_limit_bytes=BUFFER_BYTES,
        # It tells the truth at HEALTH_PATH and takes no request away: one network may serve while the other does not,
        # and the gateway itself says so best. Envoy goes on to a host that is not healthy when no other is.
        health_checks=[
            {
                "timeout": seconds(PROBE_SECONDS),
                "interval": seconds(PROBE_SECONDS),
                "no_traffic_interval": seconds(PROBE_SECONDS),  # else a minute, while nobody calls
                "unhealthy_threshold": 1,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ],
        common_lb_config={"healthy_panic_threshold": {"value": 100}},
    )
