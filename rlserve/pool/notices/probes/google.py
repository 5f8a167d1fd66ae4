"""Google Cloud: a spot machine is told that it is preempted, 30 seconds before it is stopped.

https://cloud.google.com/compute/docs/instances/spot
"""

from __future__ import annotations

from rlserve.pool.notices.probes.base import ask

ADDRESS = "http://metadata.google.internal"
GRACE_S = 30.0


def probe(address: str = ADDRESS) -> float | None:
    """Seconds until the machine is stopped."""
    found = ask(f"{address}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return GRACE_S if found is not None and found.strip() == "TRUE" else None
