"""When all threads compute, and when one does."""

from __future__ import annotations

from rlserve.native.thread_count import LONGEST_S, MIN_SHARE, SHORTEST_S, WINDOW_S, ThreadCount


def _run(threads: ThreadCount, share: float, seconds: float) -> list[int]:
    """Runs of 10 ms for so long, in which each thread computes for that share of the time; the numbers of threads."""
    chosen = []
    for _ in range(round(seconds / 0.01)):
        num_threads = threads.choose(2)
        threads.observe(num_threads, wall_s=0.01, cpu_s=0.01 * num_threads * share)
        chosen.append(num_threads)
    return chosen


def test_all_threads_compute_while_they_get_the_processors() -> None:
    assert set(_run(ThreadCount(), MIN_SHARE + 0.05, 10)) == {2}


def test_one_computes_while_others_hold_the_processors_and_all_after_it() -> None:
    threads = ThreadCount()
    chosen = _run(threads, MIN_SHARE - 0.05, 30)
    assert chosen.count(1) > 0.9 * len(chosen)
    assert 2 in chosen[-round((LONGEST_S + WINDOW_S) / 0.01) - 2 :], "all are tried again"
    assert set(_run(threads, 1.0, 10)[round((LONGEST_S + WINDOW_S) / 0.01) + 2 :]) == {2}


def test_a_short_disturbance_costs_a_short_time() -> None:
    threads = ThreadCount()
    _run(threads, MIN_SHARE - 0.05, WINDOW_S)
    chosen = _run(threads, 1.0, 10)
    assert chosen.count(1) <= round(SHORTEST_S / 0.01) + 1


def test_one_thread_stays_one() -> None:
    threads = ThreadCount()
    for _ in range(100):
        threads.observe(1, wall_s=0.01, cpu_s=0.001)
        assert threads.choose(1) == 1
    assert threads.choose(2) == 2
