"""The ledger: legal moves, admission, counts, and snapshots at random moments."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rlserve.errors import IllegalTransitionError
from rlserve.rollout.ledger import LEGAL_MOVES, GroupState, Ledger

PATH_TO = {
    GroupState.PENDING: (),
    GroupState.RUNNING: ("start",),
    GroupState.SCORED: ("start", "score"),
    GroupState.BUFFERED: ("start", "score", "buffer"),
}
VERBS = {
    GroupState.RUNNING: "start",
    GroupState.PENDING: "requeue",
    GroupState.SCORED: "score",
    GroupState.BUFFERED: "buffer",
    GroupState.TRAINED: "train",
    GroupState.DROPPED: "drop",
}


def do(ledger: Ledger, verb: str, group_id: str) -> None:
    """Make one move."""
    if verb == "drop":
        ledger.drop(group_id, reason="test", time_s=1.0)
    elif verb == "start":
        ledger.start(group_id, version=3, time_s=1.0)
    else:
        getattr(ledger, verb)(group_id, time_s=1.0)


def ledger_with(group_id: str, state: GroupState) -> Ledger:
    """A ledger with one group in ``state``."""
    ledger = Ledger(prompts_per_step=2, max_staleness=1)
    ledger.admit(group_id, position=0, current_version=3, time_s=0.0)
    for verb in PATH_TO[state]:
        do(ledger, verb, group_id)
    return ledger


@pytest.mark.parametrize("before", PATH_TO)
@pytest.mark.parametrize("after", VERBS)
def test_moves_are_exactly_those_of_the_table(before: GroupState, after: GroupState) -> None:
    ledger = ledger_with("0:5", before)
    if after in LEGAL_MOVES[before]:
        do(ledger, VERBS[after], "0:5")
        assert ledger.count(after) == 1
        assert ledger.count(before) == 0
    else:
        with pytest.raises(IllegalTransitionError, match=f"0:5 cannot move from {before} to {after}"):
            do(ledger, VERBS[after], "0:5")
        assert ledger.get("0:5").state is before
    ledger.check_integrity()


@pytest.mark.parametrize("last", ["train", "drop"])
def test_an_ended_group_cannot_move_again(last: str) -> None:
    ledger = ledger_with("0:5", GroupState.BUFFERED if last == "train" else GroupState.RUNNING)
    do(ledger, last, "0:5")
    with pytest.raises(IllegalTransitionError, match="0:5 is not live"):
        ledger.train("0:5", time_s=2.0)
    assert (ledger.num_trained, ledger.num_dropped) == ((1, {}) if last == "train" else (0, {"test": 1}))


def test_groups_are_admitted_only_while_there_is_room() -> None:
    ledger = Ledger(prompts_per_step=2, max_staleness=1)
    for position in range(4):
        ledger.admit(f"0:{position}", position=position, current_version=0, time_s=0.0)
    assert ledger.room == 0
    with pytest.raises(IllegalTransitionError, match="no room, 4 groups are live"):
        ledger.admit("0:4", position=4, current_version=0, time_s=0.0)
    ledger.drop("0:2", reason="test", time_s=0.0)
    ledger.admit("0:4", position=4, current_version=0, time_s=0.0)
    assert ledger.num_admitted == 5


@pytest.mark.parametrize("position", [0, 2])
def test_groups_are_admitted_in_order_without_a_gap(position: int) -> None:
    ledger = ledger_with("0:0", GroupState.PENDING)
    with pytest.raises(IllegalTransitionError, match="the next position is 1"):
        ledger.admit("0:9", position=position, current_version=0, time_s=0.0)


def test_a_record_tells_when_and_how_often() -> None:
    ledger = Ledger(prompts_per_step=1, max_staleness=0)
    ledger.admit("0:0", position=0, current_version=7, time_s=1.0)
    ledger.start("0:0", version=9, time_s=2.0)
    ledger.requeue("0:0", time_s=3.0)
    ledger.start("0:0", version=12, time_s=4.5)
    record = ledger.get("0:0")
    assert (record.oldest_version, record.attempt, record.changed_s) == (9, 1, 4.5), "its oldest token is of the first"


class LedgerMachine(RuleBasedStateMachine):
    """Random legal moves against a model that remembers every group, with saves and resumes at any moment."""

    @initialize(prompts_per_step=st.integers(1, 3), max_staleness=st.integers(0, 2))
    def begin(self, prompts_per_step: int, max_staleness: int) -> None:
        self.make = lambda: Ledger(prompts_per_step=prompts_per_step, max_staleness=max_staleness)
        self.ledger = self.make()
        self.states: dict[str, GroupState] = {}
        self.reasons: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()
        self.version = 0
        self.saved: tuple[str, dict[str, GroupState], Counter[str], Counter[str], int] | None = None

    @precondition(lambda self: self.ledger.room > 0)
    @rule()
    def admit(self) -> None:
        position = len(self.states)
        self.ledger.admit(f"0:{position}", position=position, current_version=self.version, time_s=float(position))
        self.states[f"0:{position}"] = GroupState.PENDING

    @precondition(lambda self: self.ledger.num_live > 0)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        group_id = data.draw(st.sampled_from([record.id for record in self.ledger.live()]))
        after = data.draw(st.sampled_from(sorted(LEGAL_MOVES[self.states[group_id]])))
        reason = data.draw(st.sampled_from(["reward", "timeout"])) if after is GroupState.DROPPED else None
        if reason is None and after is GroupState.RUNNING:
            self.ledger.start(group_id, version=self.version, time_s=0.0)
        elif reason is None:
            getattr(self.ledger, VERBS[after])(group_id, time_s=0.0)
        else:
            self.ledger.drop(group_id, reason=reason, time_s=0.0)
            self.reasons[reason] += 1
        self.attempts[group_id] += after is GroupState.PENDING
        self.version += after is GroupState.TRAINED
        self.states[group_id] = after

    @rule()
    def save(self) -> None:
        text = json.dumps(self.ledger.snapshot())
        self.saved = (text, dict(self.states), self.reasons.copy(), self.attempts.copy(), self.version)

    @precondition(lambda self: self.saved is not None)
    @rule()
    def resume(self) -> None:
        assert self.saved is not None
        text, states, self.reasons, self.attempts, self.version = (
            self.saved[0],
            dict(self.saved[1]),
            self.saved[2].copy(),
            self.saved[3].copy(),
            self.saved[4],
        )
        ended = (GroupState.TRAINED, GroupState.DROPPED)
        self.states = {key: state if state in ended else GroupState.PENDING for key, state in states.items()}
        self.attempts.update(key for key, state in states.items() if state not in ended)
        self.ledger = self.make()
        self.ledger.restore(json.loads(text), current_version=self.version, time_s=9.0)
        assert all(record.oldest_version == self.version for record in self.ledger.live())

    @invariant()
    def ledger_agrees_with_the_model(self) -> None:
        self.ledger.check_integrity()
        counts = Counter(self.states.values())
        assert {state: self.ledger.count(state) for state in GroupState} == {
            state: counts[state] for state in GroupState
        }
        assert self.ledger.num_admitted == len(self.states)
        assert Counter(self.ledger.num_dropped) == self.reasons
        live = [key for key, state in self.states.items() if LEGAL_MOVES[state]]
        assert [record.id for record in self.ledger.live()] == live
        assert all(record.attempt == self.attempts[record.id] for record in self.ledger.live())
        assert self.ledger.num_live + self.ledger.room == self.ledger.max_live


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_ledger_machine = LedgerMachine.TestCase
