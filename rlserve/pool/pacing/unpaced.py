"""The pace of a slot that is what it is: everything takes what it takes."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

from rlserve.pool.pacing.base import Pace, PacingAccount


class Unpaced(Pace):
    """Holds nothing up."""

    def now_s(self) -> float:
        return time.perf_counter()

    def engine_steps(self) -> None:
        return None

    def account(self) -> PacingAccount | None:
        return None

    def waking(self) -> AbstractContextManager[None]:
        return nullcontext()

    def freeing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def receiving(self) -> AbstractContextManager[None]:
        return nullcontext()

    def copying(self) -> AbstractContextManager[None]:
        return nullcontext()

    def stepping(self, *, num_ranks: int, num_tokens: int) -> AbstractContextManager[None]:
        return nullcontext()

    def resharding(self, *, num_ranks: int, num_before: int) -> AbstractContextManager[None]:
        return nullcontext()
