"""Does every network serve? `python -m serving.gateway.health` reads it off a gateway's metrics, for a container.

They are on loopback, without TLS and keys, also where callers meet an Envoy first. Exit code 0 and a line on stdout, or
1 and a sentence on stderr, as a container's health check wants it.
"""

import argparse
import sys
import urllib.request
from http.client import HTTPException

from bundle.errors import EndpointError, FieldmarkError, printable
from serving.gateway.metrics import PREFIX
from serving.gateway.options import DEFAULT_METRICS_PORT

SERVING = PREFIX + "serving"
_LARGEST = 1024 * 1024  # bytes of an answer


def networks(url: str, timeout: float) -> dict[str, bool]:
    """network -> whether it answers its probes, as the gateway has it; raises EndpointError. `timeout` in seconds."""
    from prometheus_client.parser import text_string_to_metric_families

    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a container's proxy leads elsewhere
    try:
        with direct.open(url, timeout=timeout) as page:
            text = page.read(_LARGEST).decode("utf-8", errors="replace")
        families = {family.name: family for family in text_string_to_metric_families(text)}
        if SERVING not in families:
            raise EndpointError(f"{url} has no {SERVING}")
        return {each.labels["network"]: each.value == 1 for each in families[SERVING].samples}
    except (OSError, HTTPException, ValueError, LookupError) as problem:  # whatever it is that answers there
        raise EndpointError(f"no gateway's metrics at {url} ({problem})") from None


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m serving.gateway.health", description="Does every network serve?")
    parser.add_argument("--url", default=f"http://127.0.0.1:{DEFAULT_METRICS_PORT}/metrics", help="of the metrics")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds for an answer")
    options = parser.parse_args(arguments)
    try:
        found = networks(options.url, options.timeout)
        if silent := [name for name, serving in sorted(found.items()) if not serving] or (
            [] if found else ["any network"]
        ):
            raise EndpointError(f"no answer of {', '.join(silent)}")
    except FieldmarkError as problem:
        sys.stderr.write(f"unhealthy: {printable(str(problem))}\n")
        return 1
    sys.stdout.write(f"healthy: {', '.join(sorted(found))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
