"""What a shard counts."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from tidemill.telemetry import attributes


class Metrics:
    """The Prometheus metrics of one shard."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rounds = Counter(attributes.METRIC_ROUNDS, "Rounds applied.", registry=registry)
        self.round_seconds = Histogram(
            attributes.METRIC_ROUND_SECONDS, "Time to reduce a round and run the optimizer.", registry=registry
        )
        self.pushes = Counter(
            attributes.METRIC_PUSHES,
            "Pushes by outcome: applied, duplicate, dropped or refused.",
            ["outcome"],
            registry=registry,
        )
        self.pushed_bytes = Counter(attributes.METRIC_PUSHED_BYTES, "Bytes of gradients received.", registry=registry)
        self.pulled_bytes = Counter(attributes.METRIC_PULLED_BYTES, "Bytes of parameters sent.", registry=registry)
        self.shared_bytes = Counter(
            attributes.METRIC_SHARED_BYTES, "Bytes that were left in shared memory.", ["direction"], registry=registry
        )

    def round_closed(self, seconds: float) -> None:
        """Count a round."""
        self.rounds.inc()
        self.round_seconds.observe(seconds)
