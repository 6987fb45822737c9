"""What the service counts."""

from prometheus_client import CollectorRegistry, Counter

from tidemill.telemetry import attributes


class Metrics:
    """Counters of bytes and blobs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.bytes_in = Counter(attributes.METRIC_BLOB_BYTES_IN, "Bytes of blobs received.", registry=registry)
        self.bytes_out = Counter(attributes.METRIC_BLOB_BYTES_OUT, "Bytes of blobs sent.", registry=registry)
        self.deduplicated = Counter(
            attributes.METRIC_BLOBS_DEDUPLICATED, "Uploads of blobs that were there already.", registry=registry
        )
        self.damaged = Counter(
            attributes.METRIC_BLOBS_DAMAGED, "Reads of blobs whose bytes did not have their digest.", registry=registry
        )
