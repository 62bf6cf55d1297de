"""What can be called through Envoy, and by which limits; everything else is not there."""

from typing import Any

from serving.envoy.limits import MARGIN_SECONDS
from serving.envoy.messages import seconds, typed
from serving.envoy.options import EnvoyOptions
from serving.envoy.transcoding import PATHS
from serving.gateway.handlers import SERVICE

HEALTH = "envoy.filters.http.health_check"
KEYS = "envoy.filters.http.api_key_auth"
RATE = "envoy.filters.http.local_ratelimit"
ADAPTIVE_CONCURRENCY = "envoy.filters.http.adaptive_concurrency"
BODY = "envoy.filters.http.buffer"
TRANSCODER = "envoy.filters.http.grpc_json_transcoder"
HEALTH_PATH = "/healthz"
RATE_KEY = "key"  # of a rate's descriptor


def route_configuration(options: EnvoyOptions, cluster: str) -> dict[str, Any]:
    """Every route. `cluster` is Envoy's name of the gateway."""
    routes = [
        *(_call(options, cluster, method) for method in ("Classify", "Describe")),
        *(_json(options, cluster, method) for method in PATHS),
        _stream(options, cluster, f"/{SERVICE}/ClassifyStream"),
    ]
    if options.health:
        routes += [_asked_by_anybody(options, cluster, "/grpc.health.v1.Health/Check")]
    if options.reflection:
        versions = ("v1alpha", "v1")
        routes += [
            _stream(options, cluster, f"/grpc.reflection.{each}.ServerReflection/ServerReflectionInfo")
            for each in versions
        ]
    return {"virtual_hosts": [{"name": "fieldmark", "domains": ["*"], "routes": routes}]}


def rate_descriptors(options: EnvoyOptions) -> list[dict[str, Any]]:
    """A bucket for each name of a key."""
    bucket = {"max_tokens": options.burst, "tokens_per_fill": options.rate, "fill_interval": "1s"}
    names = dict.fromkeys(each.name for each in options.keys)
    return [{"entries": [{"key": RATE_KEY, "value": name}], "token_bucket": bucket} for name in names]


def _call(options: EnvoyOptions, cluster: str, method: str) -> dict[str, Any]:
    return {"match": {"path": f"/{SERVICE}/{method}", "grpc": {}}, "route": _bounded(options, cluster)}


def _json(options: EnvoyOptions, cluster: str, method: str) -> dict[str, Any]:
    verb, path = PATHS[method]
    by_verb = {"name": ":method", "string_match": {"exact": verb}}
    body = typed(
        "envoy.extensions.filters.http.buffer.v3.BufferPerRoute", buffer={"max_request_bytes": options.json_bytes}
    )
    return {
        "match": {"path": path, "headers": [by_verb]},
        "route": _bounded(options, cluster),
        "typed_per_filter_config": {BODY: body},
    }


def _stream(options: EnvoyOptions, cluster: str, path: str) -> dict[str, Any]:
    """A stream lasts as long as it moves; it is not held back, and its length says nothing about load."""
    return {
        "match": {"path": path, "grpc": {}},
        "route": {
            "cluster": cluster,
            "timeout": "0s",
            "idle_timeout": seconds(options.idle_seconds),
            "max_stream_duration": {"max_stream_duration": "0s"},
        },
        "typed_per_filter_config": _without(ADAPTIVE_CONCURRENCY, BODY),
    }


def _asked_by_anybody(options: EnvoyOptions, cluster: str, path: str) -> dict[str, Any]:
    return {
        "match": {"path": path, "grpc": {}},
        "route": _bounded(options, cluster),
        "typed_per_filter_config": _without(KEYS, RATE, ADAPTIVE_CONCURRENCY),
    }


def _bounded(options: EnvoyOptions, cluster: str) -> dict[str, Any]:
    """The answer is bounded once the request has arrived; the gateway itself ends it after `timeout`.

    The whole, its arrival included, is bounded for all routes by the connection manager: were that said here, Envoy
    would pass over `timeout`, and a gateway that hangs would be waited for twice as long.
    """
    return {
        "cluster": cluster,
        "timeout": seconds(options.timeout + MARGIN_SECONDS),
        "idle_timeout": seconds(options.stall_seconds),
    }


def _without(*filters: str) -> dict[str, Any]:
    return {name: typed("envoy.config.route.v3.FilterConfig", disabled=True) for name in filters}
