"""The table of worker states: every move that it allows, and none that it does not."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from rlserve.errors import IllegalTransitionError
from rlserve.pool.worker_table import LEGAL_MOVES, WorkerState, WorkerTable


class Workers(RuleBasedStateMachine):
    """Asks for any move of any worker, and keeps what each worker did."""

    slots = Bundle("slots")

    def __init__(self) -> None:
        super().__init__()
        self.table = WorkerTable()
        self.histories: dict[str, list[WorkerState]] = {}

    @rule(target=slots, number=st.integers(0, 3))
    def add(self, number: int) -> str:
        slot_id = f"cpu/{number}"
        if slot_id not in self.histories:
            self.table.add(slot_id)
            self.histories[slot_id] = [WorkerState.RESTARTING]
        return slot_id

    @rule(slot_id=slots, state=st.sampled_from(WorkerState))
    def move(self, slot_id: str, state: WorkerState) -> None:
        before = self.table.state(slot_id)
        try:
            self.table.move(slot_id, state)
        except IllegalTransitionError:
            assert self.table.state(slot_id) is before
        else:
            assert state in LEGAL_MOVES[before]
            self.histories[slot_id].append(state)

    @invariant()
    def a_new_process_is_relied_on_only_once_it_has_taken_the_state(self) -> None:
        """Before every healthy, suspicions left out, the worker was stale; and it was not dead since."""
        for slot_id, history in self.histories.items():
            assert self.table.state(slot_id) is history[-1]
            known = [state for state in history if state is not WorkerState.SUSPECT]
            steps = list(pairwise(known))
            assert all(
                before in (WorkerState.STALE, WorkerState.HEALTHY)
                for before, after in steps
                if after is WorkerState.HEALTHY
            )

    @invariant()
    def what_is_retired_stays_so(self) -> None:
        for history in self.histories.values():
            assert WorkerState.RETIRED not in history[:-1]


TestWorkers = Workers.TestCase


def table_in(*states: WorkerState) -> WorkerTable:
    table = WorkerTable()
    table.add("a")
    for state in states:
        table.move("a", state)
    return table


def test_a_suspect_that_answers_is_what_it_was_and_no_more() -> None:
    table = table_in(WorkerState.STALE, WorkerState.SUSPECT)
    with pytest.raises(IllegalTransitionError, match="was stale"):
        table.move("a", WorkerState.HEALTHY)
    assert table.state("a") is WorkerState.SUSPECT
    table.move("a", WorkerState.STALE)
    table.move("a", WorkerState.HEALTHY)


def test_a_restarted_worker_must_take_the_state_before_it_is_relied_on() -> None:
    table = table_in(WorkerState.STALE, WorkerState.HEALTHY, WorkerState.DEAD, WorkerState.RESTARTING)
    with pytest.raises(IllegalTransitionError, match="from restarting to healthy"):
        table.move("a", WorkerState.HEALTHY)


def test_every_state_but_the_last_can_be_left_and_be_come_to() -> None:
    reached = {state for moves in LEGAL_MOVES.values() for state in moves}
    assert reached == set(WorkerState)
    assert [state for state, moves in LEGAL_MOVES.items() if not moves] == [WorkerState.RETIRED]
