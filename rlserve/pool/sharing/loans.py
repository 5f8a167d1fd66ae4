"""Who has lent slots of one type to whom. Pure bookkeeping."""

from __future__ import annotations


class Loans:
    """Follows from how many slots each run may have, as that changes.

    What a run gives up is lent, first without a borrower; who takes slots borrows what was lent longest. What it gives
    up goes back to those it was lent by first, and what a lender takes is what it has lent. When a run has gone, what
    was lent to it is without a borrower again, and what it had lent belongs to those who have it.
    """

    def __init__(self) -> None:
        self._allowed: dict[str, int] = {}
        self._loans: dict[tuple[str, str | None], int] = {}
        """Slots by lender and borrower, oldest first."""

    def note(self, run_id: str, num_slots: int) -> None:
        """From now on a run may have so many slots."""
        before = self._allowed.get(run_id, 0)
        self._allowed[run_id] = num_slots
        if num_slots < before:
            self._give_up(run_id, before - num_slots)
        else:
            self._take(run_id, num_slots - before)

    def lose(self, run_id: str, num_slots: int) -> None:
        """So many slots of a run have left the cluster."""
        self._allowed[run_id] = max(self._allowed.get(run_id, 0) - num_slots, 0)

    def forget(self, run_id: str) -> None:
        """A run has gone."""
        self._allowed.pop(run_id, None)
        for (lender, borrower), count in list(self._loans.items()):
            if borrower == run_id:
                self._add(lender, None, count)
            if run_id in (lender, borrower):
                del self._loans[lender, borrower]

    def num_lent(self, run_id: str) -> int:
        """Slots that others have from a run."""
        return sum(
            count for (lender, borrower), count in self._loans.items() if lender == run_id and borrower is not None
        )

    def num_borrowed(self, run_id: str) -> int:
        """Slots that a run has from others."""
        return sum(count for (_, borrower), count in self._loans.items() if borrower == run_id)

    def _give_up(self, run_id: str, count: int) -> None:
        for lender, borrower in [pair for pair in self._loans if pair[1] == run_id]:
            count -= (returned := self._end(lender, borrower, count))
            self._add(lender, None, returned)
        self._add(run_id, None, count)

    def _take(self, run_id: str, count: int) -> None:
        for lender, borrower in [pair for pair in self._loans if pair[0] == run_id and pair[1] is None]:
            count -= self._end(lender, borrower, count)
        for lender, _ in [pair for pair in self._loans if pair[0] != run_id and pair[1] is None]:
            count -= (borrowed := self._end(lender, None, count))
            self._add(lender, run_id, borrowed)

    def _end(self, lender: str, borrower: str | None, count: int) -> int:
        ended = min(self._loans[lender, borrower], count)
        self._loans[lender, borrower] -= ended
        if not self._loans[lender, borrower]:
            del self._loans[lender, borrower]
        return ended

    def _add(self, lender: str, borrower: str | None, count: int) -> None:
        if count:
            self._loans[lender, borrower] = self._loans.get((lender, borrower), 0) + count
