"""The slot table: legal moves, one owner at every moment, crashes anywhere."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rlserve.errors import IllegalTransitionError
from rlserve.manager.slot_table import LEGAL_MOVES, OWNER, SlotOwner, SlotState, SlotTable, SlotTransition

TO_ROLLOUT = (SlotState.LEAVING_TRAIN, SlotState.IDLE, SlotState.JOINING_ROLLOUT, SlotState.ROLLOUT)
TO_TRAIN = (SlotState.LEAVING_ROLLOUT, SlotState.IDLE, SlotState.JOINING_TRAIN, SlotState.TRAIN)


def path_to(state: SlotState) -> list[SlotState]:
    """Shortest legal way from the beginning to ``state``."""
    ways: dict[SlotState, list[SlotState]] = {SlotState.STARTING: []}
    queue = deque(ways)
    while state not in ways:
        current = queue.popleft()
        for after in LEGAL_MOVES[current] - ways.keys():
            ways[after] = [*ways[current], after]
            queue.append(after)
    return ways[state]


def table_with(state: SlotState) -> SlotTable:
    """A table with one slot in ``state``."""
    table = SlotTable()
    table.add("s", time_s=0.0)
    for step in path_to(state):
        table.move("s", step, time_s=0.0, reason="test")
    return table


@pytest.mark.parametrize("before", SlotState)
@pytest.mark.parametrize("after", SlotState)
def test_moves_are_exactly_those_of_the_table(before: SlotState, after: SlotState) -> None:
    table = table_with(before)
    if after in LEGAL_MOVES[before]:
        table.move("s", after, time_s=1.0, reason="test")
        assert table.state("s") is after
    else:
        with pytest.raises(IllegalTransitionError, match=rf"slot s cannot move from {before} to {after} \(why\)"):
            table.move("s", after, time_s=1.0, reason="why")
        assert table.state("s") is before
    table.check_integrity()


def test_a_slot_crashes_from_every_state_and_comes_back_as_starting() -> None:
    assert all(SlotState.DEAD in moves for state, moves in LEGAL_MOVES.items() if state is not SlotState.DEAD)
    assert LEGAL_MOVES[SlotState.DEAD] == {SlotState.STARTING}


def test_no_role_is_reached_but_through_idle_and_joining() -> None:
    for role, joining in ((SlotState.TRAIN, SlotState.JOINING_TRAIN), (SlotState.ROLLOUT, SlotState.JOINING_ROLLOUT)):
        assert [state for state, moves in LEGAL_MOVES.items() if role in moves] == [joining]
        assert [state for state, moves in LEGAL_MOVES.items() if joining in moves] == [SlotState.IDLE]


def test_trainer_and_rollout_never_hand_over_but_through_the_pool() -> None:
    for before, moves in LEGAL_MOVES.items():
        for after in moves:
            assert {OWNER[before], OWNER[after]} != {SlotOwner.TRAINER, SlotOwner.ROLLOUT}


def test_a_slot_moves_to_the_other_role_and_back() -> None:
    table = table_with(SlotState.TRAIN)
    owners = []
    for state in (*TO_ROLLOUT, *TO_TRAIN):
        table.move("s", state, time_s=1.0, reason="queue")
        owners.append(table.owner("s"))
    trainer, pool, rollout = SlotOwner.TRAINER, SlotOwner.POOL, SlotOwner.ROLLOUT
    assert owners == [trainer, pool, rollout, rollout, rollout, pool, trainer, trainer]


def test_the_history_tells_what_happened_when_and_why() -> None:
    table = SlotTable()
    table.add("s", time_s=1.0)
    table.move("s", SlotState.DEAD, time_s=2.5, reason="killed")
    assert table.history == (
        SlotTransition(time_s=1.0, slot_id="s", before=None, after=SlotState.STARTING, reason="added"),
        SlotTransition(time_s=2.5, slot_id="s", before=SlotState.STARTING, after=SlotState.DEAD, reason="killed"),
    )


def test_a_slot_is_added_once() -> None:
    table = table_with(SlotState.IDLE)
    with pytest.raises(AssertionError, match="slot s is already there"):
        table.add("s", time_s=0.0)


class SlotMachine(RuleBasedStateMachine):
    """Slots that move, crash and come back in any legal order, and illegal moves in between."""

    @initialize(num_slots=st.integers(1, 4))
    def begin(self, num_slots: int) -> None:
        self.table = SlotTable()
        self.states = {f"s{number}": SlotState.STARTING for number in range(num_slots)}
        for slot_id in self.states:
            self.table.add(slot_id, time_s=0.0)

    @rule(number=st.integers(0, 3), state=st.sampled_from(SlotState))
    def move(self, number: int, state: SlotState) -> None:
        slot_id = f"s{number % len(self.states)}"
        if state in LEGAL_MOVES[self.states[slot_id]]:
            self.table.move(slot_id, state, time_s=0.0, reason="test")
            self.states[slot_id] = state
        else:
            with pytest.raises(IllegalTransitionError):
                self.table.move(slot_id, state, time_s=0.0, reason="test")

    @invariant()
    def every_slot_has_one_state_and_one_owner(self) -> None:
        self.table.check_integrity()
        assert {slot_id: self.table.state(slot_id) for slot_id in self.table.slot_ids} == self.states
        assert sum(self.table.count(state) for state in SlotState) == len(self.states)


SlotMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
test_slot_machine = SlotMachine.TestCase


def test_the_replay_of_the_history_goes_on_where_it_stopped_and_finds_what_came_since() -> None:
    table = SlotTable()
    table.add("a", time_s=0.0)
    table.check_integrity()
    table.move("a", SlotState.IDLE, time_s=1.0, reason="up")
    table.check_integrity()
    table._states["a"] = SlotState.TRAIN
    with pytest.raises(AssertionError, match="history leads to"):
        table.check_integrity()
