"""What a move came to, judged by the steps before and after it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.manager.measurement.outcome import NUM_STEPS, Outcome, OutcomeMeter
from rlserve.manager.measurement.readings import GroupDone, MoveDone, StepDone
from rlserve.manager.roles import Role


class Run:
    """Steps of 16 groups one after the other on a clock that the steps move."""

    def __init__(self, num_settling: int = 2) -> None:
        self.meter = OutcomeMeter(num_settling=num_settling)
        self.now_s = 0.0
        self.found: list[Outcome] = []

    def steps(
        self, number: int, *, work_s: float = 8.0, wait_s: float = 0.0, tokens: int = 200, kept: int = 16
    ) -> None:
        """In each, 16 groups of ``tokens`` tokens are finished, and ``kept`` of them kept."""
        for _ in range(number):
            for index in range(16):
                self.meter.note(GroupDone(time_s=self.now_s, kept=index < kept, num_tokens=tokens))
            self.now_s += wait_s + work_s
            done = StepDone(
                end_s=self.now_s,
                types=("cpu",),
                wait_s=wait_s,
                weights_s=0.0,
                work_s=work_s,
                num_groups=16,
                num_tokens=16 * tokens,
            )
            self.note(self.meter.note(done))

    def move(self, *, seconds: float = 2.0, pause_s: float = 2.0, begin_s: float | None = None) -> None:
        """Training stands still for ``seconds``, unless the move had begun before."""
        begin_s = self.now_s if begin_s is None else begin_s
        self.now_s = max(self.now_s, begin_s + seconds)
        done = MoveDone(begin_s=begin_s, end_s=self.now_s, gang_id="g", to=Role.TRAIN, trainer_pause_s=pause_s)
        self.note(self.meter.note(done))

    def note(self, outcome: Outcome | None) -> None:
        self.found += [] if outcome is None else [outcome]


def test_a_move_is_judged_once_its_window_is_full_without_the_steps_that_live_on_what_was_there() -> None:
    run = Run()
    run.steps(NUM_STEPS, work_s=8.0)  # 2 groups a second
    run.move(seconds=2.0, pause_s=2.0)
    run.steps(2, work_s=2.0)  # on groups that were finished before
    run.steps(NUM_STEPS - 1, work_s=4.0)
    assert run.found == []
    run.steps(5, work_s=4.0)
    (outcome,) = run.found
    assert (outcome.rate_before, outcome.rate_after, outcome.load) == (2.0, 4.0, 1.0)
    assert (outcome.begin_s, outcome.duration_s, outcome.trainer_pause_s) == (64.0, 2.0, 2.0)
    assert (outcome.num_steps_before, outcome.num_steps_after) == (NUM_STEPS, NUM_STEPS)
    assert outcome.cost == 2.0 * (2.0 + 4.0) - 32


def test_steps_that_end_during_the_move_are_part_of_its_cost() -> None:
    run = Run()
    run.steps(4, work_s=8.0)
    begin_s = run.now_s + 1.0
    run.steps(1, work_s=24.0)  # ends, at a third of the pace, when the move does
    run.move(begin_s=begin_s, pause_s=0.0)
    run.steps(2 + NUM_STEPS, work_s=8.0)
    (outcome,) = run.found
    assert (outcome.num_steps_before, outcome.rate_before, outcome.rate_after) == (4, 2.0, 2.0)
    assert outcome.cost == 2.0 * (24.0 + 16.0) - 48


def test_the_next_move_or_the_end_cuts_a_window_short() -> None:
    run = Run()
    run.steps(NUM_STEPS)
    run.move()
    run.steps(2 + 3, work_s=4.0)
    run.move()
    run.steps(2 + 1)
    assert [outcome.num_steps_after for outcome in run.found] == [3]
    assert run.meter.finish() is None, "one step says nothing"
    run.move()
    run.steps(1)
    assert run.meter.finish() is None
    assert len(run.found) == 1


@pytest.mark.parametrize(
    ("after", "load"),
    [
        ({"work_s": 16.0, "tokens": 400}, 2.0),  # training is the slower side, and has twice as many tokens a group
        ({"work_s": 2.0, "wait_s": 6.0, "kept": 8}, 0.25 + 0.75 * 2),  # twice as many to generate for one that is kept
        ({"work_s": 8.0, "kept": 8}, 1.0),  # which is no matter where training does not wait
    ],
)
def test_the_rate_after_is_told_at_the_load_of_before(after: dict[str, float], load: float) -> None:
    run = Run()
    run.steps(NUM_STEPS)
    run.move()
    run.steps(2 + NUM_STEPS, **after)  # type: ignore[arg-type]
    (outcome,) = run.found
    seconds = after["work_s"] + after.get("wait_s", 0.0)
    assert outcome.load == pytest.approx(load)
    assert outcome.rate_after == pytest.approx(16 / seconds * load)


@given(st.lists(st.one_of(st.integers(1, 20), st.none()), max_size=12), st.integers(0, 3))
def test_no_move_is_judged_twice_and_none_without_steps_on_both_sides(
    parts: list[int | None], num_settling: int
) -> None:
    run = Run(num_settling)
    for part in parts:
        if part is None:
            run.move()
        else:
            run.steps(part)
    run.note(run.meter.finish())
    begun = [outcome.begin_s for outcome in run.found]
    assert begun == sorted(set(begun))
    assert len(begun) <= parts.count(None)
    assert all(2 <= outcome.num_steps_after <= NUM_STEPS for outcome in run.found)
    assert all(outcome.rate_after == pytest.approx(outcome.rate_before) for outcome in run.found), "nothing changed"
