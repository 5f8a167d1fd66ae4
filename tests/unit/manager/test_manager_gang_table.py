"""The gang table: legal moves, one owner at every moment, crashes anywhere."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rlserve.errors import IllegalTransitionError
from rlserve.manager.gang_table import LEGAL_MOVES, OWNER, SERVING, GangOwner, GangState, GangTable, GangTransition

TO_ROLLOUT = (GangState.LEAVING_TRAIN, GangState.IDLE, GangState.JOINING_ROLLOUT, GangState.ROLLOUT)
TO_TRAIN = (
    GangState.CALLED_TO_TRAIN,
    GangState.LEAVING_ROLLOUT,
    GangState.IDLE,
    GangState.JOINING_TRAIN,
    GangState.TRAIN,
)


def path_to(state: GangState) -> list[GangState]:
    """Shortest legal way from the beginning to ``state``."""
    ways: dict[GangState, list[GangState]] = {GangState.STARTING: []}
    queue = deque(ways)
    while state not in ways:
        current = queue.popleft()
        for after in LEGAL_MOVES[current] - ways.keys():
            ways[after] = [*ways[current], after]
            queue.append(after)
    return ways[state]


def table_with(state: GangState) -> GangTable:
    """A table with one gang in ``state``."""
    table = GangTable()
    table.add("s", time_s=0.0)
    for step in path_to(state):
        table.move("s", step, time_s=0.0, reason="test")
    return table


@pytest.mark.parametrize("before", GangState)
@pytest.mark.parametrize("after", GangState)
def test_moves_are_exactly_those_of_the_table(before: GangState, after: GangState) -> None:
    table = table_with(before)
    if after in LEGAL_MOVES[before]:
        table.move("s", after, time_s=1.0, reason="test")
        assert table.state("s") is after
    else:
        with pytest.raises(IllegalTransitionError, match=rf"s cannot move from {before} to {after} \(why\)"):
            table.move("s", after, time_s=1.0, reason="why")
        assert table.state("s") is before
    table.check_integrity()


def test_a_gang_crashes_from_every_state_and_comes_back_as_starting() -> None:
    ends = (GangState.DEAD, GangState.GONE)
    assert all(GangState.DEAD in moves for state, moves in LEGAL_MOVES.items() if state not in ends)
    assert LEGAL_MOVES[GangState.DEAD] == {GangState.STARTING, GangState.GONE}


def test_a_gang_is_gone_for_good_and_only_when_nobody_has_it() -> None:
    assert not LEGAL_MOVES[GangState.GONE]
    before = [state for state, moves in LEGAL_MOVES.items() if GangState.GONE in moves]
    assert {OWNER[state] for state in before} == {GangOwner.POOL, GangOwner.NOBODY}
    assert OWNER[GangState.GONE] is GangOwner.NOBODY


def test_no_role_is_reached_but_through_idle_and_joining_or_by_not_leaving_it() -> None:
    ways = {
        GangState.TRAIN: (GangState.JOINING_TRAIN, GangState.LEAVING_TRAIN),
        GangState.ROLLOUT: (GangState.JOINING_ROLLOUT, GangState.CALLED_TO_TRAIN),
    }
    for role, (joining, keeping) in ways.items():
        assert {state for state, moves in LEGAL_MOVES.items() if role in moves} == {joining, keeping}
        assert [state for state, moves in LEGAL_MOVES.items() if joining in moves] == [GangState.IDLE]


def test_trainer_and_rollout_never_hand_over_but_through_the_pool() -> None:
    for before, moves in LEGAL_MOVES.items():
        for after in moves:
            assert {OWNER[before], OWNER[after]} != {GangOwner.TRAINER, GangOwner.ROLLOUT}


def test_a_gang_moves_to_the_other_role_and_back() -> None:
    table = table_with(GangState.TRAIN)
    owners = []
    for state in (*TO_ROLLOUT, *TO_TRAIN):
        table.move("s", state, time_s=1.0, reason="queue")
        owners.append(table.owner("s"))
    trainer, pool, rollout = GangOwner.TRAINER, GangOwner.POOL, GangOwner.ROLLOUT
    assert owners == [trainer, pool, rollout, rollout, rollout, rollout, pool, trainer, trainer]


def test_a_gang_that_is_called_to_training_rolls_out_and_may_be_called_off_at_any_time() -> None:
    assert OWNER[GangState.CALLED_TO_TRAIN] is OWNER[GangState.ROLLOUT]
    assert LEGAL_MOVES[GangState.CALLED_TO_TRAIN] == LEGAL_MOVES[GangState.ROLLOUT] - {GangState.CALLED_TO_TRAIN} | {
        GangState.ROLLOUT
    }
    assert GangState.CALLED_TO_TRAIN in SERVING


def test_when_a_gang_last_came_to_a_state_is_known() -> None:
    table = table_with(GangState.ROLLOUT)
    table.add("other", time_s=0.0)
    for time_s, state in enumerate((GangState.CALLED_TO_TRAIN, GangState.ROLLOUT, GangState.CALLED_TO_TRAIN), start=1):
        table.move("s", state, time_s=float(time_s), reason="test")
    table.move("other", GangState.IDLE, time_s=9.0, reason="test")
    assert table.entered_s("s", GangState.CALLED_TO_TRAIN) == 3.0
    assert table.entered_s("s", GangState.ROLLOUT, GangState.IDLE) == 2.0
    assert table.count(*SERVING) == 1


def test_the_history_tells_what_happened_when_and_why() -> None:
    table = GangTable()
    table.add("s", time_s=1.0)
    table.move("s", GangState.DEAD, time_s=2.5, reason="killed")
    assert table.history == (
        GangTransition(time_s=1.0, gang_id="s", before=None, after=GangState.STARTING, reason="added"),
        GangTransition(time_s=2.5, gang_id="s", before=GangState.STARTING, after=GangState.DEAD, reason="killed"),
    )


def test_a_gang_is_added_once() -> None:
    table = table_with(GangState.IDLE)
    with pytest.raises(AssertionError, match="gang s is already there"):
        table.add("s", time_s=0.0)


class GangMachine(RuleBasedStateMachine):
    """Gangs that move, crash and come back in any legal order, and illegal moves in between."""

    @initialize(num_gangs=st.integers(1, 4), num_slots=st.integers(1, 3))
    def begin(self, num_gangs: int, num_slots: int) -> None:
        self.num_slots = num_slots
        self.table = GangTable()
        self.states = {f"s{number}": GangState.STARTING for number in range(num_gangs)}
        for gang_id in self.states:
            self.table.add(gang_id, num_slots=self.num_slots, time_s=0.0)

    @rule(number=st.integers(0, 3), state=st.sampled_from(GangState))
    def move(self, number: int, state: GangState) -> None:
        gang_id = f"s{number % len(self.states)}"
        if state in LEGAL_MOVES[self.states[gang_id]]:
            self.table.move(gang_id, state, time_s=0.0, reason="test")
            self.states[gang_id] = state
        else:
            with pytest.raises(IllegalTransitionError):
                self.table.move(gang_id, state, time_s=0.0, reason="test")

    @invariant()
    def every_gang_has_one_state_and_one_owner(self) -> None:
        self.table.check_integrity()
        assert {gang_id: self.table.state(gang_id) for gang_id in self.table.gang_ids} == self.states
        assert sum(self.table.count(state) for state in GangState) == self.num_slots * len(self.states)
        assert sorted(self.table.in_state(*GangState)) == sorted(self.states)


GangMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
test_gang_machine = GangMachine.TestCase


def test_the_replay_of_the_history_goes_on_where_it_stopped_and_finds_what_came_since() -> None:
    table = GangTable()
    table.add("a", time_s=0.0)
    table.check_integrity()
    table.move("a", GangState.IDLE, time_s=1.0, reason="up")
    table.check_integrity()
    table._states["a"] = GangState.TRAIN
    with pytest.raises(AssertionError, match="history leads to"):
        table.check_integrity()
