"""The sample buffer: finished groups that wait for the trainer, and when a batch may be taken of them.

Legend: B prompt groups of a batch, s ``max_staleness``, v the version of the policy that the batch will train.

Every live group has a deadline: the last version that may train it, its oldest token's version + s. For a group still
in flight the ledger's bound stands in for its oldest token: its version at admission, then that of the replica which
started it. So a deadline only moves away from the present while a group is on its way.

A batch takes the finished groups with the earliest deadlines. It must wait if it would leave more behind than later
batches can take in time, that is unless, for every k in 0..s,

    number of live groups with deadline <= v + k, less those in the batch  <=  k * B.

Then no group is ever late: k = 0 says that whatever is due at v is in the batch. And some batch can always meet the
condition once enough groups are finished, because before it is taken at most (k + 1) * B groups are due by v + k, for
every k. That holds at first and stays so: what the batch before left behind met the condition at v - 1, which is this
bound at v; and groups admitted since then are due at v - 1 + s at the earliest, where the ledger's limit of (s + 1) * B
live groups, B of which were in that batch, is all that is needed.

Finished work is never dropped for its age, only as surplus after the last step, and the trainer waits for a slow group
only when no later batches could still take all that would then be due.
"""

from __future__ import annotations

from collections import Counter
from typing import Generic, Protocol, TypeVar

from rlserve.rollout.ledger import GroupState, Ledger


class _Identified(Protocol):
    """What the ledger calls a group."""

    @property
    def id(self) -> str: ...
    @property
    def position(self) -> int: ...


class Finished(Protocol):
    """A finished group, as far as the buffer looks at it: :class:`rlserve.rollout.groups.ScoredGroup` is one."""

    @property
    def group(self) -> _Identified: ...
    @property
    def oldest_version(self) -> int: ...


FinishedT = TypeVar("FinishedT", bound=Finished)


class SampleBuffer(Generic[FinishedT]):
    """Holds buffered groups, and lends the trainer a batch at a time."""

    def __init__(self, ledger: Ledger, *, prompts_per_step: int) -> None:
        self._ledger = ledger
        self._prompts_per_step = prompts_per_step
        self._groups: dict[str, FinishedT] = {}
        self._num_finished: Counter[int] = Counter()
        """By the version of their oldest token; those of the step under way are counted."""
        self._taken: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Groups that wait; those of the step under way are not counted."""
        return len(self._groups) - len(self._taken)

    @property
    def num_batches(self) -> int:
        """Whole batches among them."""
        return len(self) // self._prompts_per_step

    def put(self, scored: FinishedT, *, time_s: float) -> None:
        """Add a scored group (ledger: scored → buffered)."""
        self._ledger.buffer(scored.group.id, time_s=time_s)
        self._groups[scored.group.id] = scored
        self._num_finished[scored.oldest_version] += 1

    def take(self, current_version: int) -> list[FinishedT] | None:
        """The batch that trains the policy of ``current_version``, or None where it must wait.

        Exactly ``prompts_per_step`` groups, earliest deadline first. They stay buffered until ``commit``.
        """
        assert not self._taken, "the batch before was not committed"
        if len(self._groups) < self._prompts_per_step or self._must_wait(current_version):
            return None
        by_deadline = sorted(self._groups.values(), key=lambda scored: (scored.oldest_version, scored.group.position))
        batch = by_deadline[: self._prompts_per_step]
        self._taken = tuple(scored.group.id for scored in batch)
        return batch

    def _must_wait(self, current_version: int) -> bool:
        """Whether a batch taken now would leave more behind than later ones can take in time. It is asked with every
        group that is finished while the trainer waits, so it counts groups by their deadline, and sorts none."""
        first = current_version - self._ledger.max_staleness
        num_finished = num_in_flight = 0
        for num_later in range(self._ledger.max_staleness + 1):
            num_finished += self._num_finished[first + num_later]
            num_in_flight += self._ledger.num_in_flight(first + num_later)
            num_due = num_in_flight + max(0, num_finished - self._prompts_per_step)
            if num_due > num_later * self._prompts_per_step:
                return True
        return False

    def commit(self, *, time_s: float) -> None:
        """The step on the batch taken last is done (ledger: buffered → trained)."""
        assert self._taken, "no batch was taken"
        for group_id in self._taken:
            self._ledger.train(group_id, time_s=time_s)
            self._remove(group_id)
        self._taken = ()

    def drop_all(self, *, reason: str, time_s: float) -> None:
        """After the last step: what was finished and is not needed goes (ledger: buffered → dropped)."""
        assert not self._taken, "a step is under way"
        for group_id in self._groups:
            self._ledger.drop(group_id, reason=reason, time_s=time_s)
        self._groups.clear()
        self._num_finished.clear()

    def check_integrity(self) -> None:
        """Assert that the buffer holds exactly the groups that the ledger calls buffered."""
        buffered = {record.id for record in self._ledger.live() if record.state is GroupState.BUFFERED}
        assert buffered == set(self._groups), f"buffer and ledger differ in {sorted(buffered ^ set(self._groups))}"
        assert set(self._taken) <= buffered
        assert self._num_finished == Counter(scored.oldest_version for scored in self._groups.values())

    def _remove(self, group_id: str) -> None:
        oldest_version = self._groups.pop(group_id).oldest_version
        self._num_finished[oldest_version] -= 1
        if not self._num_finished[oldest_version]:
            del self._num_finished[oldest_version]
