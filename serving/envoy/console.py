"""An Envoy before the review console: browsers show a key in HTTP's own way, its name as user and the key as password.

What the console needs of it: TLS, the name of the key under KEY_NAME, and nobody's name that he says himself. All else,
which site a request comes from included, the console looks at itself.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bundle.errors import OptionError
from serving.envoy.inside import Inside
from serving.envoy.keys import KEY_NAME, Key
from serving.envoy.limits import KEPT_SECONDS
from serving.envoy.messages import FILTERS, cluster, seconds, typed
from serving.envoy.options import EnvoyOptions
from serving.envoy.refusals import has_status

_CONSOLE = "console"
_REALM = "Fieldmark review"
_SAID = {
    401: "A key is needed: its name as the user, the key as the password.",
    503: "The console does not answer: is 'fieldmark review' running?",
    504: "The console did not answer in time.",
}


def before_console(options: EnvoyOptions) -> Inside:
    """What leads to the console at `options.gateway`; raises OptionError for two keys of one name."""
    return Inside(filters=[_keys(options.keys)], routes=_routes(options), cluster=_cluster(options), replies=_replies())


def _keys(keys: Sequence[Key]) -> dict[str, Any]:
    """Envoy knows digests here, by SHA-1 alone: no weakness of a key of 24 random characters and more."""
    if twice := [name for name, count in Counter(key.name for key in keys).items() if count > 1]:
        raise OptionError(
            f"two keys are of {twice[0]}, and before a console each name has one",
            hint="Leave the older one out: browsers ask for the new one.",
        )
    digests = {key.name: base64.b64encode(hashlib.sha1(key.secret.encode()).digest()).decode() for key in keys}
    lines = "".join(f"{name}:{{SHA}}{digest}\n" for name, digest in digests.items())
    kind = f"{FILTERS}.basic_auth.v3.BasicAuth"
    return {
        "name": "envoy.filters.http.basic_auth",
        "typed_config": typed(kind, users={"inline_string": lines}, forward_username_header=KEY_NAME, realm=_REALM),
    }


def _routes(options: EnvoyOptions) -> dict[str, Any]:
    """Every path: an export may take its time, and is bounded by standing still alone."""
    route = {
        "match": {"prefix": "/"},
        "route": {
            "cluster": _CONSOLE,
            "timeout": "0s",
            "idle_timeout": seconds(options.idle_seconds),
            "max_stream_duration": {"max_stream_duration": "0s"},
            "retry_policy": {"retry_on": "connect-failure,reset-before-request", "num_retries": 2},
        },
        "request_headers_to_remove": ["authorization"],  # the console needs no key, and logs none
    }
    return {"virtual_hosts": [{"name": "fieldmark", "domains": ["*"], "routes": [route]}]}


def _cluster(options: EnvoyOptions) -> dict[str, Any]:
    idle = {"idle_timeout": seconds(KEPT_SECONDS)}
    http = {"explicit_http_config": {"http_protocol_options": {}}, "common_http_protocol_options": idle}
    return cluster(_CONSOLE, options.gateway, http=http)


def _replies() -> dict[str, Any]:
    return {
        "mappers": [
            {
                "filter": has_status(status),
                "body_format_override": {"text_format_source": {"inline_string": f"{sentence}\n"}},
            }
            for status, sentence in _SAID.items()
        ]
    }
