"""Whether this machine kept up with the accelerators that it modelled. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rlserve.pool.pacing.base import Activity, ActivityTimes, PacingAccount

MAX_OVERRUN_SHARE = 0.03
"""Of the modelled time of a role; above it the machine was the bottleneck."""
_TRAINING = (Activity.TRAIN_STEP, Activity.COPY, Activity.RESHARD)
_ROLLOUT = (Activity.ENGINE_STEP, Activity.RECEIVE, Activity.WAKE, Activity.SLEEP)


@dataclass(frozen=True, kw_only=True)
class PacingVerdict:
    """How a paced run came out."""

    activities: Mapping[Activity, ActivityTimes]
    """All workers together."""

    @property
    def overrun_share(self) -> float:
        """How much later than modelled things ended, as a share of the modelled time: of the role where it is more."""
        return max(self._overrun_share(_TRAINING), self._overrun_share(_ROLLOUT))

    @property
    def host_was_bottleneck(self) -> bool:
        """Whether the run says more about this machine than about the modelled accelerators."""
        return self.overrun_share > MAX_OVERRUN_SHARE

    def _overrun_share(self, activities: Iterable[Activity]) -> float:
        times = sum((self.activities.get(activity, ActivityTimes()) for activity in activities), ActivityTimes())
        return times.late_s / times.modelled_s if times.modelled_s else 0.0


class PacingBook:
    """Keeps the newest account of each worker."""

    def __init__(self) -> None:
        self._newest: dict[str, PacingAccount] = {}

    def note(self, slot_id: str, account: PacingAccount) -> None:
        """What the worker of a slot says now."""
        self._newest[slot_id] = account

    def verdict(self) -> PacingVerdict | None:
        """Over all workers that were heard of; None where nothing was paced."""
        accounts = list(self._newest.values())
        if not accounts:
            return None
        activities = {
            activity: sum((account.get(activity, ActivityTimes()) for account in accounts), ActivityTimes())
            for activity in Activity
        }
        return PacingVerdict(activities={activity: times for activity, times in activities.items() if times.number})
