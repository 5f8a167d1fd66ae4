"""Configuration of scaling. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from zoneinfo import ZoneInfo

from rlserve.errors import check_fields

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAYS = re.compile(
    rf"(?:{'|'.join(DAYS)})(?:-(?:{'|'.join(DAYS)}))?(?:,(?:{'|'.join(DAYS)})(?:-(?:{'|'.join(DAYS)}))?)*"
)
_HOURS = re.compile(r"(?:[01]\d|2[0-3]):[0-5]\d-(?:(?:[01]\d|2[0-3]):[0-5]\d|24:00)")


@dataclass(frozen=True, kw_only=True)
class TargetsConfig:
    """What each replica should have to do, by metric: above it more replicas are wanted, well below it fewer. A metric
    without a target is not looked at."""

    load: float | None = 0.8
    """Answers under way for each that a replica computes at once (``engine.max_num_sequences``)."""
    num_waiting: float | None = None
    """Requests that wait in a replica's queue."""
    kv_cache_usage: float | None = 0.9
    """Share of the blocks of a replica's KV cache that requests hold."""
    time_to_first_token_s: float | None = None
    """Mean time from the arrival of a request at a replica to its first token."""
    inter_token_latency_s: float | None = None
    """Mean time between two tokens of an answer."""
    busy_share: float | None = None
    """Share of its time that a replica's engine, and so its GPU, computes. One long answer keeps it near 1: of use for
    replicas that stand idle most of the time."""

    def __post_init__(self) -> None:
        shares = ("kv_cache_usage", "busy_share")
        check_fields(
            self,
            {
                **{name: value is None or value > 0 or "must be above 0" for name, value in vars(self).items()},
                **{
                    name: value is None or 0 < value <= 1 or "must be above 0 and at most 1"
                    for name in shares
                    for value in (getattr(self, name),)
                },
            },
        )


@dataclass(frozen=True, kw_only=True)
class ScheduledRangeConfig:
    """Other bounds at certain hours. Of several that hold at a time, the first counts."""

    hours: str
    """From and to, as in ``08:00-18:30``; ``22:00-06:00`` goes on into the next day."""
    days: str = "mon-sun"
    """On which it begins: ``mon-fri``, or ``sat,sun``."""
    min_replicas: int
    """In place of ``scaling.min_replicas``."""
    max_replicas: int | None = None
    """In place of ``scaling.max_replicas``, and never more; None keeps it."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "hours": bool(_HOURS.fullmatch(self.hours)) or "must be like 08:00-18:30",
                "days": bool(_DAYS.fullmatch(self.days)) or "must be like mon-fri or sat,sun",
                "min_replicas": self.min_replicas >= 1 or "must be at least 1",
                "max_replicas": self.max_replicas is None
                or self.max_replicas >= self.min_replicas
                or "must be at least min_replicas",
            },
        )


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """More replicas when there is more to do, fewer when there is less."""

    enabled: bool = False
    """Start and drain replicas by load and hour. ``num_replicas`` is how many there are at first."""
    min_replicas: int = 1
    """Fewest that are wanted."""
    max_replicas: int | None = None
    """Most that are wanted; None: as many as the GPUs that can be seen hold, on a CPU one for each two processors, and
    ``num_replicas`` at least. On a CPU each replica has its share of the processors for this number."""
    interval_s: float = 1.0
    """Between two looks at the load."""
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    combine: Literal["any", "all"] = "any"
    """Where metrics ask for different numbers: ``any`` takes the most, as Kubernetes' autoscaler does; ``all`` the
    fewest, so that there are more replicas only where every metric asks for more."""
    tolerance: float = 0.1
    """Load above what the replicas should have, as a share of it, that is let pass; and the room that there must be
    once there are fewer replicas."""
    max_growth: float = 2.0
    """Times as many replicas at most, after one decision; one more in any case."""
    scale_up_window_s: float = 10.0
    """More replicas follow from the mean load over so long."""
    scale_down_window_s: float = 300.0
    """Fewer replicas follow only where the load was so low for so long."""
    scale_up_cooldown_s: float = 15.0
    """Least time between a change of the number and a rise."""
    scale_down_cooldown_s: float = 60.0
    """Least time between a change of the number and a fall."""
    drain_timeout_s: float = 120.0
    """For the answers of a replica that is not wanted any more; those that have not ended then go on with another."""
    schedule: tuple[ScheduledRangeConfig, ...] = ()
    """Bounds by hour and day of the week."""
    time_zone: str = "UTC"
    """Whose hours those are, as in ``Europe/Berlin``."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "min_replicas": self.min_replicas >= 1 or "must be at least 1",
                "max_replicas": self.max_replicas is None
                or self.max_replicas >= self.min_replicas
                or "must be at least min_replicas",
                "interval_s": self.interval_s > 0 or "must be above 0",
                "tolerance": 0 <= self.tolerance < 1 or "must be at least 0 and below 1",
                "max_growth": self.max_growth > 1 or "must be above 1",
                "scale_up_window_s": self.scale_up_window_s >= 0 or "must be at least 0",
                "scale_down_window_s": self.scale_down_window_s >= 0 or "must be at least 0",
                "scale_up_cooldown_s": self.scale_up_cooldown_s >= 0 or "must be at least 0",
                "scale_down_cooldown_s": self.scale_down_cooldown_s >= 0 or "must be at least 0",
                "drain_timeout_s": self.drain_timeout_s >= 0 or "must be at least 0",
                "time_zone": _is_time_zone(self.time_zone) or "must be a time zone such as UTC or Europe/Berlin",
            },
        )


def _is_time_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        return False
    return True
