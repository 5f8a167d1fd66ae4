"""Azure: a spot machine finds its end among the scheduled events, 30 seconds before or more.

The events are those of all machines of a scale set, and name whom they are for.
https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

from rlserve.pool.notices.probes.base import ask

ADDRESS = "http://169.254.169.254"
_HEADERS = {"Metadata": "true"}
_ENDING = ("Preempt", "Terminate")


def probe(address: str = ADDRESS, *, now: Callable[[], float] = time.time) -> float | None:
    """Seconds until the machine is evicted or deleted; 0 where that has begun."""
    found = ask(f"{address}/metadata/scheduledevents?api-version=2020-07-01", _HEADERS)
    events = [event for event in json.loads(found or '{"Events": []}')["Events"] if event["EventType"] in _ENDING]
    if not events:
        return None
    name = ask(f"{address}/metadata/instance/compute/name?api-version=2021-02-01&format=text", _HEADERS)
    times = [_seconds_until(event["NotBefore"], now()) for event in events if name in event["Resources"]]
    return min(times, default=None)


def _seconds_until(when: str, now_s: float) -> float:
    """From ``Mon, 19 Sep 2016 18:29:47 GMT``; empty once the event has begun."""
    return max(parsedate_to_datetime(when).timestamp() - now_s, 0.0) if when else 0.0
