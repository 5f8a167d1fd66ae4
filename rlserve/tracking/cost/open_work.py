"""Time that went into tokens, until it is known what becomes of them.

::

    a replica tells time and tokens ──▶ open ──▶ trained on      ─▶ rollout
                                          │   ├▶ lost            ─▶ lost
                                          │   ├▶ dropped         ─▶ dropped
                                          │   ├▶ held-out answer ─▶ evaluation
                                          │   ├▶ for a client    ─▶ clients
                                          └───┴▶ still there when the run ends ─▶ surplus

Tokens are alike here: those whose fate is decided take along the mean time of all that are open, of each type of slot
in the same part. A fate may be decided before the replica has told of the tokens, since it tells every few seconds; it
is then owed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

from rlserve.tracking.cost.accounts import Account
from rlserve.tracking.cost.uses import Use


@dataclass(frozen=True)
class Fate:
    """What became of some time, and of the step that is credited with it, if one is."""

    account: Account
    use: Use
    duration_ns: int
    step: int | None


@dataclass(frozen=True)
class _Owed:
    use: Use
    num_tokens: int
    step: int | None


class OpenWork:
    """Takes time in, and gives it back with its use."""

    def __init__(self) -> None:
        self.time_ns: Counter[Account] = Counter()
        self.num_tokens = 0
        self._owed: deque[_Owed] = deque()

    def add(self, account: Account, duration_ns: int, num_tokens: int) -> Iterator[Fate]:
        """Tokens were made; gives back what was owed."""
        self.time_ns[account] += duration_ns
        self.num_tokens += num_tokens
        while self._owed and self.num_tokens:
            owed = self._owed.popleft()
            yield from self.decide(owed.use, owed.num_tokens, owed.step)

    def decide(self, use: Use, num_tokens: int, step: int | None = None) -> Iterator[Fate]:
        """What became of so many tokens."""
        taken = min(num_tokens, self.num_tokens)
        if taken < num_tokens:
            self._owed.append(_Owed(use, num_tokens - taken, step))
        if not taken:
            return
        for account, duration_ns in self.time_ns.items():
            part_ns = duration_ns * taken // self.num_tokens
            self.time_ns[account] -= part_ns
            yield Fate(account, use, part_ns, step)
        self.num_tokens -= taken

    def decide_rest(self, use: Use) -> Iterator[Fate]:
        """What became of all that is open; nothing is owed any more."""
        for account, duration_ns in self.time_ns.items():
            yield Fate(account, use, duration_ns, None)
        self.time_ns.clear()
        self.num_tokens = 0
        self._owed.clear()
