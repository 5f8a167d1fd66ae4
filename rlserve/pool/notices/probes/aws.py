"""AWS: a spot instance is told its time two minutes before, by the instance metadata service, version 2.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime

from rlserve.pool.notices.probes.base import ask

ADDRESS = "http://169.254.169.254"


def probe(address: str = ADDRESS, *, now: Callable[[], float] = time.time) -> float | None:
    """Seconds until the instance is stopped, hibernated or terminated."""
    token = ask(f"{address}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    headers = {"X-aws-ec2-metadata-token": token or ""}
    found = ask(f"{address}/latest/meta-data/spot/instance-action", headers)
    if found is None:
        return None
    when = datetime.fromisoformat(json.loads(found)["time"].replace("Z", "+00:00"))
    return max(when.timestamp() - now(), 0.0)
