"""Numbers for Prometheus: https://prometheus.io/docs/instrumenting/exposition_formats."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from dl_techniques.serving.engine import COUNTS, ServingEngine

# What the model itself has counted.
_OF_MODEL = ("prefill_seconds", "decode_seconds", "compilations")
_COUNTS = (*COUNTS, *_OF_MODEL, "vision_cache_hits", "vision_cache_misses")
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Monitoring:
    """What a server counts.

    Args:
        engine: Whose counts are shown too.
    """

    def __init__(self, engine: ServingEngine):
        self._engine = engine
        self._registry = CollectorRegistry()
        self._registry.register(self)
        options = {"namespace": "dl_techniques", "registry": self._registry}
        self._requests = Counter("http_requests", "HTTP requests.", ("path", "status"), **options)
        self._seconds = Histogram(
            "http_request_seconds",
            "Time to the end of an answer.",
            ("path",),
            buckets=_SECONDS,
            **options,
        )

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Count an HTTP request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def collect(self):
        """Yield what the engine has counted; the registry calls this."""
        stats = self._engine.stats()
        model = self._engine.model
        stats |= {f"vision_cache_{name}": n for name, n in model.vision_cache.stats().items()}
        stats |= {name: model.generation_stats()[name] for name in _OF_MODEL}
        for name, value in stats.items():
            kind = CounterMetricFamily if name in _COUNTS else GaugeMetricFamily
            yield kind(f"dl_techniques_{name}", name.replace("_", " "), value=value)

    def text(self) -> bytes:
        """Return all numbers."""
        return generate_latest(self._registry)
