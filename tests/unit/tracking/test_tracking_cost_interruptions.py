"""What interruptions of a run cost in time, from its events."""

from __future__ import annotations

from dataclasses import asdict, replace

from cost_story import begin, end, stage, step

from rlserve.tracking.cost.interruptions import Interruption, find_interruptions
from rlserve.tracking.events import Event, RunEvent, StepEvent

NOON_S = 1_700_000_000.0


def begun(time_s: float, at_s: float, *, resumed_step: int | None = None) -> RunEvent:
    """A command that began at ``at_s`` after noon, when the run's own time was ``time_s``."""
    return replace(begin(time_s, resumed_step=resumed_step), begun_at_s=NOON_S + at_s)


def done(number: int, time_s: float) -> StepEvent:
    return step(number, time_s - 1.0, time_s - 0.8, time_s - 0.1, time_s, "a/0")


def found(*events: Event) -> tuple[Interruption, ...]:
    return find_interruptions([{"event": event.kind, **asdict(event)} for event in events])


def test_a_run_that_goes_through_has_none() -> None:
    assert found(begun(0.0, 0.0), done(1, 10.0), end(11.0)) == ()


def test_one_that_saved_after_a_signal_does_nothing_again() -> None:
    """It stops at 12 s, is taken up 120 s later, and does a new step 9 s after that."""
    before = (begun(0.0, 0.0), done(1, 10.0), done(2, 11.0), stage(12.0, "ending"), end(12.0, exit_code=143))
    (one,) = found(*before, begun(12.0, 132.0, resumed_step=2), done(3, 21.0), done(4, 22.0), end(23.0))
    assert one == Interruption(
        step=2, ended_by="SIGTERM", away_s=120.0, start_s=9.0, again_s=0.0, num_again=0, is_over=True
    )
    assert one.lost_s == 129.0


def test_one_that_was_killed_does_steps_again() -> None:
    """From the checkpoint of step 1; the first record of what goes on is later than the last before it."""
    before = (begun(0.0, 0.0), done(1, 10.0), done(2, 11.0), done(3, 12.0))
    after = (begun(12.0, 15.0, resumed_step=1), done(2, 20.0), done(3, 21.5), done(4, 23.0), done(5, 24.0))
    (one,) = found(*before, *after)
    assert (one.step, one.ended_by, one.num_again, one.is_over) == (3, "killed", 2, True)
    assert (one.away_s, one.start_s, one.again_s, one.lost_s) == (3.0, 8.0, 3.0, 14.0)


def test_one_that_began_anew_without_a_checkpoint_has_its_own_time_from_the_start() -> None:
    before = (begun(0.0, 0.0), done(1, 10.0), done(2, 11.0))
    (one,) = found(*before, begun(0.0, 16.0), done(1, 8.0), done(2, 9.0), done(3, 10.0))
    assert (one.away_s, one.start_s, one.again_s, one.num_again) == (5.0, 8.0, 2.0, 2)


def test_one_that_is_not_back_yet_grows() -> None:
    before = (begun(0.0, 0.0), done(1, 10.0), done(2, 11.0))
    (one,) = found(*before, begun(11.0, 21.0, resumed_step=1), stage(14.0, "training"))
    assert (one.is_over, one.lost_s) == (False, 10.0 + 3.0)
    (one,) = found(*before, begun(11.0, 21.0, resumed_step=1), done(2, 15.0), stage(15.5, "training"))
    assert (one.is_over, one.num_again, one.start_s, one.again_s) == (False, 1, 4.0, 0.5)


def test_two_in_a_row_count_no_moment_twice() -> None:
    before = (begun(0.0, 0.0), done(1, 10.0))
    first, second = found(
        *before,
        begun(10.0, 20.0, resumed_step=0),
        stage(13.0, "training"),
        begun(13.0, 33.0, resumed_step=0),
        done(1, 17.0),
        done(2, 18.0),
    )
    assert (first.is_over, first.away_s, first.start_s) == (False, 10.0, 3.0)
    assert (second.is_over, second.away_s, second.start_s, second.again_s) == (True, 10.0, 4.0, 1.0)
    assert first.lost_s + second.lost_s == 33.0 + 5.0 - 10.0, "by the clock, from the step before to the new one"


def test_how_it_ended_is_told() -> None:
    for code, what in ((1, "failed"), (143, "SIGTERM"), (130, "SIGINT")):
        (one,) = found(begun(0.0, 0.0), done(1, 1.0), end(1.0, code), begun(1.0, 2.0, resumed_step=1), done(2, 3.0))
        assert one.ended_by == what


def test_more_steps_of_a_run_that_had_finished_are_no_interruption() -> None:
    assert found(begun(0.0, 0.0), done(1, 1.0), end(1.0), begun(1.0, 99.0, resumed_step=1), done(2, 3.0)) == ()


def test_nor_are_those_of_a_run_without_a_date() -> None:
    assert found(begin(), done(1, 1.0), begin(1.0, resumed_step=1), done(2, 3.0)) == ()
