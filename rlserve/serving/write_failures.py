"""What cannot be written down, on a full disk say: told once, counted, and tried again by whoever writes."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)


class WriteFailures(Collector):
    """Of all records of a server. Any thread may tell of them."""

    def __init__(self) -> None:
        self._num_failures = {"usage": 0, "audit": 0}
        self._failing: set[str] = set()

    def failed(self, record: str, error: OSError) -> None:
        """A record could not be written."""
        self._num_failures[record] += 1
        if record not in self._failing:
            self._failing.add(record)
            logger.error("%s cannot be written, and is tried again: %s", record, error.strerror or error)

    def succeeded(self, record: str) -> None:
        """It could."""
        if record in self._failing:
            self._failing.discard(record)
            logger.warning("%s can be written again", record)

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        failures = CounterMetricFamily(
            "rlserve:record_write_failures", "Times that a record could not be written, by record", labels=["record"]
        )
        for record, number in self._num_failures.items():
            failures.add_metric([record], number)
        yield failures
