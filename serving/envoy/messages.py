"""Envoy's messages as they are written here: dictionaries that become JSON."""

from typing import Any

from serving.client.remote import parse_url
from serving.envoy.limits import CONNECT_SECONDS
from serving.gateway.options import DEFAULT_PORT

FILTERS = "envoy.extensions.filters.http"  # where the types of HTTP filters are


def seconds(value: float) -> str:
    """A duration as Envoy writes it, to the millisecond."""
    return f"{value:.3f}s"


def typed(kind: str, **fields: Any) -> dict[str, Any]:
    """A message of one of Envoy's extensions."""
    return {"@type": f"type.googleapis.com/{kind}", **fields}


def address(host: str, port: int) -> dict[str, Any]:
    """A place as Envoy writes it."""
    return {"socket_address": {"address": host, "port_value": port}}


def cluster(name: str, url: str, *, http: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The one process behind an Envoy, at `url`; `http` are its HttpProtocolOptions."""
    host, _, port = parse_url(url, port=DEFAULT_PORT).rpartition(":")
    endpoint = {"endpoint": {"address": address(host.strip("[]"), int(port))}}
    protocol = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": seconds(CONNECT_SECONDS),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {protocol: typed(protocol, **http)},
        **more,
    }
