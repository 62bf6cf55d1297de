"""What is kept of requests beyond their answers: a line of the audit log, and a copy of a flagged image."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.gateway.audit import AuditLog, AuditOptions
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.journal import Journal
from serving.gateway.metrics import Metrics
from serving.gateway.options import CLOSE_SECONDS
from serving.gateway.rotation import RotatedFile
from serving.quarantine.entry import FLAGGED, SAMPLE, Case, LayerEvidence
from serving.quarantine.options import QuarantineOptions
from serving.quarantine.pruning import AGE, SIZE
from serving.quarantine.store import open_store
from serving.quarantine.writer import Quarantine

if TYPE_CHECKING:
    from serving.gateway.service import Call

SAY_SECONDS = 60.0  # between two sentences on the same trouble


@dataclass(frozen=True, kw_only=True)
class RetentionOptions:
    """What is kept; None keeps none of it."""

    quarantine: QuarantineOptions | None = None
    audit: AuditOptions | None = None

    def check(self) -> None:
        """Raise OptionError for a place that can be none, before anything is started; an object store is not asked."""
        if self.quarantine is not None:
            open_store(self.quarantine.root, prepare=True)
        if self.audit is not None:
            RotatedFile(self.audit.path, most_bytes=self.audit.bytes, files=self.audit.files).close()


class Retention:
    """`ended` with every request that has ended; never waits. Raises OptionError for a place that can be none."""

    def __init__(self, options: RetentionOptions, metrics: Metrics, journal: Journal) -> None:
        self._metrics, self._journal = metrics, journal
        self._quarantine: Quarantine | None = None
        self._audit = AuditLog(options.audit, lost=self._lost) if options.audit else None
        for reason in (FLAGGED, SAMPLE):
            metrics.quarantine_written.labels(reason)  # so that a rate sees the first one
        for why in (AGE, SIZE):
            metrics.quarantine_removed.labels(why)
        if options.quarantine is not None:
            self._quarantine = Quarantine(options.quarantine, self)

    def ended(self, call: "Call", code: str, reason: str, answer: Any) -> None:
        """Keep what is to be kept of a call, or of one request of a stream."""
        answered = answer if isinstance(answer, v1.ClassifyResponse) else None
        received = datetime.now(UTC) - timedelta(seconds=time.monotonic() - call.arrived)
        moment = received.isoformat(timespec="milliseconds")
        if self._audit is not None:
            self._audit.write(_line(call, code, reason, answered, moment), call.image)
        if self._quarantine is not None and answered is not None:
            self._quarantine.offer(_case(call, answered, moment), call.image)

    def close(self) -> None:
        """Write what waits, for CLOSE_SECONDS at most."""
        deadline = time.monotonic() + CLOSE_SECONDS
        if self._audit is not None:
            self._audit.close(CLOSE_SECONDS)
        if self._quarantine is not None:
            self._quarantine.close(max(0.0, deadline - time.monotonic()))

    def written(self, reason: str) -> None:
        self._metrics.quarantine_written.labels(reason).inc()

    def dropped(self, count: int, why: str) -> None:
        self._metrics.quarantine_dropped.inc(count)
        self._said("quarantine", why)

    def pruned(self, removed: int, why: str) -> None:
        self._metrics.quarantine_removed.labels(why).inc(removed)

    def holds(self, size: int) -> None:
        self._metrics.quarantine_bytes.set(size)

    def _lost(self, count: int, why: str) -> None:
        self._metrics.lost_audit_lines.inc(count)
        self._said("audit", why)

    def _said(self, event: str, why: str) -> None:
        self._journal.seldom(event, "", SAY_SECONDS, cause=why)


def _case(call: "Call", answer: v1.ClassifyResponse, moment: str) -> Case:
    best, judged = answer.predictions[0], answer.adversarial
    return Case(
        received=moment,
        request_id=call.request_id,
        caller=call.key_name,
        bundle_id=answer.bundle_id,
        network=answer.network,
        label=best.label,
        probability=_shortest(best.probability),
        score=_shortest(judged.score),
        p_value=_shortest(judged.p_value),
        alpha=judged.alpha,
        flagged=judged.flagged,
        layers=tuple(
            LayerEvidence(layer=each.layer, squared_distance=_shortest(each.squared_distance)) for each in judged.layers
        ),
    )


def _line(call: "Call", code: str, reason: str, answer: v1.ClassifyResponse | None, moment: str) -> dict[str, Any]:
    stages = {name: round(1000 * seconds, 3) for name, seconds in vars(call.stages).items()}
    line: dict[str, Any] = {
        "time": moment,
        "request_id": call.request_id,
        "caller": call.key_name,
        "method": call.method,
        "network": call.network,
        "code": code,
        "reason": reason,
        "ms": stages | {"total": round(1000 * (time.monotonic() - call.arrived), 3)},
    }
    if call.trace.trace_id:
        line["trace_id"] = call.trace.trace_id
    if answer is not None:
        line |= {
            "bundle_id": answer.bundle_id,
            "label": answer.predictions[0].label,
            "p_value": _shortest(answer.adversarial.p_value),
            "alpha": answer.adversarial.alpha,
            "flagged": answer.adversarial.flagged,
        }
    return line


def _shortest(value: float) -> float:
    """A float32 as the shortest number that is it."""
    return float(str(np.float32(value)))
