"""How many prompt groups a run admits: as the ledger has room, and towards the end no more than it still needs.

Legend: R groups that the steps to come still lack, F groups on their way to be scored, k the share of the scored groups
that are kept.

A filter (groups of equal rewards, failed rewards) drops groups, so R of them take R / k on the average. Were each
replaced only once it is dropped, the end of a run would be a chain of answers one after the other, with most replicas
idle. Therefore groups are admitted while the number that F will leave may well be short of R:

    k F - z sqrt(F k (1 - k))  <  R            (mean and deviation of the binomial distribution)

What is on its way when the last step is done is surplus. With k = 1 there is none: F = R.
"""

from __future__ import annotations

import math
from collections import deque

from rlserve.rollout.ledger import GroupState, Ledger

NOT_NEEDED = "not_needed"
"""Why the surplus is dropped."""
_WINDOW = 64
"""Groups scored last, from which the share that is kept is told."""
_MARGIN = 1.0
"""z, standard deviations."""


class PromptAdmission:
    """Says how many groups may be admitted now."""

    def __init__(self, ledger: Ledger, *, num_groups: int | None) -> None:
        """``num_groups`` are trained in the whole run; None: it has no last step."""
        self._ledger = ledger
        self._num_groups = num_groups
        self._kept: deque[bool] = deque(maxlen=_WINDOW)

    def note(self, *, kept: bool) -> None:
        """A group was scored, and may be trained on or not."""
        self._kept.append(kept)

    @property
    def kept_share(self) -> float:
        """Of the groups scored last; with one kept group more than were seen, so that it is never 0."""
        return (sum(self._kept) + 1) / (len(self._kept) + 1)

    @property
    def room(self) -> int:
        """Groups to admit now."""
        ledger, num_groups = self._ledger, self._num_groups
        if num_groups is None or num_groups - ledger.num_trained >= ledger.max_live:
            return ledger.room
        num_running = ledger.count(GroupState.PENDING) + ledger.count(GroupState.RUNNING)
        num_lacking = num_groups - ledger.num_trained - (ledger.num_live - num_running)
        return max(0, min(ledger.room, num_to_run(num_lacking, self.kept_share) - num_running))


def num_to_run(num_lacking: int, kept_share: float) -> int:
    """The least F that leaves ``num_lacking`` groups even if a standard deviation fewer than ``kept_share`` of them are
    kept: a quadratic in the square root of F."""
    if num_lacking <= 0:
        return 0
    deviation = _MARGIN * math.sqrt(kept_share * (1 - kept_share))
    root = (deviation + math.sqrt(deviation**2 + 4 * kept_share * num_lacking)) / (2 * kept_share)
    return math.ceil(root**2 - 1e-9)
