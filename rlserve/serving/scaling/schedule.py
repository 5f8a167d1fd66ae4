"""Bounds of the number of replicas by hour and day of the week. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from rlserve.serving.scaling.config import DAYS, ScalingConfig, ScheduledRangeConfig


def bounds_at(config: ScalingConfig, unix_s: float, most: int) -> tuple[int, int]:
    """Fewest and most replicas at a time; ``most`` is what there is room for, and both keep to it."""
    now = datetime.fromtimestamp(unix_s, ZoneInfo(config.time_zone))
    ceiling = most if config.max_replicas is None else min(config.max_replicas, most)
    found = next((window for window in config.schedule if _holds(window, now)), None)
    if found is None:
        return min(config.min_replicas, ceiling), ceiling
    if found.max_replicas is not None:
        ceiling = min(ceiling, found.max_replicas)
    return min(found.min_replicas, ceiling), ceiling


def _holds(window: ScheduledRangeConfig, now: datetime) -> bool:
    first, last = (_minutes(word) for word in window.hours.split("-"))
    days, today, minute = _days(window.days), now.weekday(), 60 * now.hour + now.minute
    if first < last:
        return today in days and first <= minute < last
    return (today in days and minute >= first) or ((today - 1) % 7 in days and minute < last)


def _minutes(word: str) -> int:
    """``08:30`` → 510."""
    hours, minutes = word.split(":")
    return 60 * int(hours) + int(minutes)


def _days(words: str) -> Sequence[int]:
    """``fri-mon,wed`` → 4, 5, 6, 0, 2."""
    found: list[int] = []
    for word in words.split(","):
        first, last = DAYS.index(word[:3]), DAYS.index(word[-3:])
        found += [(first + number) % 7 for number in range((last - first) % 7 + 1)]
    return found
