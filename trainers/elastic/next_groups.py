"""A group that is formed ahead, in a thread of its own, while this rank still steps in another."""

from __future__ import annotations

import threading

import torch

from rlserve.errors import WorkerFailedError
from rlserve.trainers.base import Membership
from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.distributed import join_group


class NextGroups:
    """Forms groups, and keeps the newest that was formed ahead."""

    def __init__(self, *, timeout_s: float, device: torch.device) -> None:
        """``timeout_s`` is how long the members of a group wait for each other."""
        self._timeout_s = timeout_s
        self._device = device
        self._lock = threading.Lock()
        self._generation = 0
        """Of the group that was taken last: whatever is formed of an older one comes too late."""
        self._met: tuple[int, Group] | None = None
        self._broken_off = 0
        """No group up to this generation comes about."""

    def meet(self, membership: Membership) -> None:
        """Form the group of a place, twice, so that state can travel beside a step, and keep it until it is taken.

        Raises:
            DeadlineExceededError: not all members came in time.
            WorkerFailedError: a member came and was lost again, or the group was broken off.
        """
        group = self._join(membership)
        try:
            group.connect_again()
        except BaseException:
            group.close()
            raise
        with self._lock:
            is_late = membership.generation <= self._generation
            before, self._met = self._met, self._met if is_late else (membership.generation, group)
        if is_late:
            group.close()
        elif before is not None:
            before[1].close()

    def take(self, membership: Membership) -> Group:
        """The group of a place, formed now if it was not before.

        Raises:
            DeadlineExceededError: as from :meth:`meet`.
            WorkerFailedError: likewise.
        """
        with self._lock:
            self._generation = membership.generation
            is_due = self._met is not None and self._met[0] <= membership.generation
            met, self._met = (self._met, None) if is_due else (None, self._met)
        if met is not None:
            generation, group = met
            if generation == membership.generation:
                return group
            group.close()
        return self._join(membership)

    def break_off(self, generation: int) -> None:
        """Whoever waits for the members of groups up to a generation waits no longer: one of them is lost. Called by
        another thread."""
        self._broken_off = max(self._broken_off, generation)

    def drop(self) -> None:
        """Close what was formed ahead: this rank joins none of it."""
        with self._lock:
            met, self._met = self._met, None
        if met is not None:
            met[1].close()

    def _join(self, membership: Membership) -> Group:
        def check() -> None:
            if membership.generation <= self._broken_off:
                raise WorkerFailedError(f"trainer group {membership.generation}: a member was lost while it formed")

        return join_group(membership, timeout_s=self._timeout_s, device=self._device, check=check)
