"""What is seen of a worker round by round, and when it is taken for dead: plain data."""

from __future__ import annotations

from rlserve.controller.silence import PATIENCE, Look, Silence, most_stopped

ROUNDS = 10


def rounds_until_over(look: Look, *, used_s: float | None, most: int = 200) -> int | None:
    """How many rounds of the same kind it takes, in each of which so much processor time is used; None: never."""
    silence = Silence(processor_s=None if used_s is None else 5.0)
    for number in range(1, most + 1):
        processor_s = None if used_s is None else 5.0 + number * used_s
        silence = silence.after(
            Look(
                was_heard=look.was_heard,
                is_computing=look.is_computing,
                processor_s=processor_s,
                is_ready_to_run=look.is_ready_to_run,
                is_stopped=look.is_stopped,
            ),
            interval_s=1.0,
        )
        if silence.is_over(ROUNDS):
            return number
    return None


SILENT, IDLE, COMPUTING = Look(was_heard=False), Look(was_heard=True), Look(was_heard=True, is_computing=True)


def test_silent_and_still_is_over_after_the_timeout() -> None:
    assert rounds_until_over(SILENT, used_s=0.0) == ROUNDS


def test_silent_on_another_machine_too() -> None:
    assert rounds_until_over(SILENT, used_s=None) == ROUNDS


def test_stopped_is_over_after_a_fifth_of_it() -> None:
    stopped = Look(was_heard=False, is_stopped=True)
    assert rounds_until_over(stopped, used_s=0.0) == ROUNDS / 5
    assert [most_stopped(number) for number in (1, 2, 5, 10, 60)] == [1, 2, 2, 2, 12]


def test_stopped_now_and_then_is_not() -> None:
    """As one is that is slowed down: it uses the processor in between."""
    stopped = Look(was_heard=False, is_stopped=True)
    assert rounds_until_over(stopped, used_s=0.01) == PATIENCE * ROUNDS


def test_stopped_and_continued_begins_anew() -> None:
    stopped, silent = Look(was_heard=False, is_stopped=True), Look(was_heard=False)
    silence = Silence().after(stopped, interval_s=1.0)
    assert silence.is_suspect(ROUNDS)
    assert not silence.after(silent, interval_s=1.0).after(stopped, interval_s=1.0).is_over(ROUNDS)


def test_silent_but_busy_has_more_time_and_not_for_ever() -> None:
    assert rounds_until_over(SILENT, used_s=0.01) == PATIENCE * ROUNDS


def test_silent_and_ready_to_run_too() -> None:
    starved = Look(was_heard=False, is_ready_to_run=True)
    assert rounds_until_over(starved, used_s=0.0) == PATIENCE * ROUNDS


def test_computing_without_the_processor_is_wedged() -> None:
    assert rounds_until_over(COMPUTING, used_s=0.01) == ROUNDS


def test_computing_with_it_is_not() -> None:
    assert rounds_until_over(COMPUTING, used_s=0.1) is None


def test_nor_is_a_worker_that_would_compute_if_it_had_a_processor() -> None:
    starved = Look(was_heard=True, is_computing=True, is_ready_to_run=True)
    assert rounds_until_over(starved, used_s=0.0) is None


def test_nor_one_whose_processor_time_cannot_be_seen() -> None:
    assert rounds_until_over(COMPUTING, used_s=None) is None


def test_nor_one_that_waits_or_has_nothing_to_do() -> None:
    assert rounds_until_over(IDLE, used_s=0.0) is None


def test_suspicion_comes_half_way_and_goes_with_an_answer() -> None:
    silence = Silence()
    for _ in range(ROUNDS // 2 - 1):
        silence = silence.after(SILENT, interval_s=1.0)
    assert not silence.is_suspect(ROUNDS)
    silence = silence.after(SILENT, interval_s=1.0)
    assert silence.is_suspect(ROUNDS)
    assert not silence.after(IDLE, interval_s=1.0).is_suspect(ROUNDS)
