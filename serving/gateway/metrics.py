"""What Prometheus sees of a gateway. docs/gateway.md lists the names, and a test compares the list."""

from collections.abc import Mapping
from typing import Any

from bundle.errors import ServerError

PREFIX = "fieldmark_gateway_"
STAGES = ("queue", "decode", "inference", "total")
# seconds: from a small network's millisecond to the longest time of a request
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_P_VALUES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Metrics:
    """One gateway's own registry, so that two in one process do not share counts."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._server: tuple[Any, Any] | None = None
        self._replaced: dict[str, int] = {}

        def make(kind: Any, name: str, text: str, labels: tuple[str, ...] = (), **options: Any) -> Any:
            return kind(PREFIX + name, text, labels, registry=self.registry, **options)

        self.requests = make(Counter, "requests", "Requests by outcome.", ("method", "code", "reason"))
        self.seconds = make(Histogram, "seconds", "Seconds of answered requests.", ("stage",), buckets=_SECONDS)
        self.p_value = make(Histogram, "p_value", "p-values given.", ("network",), buckets=_P_VALUES)
        self.flagged = make(Counter, "flagged", "Images flagged, at the alpha asked for.", ("network",))
        self.alpha = make(Counter, "alpha", "Sum of the alphas asked for: flags expected at most.", ("network",))
        self.shed = make(Counter, "shed", "Requests sent away before any work.", ("reason",))
        self.in_flight = make(Gauge, "in_flight", "Requests decoded or at Triton now.", ("network",))
        self.waiting = make(Gauge, "waiting", "Requests in the queue now.", ("network",))
        self.streams = make(Gauge, "streams", "Streams open now.")
        self.stalled_streams = make(Gauge, "stalled_streams", "Streams given up that wait for their caller to read.")
        self.serving = make(Gauge, "serving", "1 while the network answers its probes.", ("network",))
        self.shadow = make(Counter, "shadow", "Answers compared with the shadow's, or not.", ("network", "outcome"))
        self.shadow_differences = make(
            Counter, "shadow_differences", "Answers of which the shadow's differed.", ("network", "what")
        )
        self.shadow_p_value = make(
            Histogram, "shadow_p_value", "Differences of the shadow's p-value.", ("network",), buckets=_P_VALUES
        )
        self.drift = make(Gauge, "drift_log10", "log10 of the drift martingale's capital now.", ("network",))
        self.drift_highest = make(Gauge, "drift_highest_log10", "The highest that it has been.", ("network",))
        self.promises_broken = make(
            Counter, "promises_broken", "Windows in which far more was flagged than alpha promises.", ("network",)
        )
        self.quarantine_written = make(Counter, "quarantine_written", "Images put into quarantine.", ("reason",))
        self.quarantine_dropped = make(Counter, "quarantine_dropped", "Images that should be there and are not.")
        self.quarantine_removed = make(
            Counter, "quarantine_removed", "Images removed for their age, or for the size of all.", ("why",)
        )
        self.quarantine_bytes = make(Gauge, "quarantine_bytes", "Bytes of the quarantine.")
        self.lost_audit_lines = make(Counter, "lost_audit_lines", "Lines of the audit log that were not written.")
        self.spans = make(Counter, "spans", "Spans of traces: made, and sent to the collector.", ("outcome",))
        self.replaced = make(Counter, "replaced", "What 'fieldmark serve' has replaced, over all gateways.", ("who",))
        text = "Unix time in seconds when a certificate of Envoy's is over."
        self.certificate_expires = make(Gauge, "certificate_expires", text, ("file",))
        self.lost_log_lines = make(Counter, "lost_log_lines", "Log lines dropped because nobody took them.")

    def replaced_so_far(self, counts: Mapping[str, int]) -> None:
        """What has been replaced, by who: all that ever was, and not what is new."""
        for who, count in counts.items():
            self.replaced.labels(who).inc(max(0, count - self._replaced.get(who, 0)))
            self._replaced[who] = max(count, self._replaced.get(who, 0))

    def listen(self, host: str, port: int) -> int:
        """Serve the endpoint at an address; returns the port, and raises ServerError if it cannot be used."""
        from prometheus_client import start_http_server

        try:
            self._server = start_http_server(port, addr=host.strip("[]"), registry=self.registry)
        except (OSError, UnicodeError) as problem:
            reason = getattr(problem, "strerror", None) or "no such address"
            raise ServerError(
                f"port {port} for metrics cannot be used on {host} ({reason})",
                hint="Choose another one: --metrics-port N (0 takes any free one).",
            ) from None
        return int(self._server[0].server_port)

    def close(self) -> None:
        """Stop the endpoint; safe to call twice."""
        if self._server is not None:
            server, thread = self._server
            self._server = None
            server.shutdown()
            server.server_close()
            thread.join(timeout=5)
