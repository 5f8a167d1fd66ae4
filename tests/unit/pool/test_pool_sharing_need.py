"""How many slots a run could use, as its load changes."""

from __future__ import annotations

from collections.abc import Mapping

from rlserve.pool.sharing.need import Load, Need, need_after

IDLE_S = 10.0


def after(*looks: tuple[float, int, bool, Mapping[str, int]], need: Need | None = None) -> int | None:
    """Each is a time, steps done, whether anything waits, and who is idle; of a run with six slots."""
    need = need or Need()
    for time_s, num_steps, has_queue, idle in looks:
        load = Load(time_s=time_s, num_steps=num_steps, num_slots=6, has_queue=has_queue, idle=idle)
        need = need_after(need, load, idle_s=IDLE_S)
    return need.useful


def test_a_run_takes_what_it_gets() -> None:
    assert after((0.0, 0, False, {}), (99.0, 9, False, {})) is None


def test_replicas_that_are_idle_for_long_and_for_two_steps_are_not_needed() -> None:
    idle = {"a": 1, "b": 2}
    assert after((0.0, 0, False, idle), (IDLE_S - 1, 5, False, idle)) is None, "not for long"
    assert after((0.0, 0, False, idle), (99.0, 1, False, idle)) is None, "the step is long"
    assert after((0.0, 0, False, idle), (IDLE_S, 2, False, idle)) == 3
    assert after((0.0, 0, False, idle), (IDLE_S, 2, False, {"b": 2})) == 4, "one of them computes again"
    assert after((0.0, 0, False, {"a": 1}), (5.0, 3, False, {}), (IDLE_S, 6, False, {"a": 1})) is None, "it was busy"


def test_what_was_not_needed_is_claimed_again_once_something_has_waited_for_as_long() -> None:
    need = Need(useful=4)
    assert after((0.0, 0, True, {}), (IDLE_S - 1, 9, True, {}), need=need) == 4
    assert after((0.0, 0, True, {}), (5.0, 3, False, {}), (IDLE_S, 9, True, {}), need=need) == 4, "it had gone"
    assert after((0.0, 0, True, {}), (IDLE_S, 9, True, {}), need=need) is None
    assert after((0.0, 0, False, {}), (99.0, 9, False, {}), need=need) == 4, "a load in between changes nothing"
