"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_DECISION_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1)
_SHORT_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_LONG_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """One router's. Seconds are those of the clock."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        prefix = "splitgym_router"

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{prefix}_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"{prefix}_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{prefix}_{name}", text, buckets=buckets, registry=registry)

        self.requests = counter("requests", "Requests by the status code they ended with (499: client gone)", "status")
        self.retries = counter("retries", "Attempts given up, by what went wrong", "reason")
        self.broken = counter("broken_streams", "Streams that ended with an error event")
        self.fallbacks = counter("fallbacks", "Decisions the fallback made, by what the policy did", "reason")
        self.role_changes = counter("role_changes", "Role changes by what became of them", "engine", "role", "result")
        self.log_errors = counter("decision_log_errors", "Rows of the decision log that could not be written")
        self.decision_s = histogram("decision_seconds", "Time of a decision", _DECISION_S)
        self.ttft_s = histogram("ttft_seconds", "Time to first token", _LONG_S)
        self.tbt_s = histogram("tbt_seconds", "Time between tokens", _SHORT_S)
        self.e2e_s = histogram("e2e_seconds", "Time of a request", _LONG_S)
        self.in_flight = gauge("in_flight", "Bookings that name an engine", "engine")
        self.engine_up = gauge("engine_up", "Whether an engine is sent anything", "engine")
        self.scrape_age_s = gauge("scrape_age_seconds", "How old an engine's metrics are", "engine")
        self.running = gauge("requests_running", "Requests inside the router")

    def page(self) -> bytes:
        """The text that is scraped."""
        return generate_latest(self._registry)
