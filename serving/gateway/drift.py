"""What the answers of a running gateway say of drift: the martingale of `fieldmark drift`, alpha's promise; by network.

Both need nothing but p-values, so they cost the same at every request, and begin anew with every bundle.
"""

from dataclasses import dataclass, field

import numpy as np

from bundle import Bundle, Manifest, detector_file
from bundle.errors import BundleCorrupt
from bundle.manifest import PER_CLASS
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.journal import Journal
from serving.gateway.metrics import Metrics
from serving.martingale import CAPITAL, Capital, RankUrn
from serving.promise import Promise

SAY_SECONDS = 600.0  # between two sentences on one network
QUESTION = "are these images prepared like the training images?"
ALL = ""  # what stands for the label where p-values are not by class


@dataclass(kw_only=True)
class _Meter:
    """One network's. `urns` by predicted label; none where it is not known how many scores are behind a p-value."""

    alpha: float
    promise: Promise
    urns: dict[str, RankUrn]
    by_class: bool
    capital: Capital = field(default_factory=Capital)
    images: int = 0
    alarmed: bool = False


class DriftMeters:
    """`learn` and `begin` with each bundle, then `see` each answer. Its findings go to the metrics and the journal."""

    def __init__(self, metrics: Metrics, journal: Journal) -> None:
        self._metrics, self._journal = metrics, journal
        self._bundle_id = ""
        self._meters: dict[str, _Meter] = {}
        self._learnt: tuple[str, dict[str, dict[str, int]]] = ("", {})  # the id of a bundle, and its sizes by network

    def learn(self, bundle: Bundle | None) -> None:
        """Read what p-values by class need of a bundle's files: whole files, so not for the event loop's thread."""
        if bundle is not None:
            infos = bundle.manifest.networks.items()
            by_class = [network for network, info in infos if info.detector.calibration == PER_CLASS]
            self._learnt = (bundle.bundle_id, {network: _sizes(bundle, network) for network in by_class})

    def begin(self, manifest: Manifest) -> None:
        """Measure the answers of this bundle from now on; p-values by class only if it was learnt."""
        if manifest.bundle_id == self._bundle_id:
            return
        gauges = (self._metrics.drift, self._metrics.drift_highest)
        for network in set(self._meters) - set(manifest.networks):
            for gauge in gauges:
                gauge.remove(network)
        self._bundle_id, self._meters = manifest.bundle_id, {}
        learnt_id, learnt = self._learnt
        for network, info in manifest.networks.items():
            detector, by_class = info.detector, info.detector.calibration == PER_CLASS
            known = learnt.get(network, {}) if learnt_id == manifest.bundle_id else {}
            sizes = known if by_class else {ALL: detector.calibration_n}
            self._meters[network] = _Meter(
                alpha=detector.alpha,
                promise=Promise(detector.calibration_n, detector.alpha),
                urns={label: RankUrn(n, np.random.default_rng()) for label, n in sizes.items()},
                by_class=by_class,
            )
            self._metrics.promises_broken.labels(network)
            for gauge in gauges:
                gauge.labels(network).set(0.0 if sizes else np.nan)

    def see(self, answer: v1.ClassifyResponse) -> None:
        """Count one answer, whatever alpha was asked for: here the bundle's own counts."""
        meter = self._meters.get(answer.network)
        if meter is None or answer.bundle_id != self._bundle_id:  # of the bundle before
            return
        p_value = answer.adversarial.p_value
        meter.images += 1
        if broken := meter.promise.broken(bool(np.float32(p_value) <= np.float32(meter.alpha))):
            self._broken(answer.network, meter, *broken)
        urn = meter.urns.get(answer.predictions[0].label if meter.by_class else ALL)
        if urn is None:
            return
        meter.capital.bet(urn.p_value(min(max(round(p_value * (urn.n + 1)), 1), urn.n + 1)))
        self._metrics.drift.labels(answer.network).set(meter.capital.log10)
        self._metrics.drift_highest.labels(answer.network).set(meter.capital.highest)
        if not meter.alarmed and meter.capital.highest >= np.log10(CAPITAL):
            meter.alarmed = True
            self._journal.write(
                "drift",
                network=answer.network,
                images=meter.images,
                sentence=f"the martingale has reached {CAPITAL:g}: these are not images like the calibration's",
            )

    def _broken(self, network: str, meter: _Meter, flagged: int, images: int) -> None:
        self._metrics.promises_broken.labels(network).inc()
        self._journal.seldom(
            "promise_broken",
            network,
            SAY_SECONDS,
            network=network,
            flagged=flagged,
            images=images,
            alpha=meter.alpha,
            sentence=f"{flagged} of {images} images are flagged, far more than alpha promises: {QUESTION}",
        )


def _sizes(bundle: Bundle, network: str) -> dict[str, int]:
    """How many calibration scores are behind a p-value, by predicted label; nothing where that cannot be read."""
    labels = bundle.manifest.labels
    if len(set(labels)) < len(labels):
        return {}
    try:
        with detector_file.opened(bundle.file(bundle.manifest.networks[network].detector.file)) as file:
            classes = file.calibration_classes(len(labels))
    except BundleCorrupt:
        return {}
    counts = () if classes is None else np.bincount(classes, minlength=len(labels))
    return {label: int(n) for label, n in zip(labels, counts, strict=False) if n}
