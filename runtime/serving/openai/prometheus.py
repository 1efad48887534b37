"""Metrics as Prometheus reads them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from quasar.runtime.serving.metrics import ACCEPTED_PER_POSITION, COUNTERS, GAUGES, HISTOGRAMS, Tally

LABEL = "model_name"

disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """Takes what a worker counts, and writes the page.

    Args:
        model: the name that the model is served under.
    """

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._model = model
        labels, registry = (LABEL,), self._registry
        self._counters = {spec.name: Counter(spec.name, spec.meaning, labels, registry=registry) for spec in COUNTERS}
        self._gauges = {spec.name: Gauge(spec.name, spec.meaning, labels, registry=registry) for spec in GAUGES}
        self._histograms = {
            spec.name: Histogram(spec.name, spec.meaning, labels, registry=registry, buckets=spec.buckets) for spec in HISTOGRAMS
        }
        by_position = ACCEPTED_PER_POSITION
        self._positions = Counter(by_position.name, by_position.meaning, (LABEL, by_position.label), registry=registry)
        self.report(Tally())

    def report(self, tally: Tally) -> None:
        """See `Reporter.report`."""
        for name, count in tally.counts.items():
            self._counters[name].labels(self._model).inc(count)
        for name, value in tally.gauges.items():
            self._gauges[name].labels(self._model).set(value)
        for name, values in tally.observations.items():
            histogram = self._histograms[name].labels(self._model)
            for value in values:
                histogram.observe(value)
        for position, count in enumerate(tally.positions):
            self._positions.labels(self._model, str(position)).inc(count)

    def page(self) -> bytes:
        """In the text format."""
        return generate_latest(self._registry)
