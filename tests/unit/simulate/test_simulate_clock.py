"""Virtual time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlserve.simulate.clock import Clock, Latch, Process


@given(st.lists(st.floats(0, 100), max_size=30), st.floats(0, 120))
def test_everything_happens_once_in_order_and_nothing_after_the_end(delays_s: list[float], end_s: float) -> None:
    clock, seen = Clock(), list[float]()

    def again(delay_s: float) -> None:
        seen.append(clock.now_s)
        if delay_s > 1:
            clock.after(delay_s / 2, lambda: again(delay_s / 2))

    for delay_s in delays_s:
        clock.after(delay_s, lambda delay_s=delay_s: again(delay_s))  # type: ignore[misc]
    clock.run_until(end_s)
    assert seen == sorted(seen)
    assert all(time_s <= end_s for time_s in seen)
    assert len(seen) >= sum(delay_s <= end_s for delay_s in delays_s)
    assert clock.now_s == end_s


def test_what_is_due_together_happens_in_the_order_in_which_it_was_asked_for() -> None:
    clock, seen = Clock(), list[int]()
    for number in range(5):
        clock.after(1.0, lambda number=number: seen.append(number))  # type: ignore[misc]
    clock.run_until(1.0)
    assert seen == [0, 1, 2, 3, 4]


def test_a_process_waits_for_time_and_for_latches() -> None:
    clock, latch, open_latch, seen = Clock(), Latch(), Latch(), list[tuple[str, float]]()
    open_latch.open()

    def process() -> Process:
        yield 2.0
        seen.append(("slept", clock.now_s))
        yield open_latch
        seen.append(("was open", clock.now_s))
        yield latch
        seen.append(("opened", clock.now_s))

    clock.start(process())
    clock.after(7.0, latch.open)
    clock.run_until(10.0)
    assert seen == [("slept", 2.0), ("was open", 2.0), ("opened", 7.0)]
