"""Whether the client itself was the limit of what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from rlserve.bench.results.statistics import Distribution

MAX_LAG_SHARE = 0.1
"""Of gaps between tokens, median to median and p99 to p99: a larger lag shows in what is measured."""
MAX_PROCESSOR_SHARE = 0.8
"""Of one processor: an event loop has no more than one, and queues grow before it is used up."""


@dataclass(frozen=True, kw_only=True)
class ClientLoad:
    """What the client took."""

    lag_s: Distribution | None
    """How much later than asked for the event loop woke a task up, beyond the millisecond that timers are rounded to:
    measured times are too long by up to that."""
    processor_share: float
    """Of one processor, over the run."""
    late_s: Distribution | None
    """How much later than due requests were sent; None in a closed loop, where none is due."""

    def warnings(self, itl: Distribution | None) -> list[str]:
        """Why the client may have been the limit; empty where it was not."""
        found = []
        if self.processor_share > MAX_PROCESSOR_SHARE:
            found.append(f"the client used {self.processor_share:.0%} of a processor, which is all that it has")
        if self.lag_s is not None and itl is not None:
            pairs = (("median", self.lag_s.median, itl.median), ("p99", self.lag_s.p99, itl.p99))
            found += [
                f"the client's event loop was {1000 * lag_s:.1f} ms late ({name}), which shows in gaps of "
                f"{1000 * gap_s:.1f} ms between tokens"
                for name, lag_s, gap_s in pairs
                if gap_s > 0 and lag_s > MAX_LAG_SHARE * gap_s
            ]
        return found
