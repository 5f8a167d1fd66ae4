"""A replica against closed forms, and against stepping it token by token."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate_builders import PlainCosts

from rlserve.simulate.clock import Clock
from rlserve.simulate.decode_curve import DecodeCurve
from rlserve.simulate.replica import Replica
from rlserve.simulate.work import Group, GroupWork, Sample


def group(position: int, *lengths: int, prompt: int = 10) -> Group:
    work = GroupWork(num_prompt_tokens=prompt, lengths=lengths)
    made = Group(id=str(position), position=position, work=work)
    made.unfinished = [Sample(group=made, length=length) for length in lengths]
    return made


class Bench:
    """A replica, and when its groups end."""

    def __init__(self, costs: PlainCosts, rows: int = 8) -> None:
        self.clock = Clock()
        self.ends_s: dict[str, float] = {}
        self.replica = Replica(
            self.clock,
            gang_id="even/0",
            type_name="even",
            costs=costs,
            curve=DecodeCurve(costs, "even"),
            max_num_sequences=rows,
            version=0,
            on_done=lambda _, done: self.ends_s.setdefault(done.id, self.clock.now_s),
        )


def test_equal_samples_end_together_after_their_steps() -> None:
    bench = Bench(PlainCosts(base_s=0.01, sample_s=0.001))
    bench.replica.add(group(0, 100, 100, 100))
    bench.clock.run_until(100)
    assert bench.ends_s == {"0": pytest.approx(0.01 + 99 * 0.013)}  # the first step computes the prompt alone
    assert bench.replica.num_generated == pytest.approx(300)
    assert bench.replica.busy_s == pytest.approx(0.01 + 99 * 0.013)
    assert bench.replica.running_s == pytest.approx(3 * (0.01 + 99 * 0.013))


def test_the_cache_read_grows_with_every_step() -> None:
    costs = PlainCosts(base_s=0.01, token_s=1e-5)
    bench = Bench(costs)
    bench.replica.add(group(0, 1000, prompt=50))
    bench.clock.run_until(100)
    assert bench.ends_s["0"] == pytest.approx(1000 * 0.01 + 1e-5 * (999 * 50 + 999 * 1000 / 2))


def test_the_rest_goes_faster_when_a_sample_ends() -> None:
    bench = Bench(PlainCosts(base_s=0.0, sample_s=0.01))
    bench.replica.add(group(0, 10))
    bench.replica.add(group(1, 30))
    bench.clock.run_until(100)
    assert bench.ends_s == {"0": pytest.approx(9 * 0.02), "1": pytest.approx(9 * 0.02 + 20 * 0.01)}


def test_a_prompt_is_computed_once_a_group_and_holds_decoding_up() -> None:
    bench = Bench(PlainCosts(base_s=0.01, prefill_token_s=0.1))
    bench.replica.add(group(0, 10, 10, prompt=20))
    bench.clock.run_until(100)
    assert bench.ends_s["0"] == pytest.approx(20 * 0.1 + 10 * 0.01)


def test_samples_beyond_the_rows_wait_for_one() -> None:
    bench = Bench(PlainCosts(base_s=0.01), rows=2)
    bench.replica.add(group(0, 10, 10, 10))
    bench.clock.run_until(0.05)
    assert (bench.replica.num_running, bench.replica.num_waiting) == (2, 1)
    bench.clock.run_until(100)
    assert bench.ends_s["0"] == pytest.approx(0.2)


def test_a_full_cache_sends_the_last_one_back_with_its_tokens() -> None:
    bench = Bench(PlainCosts(base_s=0.01, prefill_token_s=0.0, cache_tokens=150))
    bench.replica.add(group(0, 100))
    bench.replica.add(group(1, 100))
    bench.clock.run_until(0.66)  # each has 10 of its prompt and 65 of its own: the cache is full at 0.65 s
    assert (bench.replica.num_running, bench.replica.num_waiting) == (1, 1)
    bench.clock.run_until(100)
    assert bench.ends_s == {"0": pytest.approx(1.0), "1": pytest.approx(1.0 + 0.35)}
    assert bench.replica.num_generated == pytest.approx(200)


def test_what_comes_begins_at_the_next_boundary_and_its_prompt_makes_that_step_longer() -> None:
    bench = Bench(PlainCosts(base_s=0.1, prefill_token_s=0.01))
    bench.replica.add(group(0, 10, prompt=10))  # 0.2 s with its prompt, and 0.1 s for each further token
    bench.clock.after(0.45, partial(bench.replica.add, group(1, 3, prompt=20)))
    bench.clock.run_until(0.49)
    assert (bench.replica.num_running, bench.replica.num_waiting) == (1, 1)
    bench.clock.run_until(0.55)
    assert bench.replica.num_running == 2
    bench.clock.run_until(100)
    assert bench.ends_s["1"] == pytest.approx(0.5 + (0.1 + 20 * 0.01) + 2 * 0.1)
    assert bench.ends_s["0"] == pytest.approx(0.2 + 9 * 0.1 + 20 * 0.01)


def test_one_that_leaves_hands_whole_tokens_over_and_one_that_is_lost_none() -> None:
    bench = Bench(PlainCosts(base_s=0.01))
    moved = group(0, 100, 20)
    moved.arrive()
    bench.replica.add(moved)
    bench.clock.run_until(0.505)
    bench.replica.leave()
    assert [(sample.length, sample.num_done) for sample in moved.unfinished] == [
        (100, 51.0)
    ]  # with that of the step under way
    assert moved.num_resumed_tokens == 10 + 51 + 20
    moved.take_back()
    assert [(sample.length, sample.num_done) for sample in moved.unfinished] == [(100, 0.0), (20, 0.0)]
    assert moved.num_running == 0
    bench.clock.run_until(100)
    assert bench.ends_s == {}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 3), st.lists(st.integers(1, 40), min_size=1, max_size=3)), min_size=1, max_size=6),
    st.lists(st.floats(0, 6), max_size=10),
)
def test_looking_at_it_changes_nothing_and_no_token_is_lost(
    arrivals: list[tuple[float, list[int]]], looks_s: list[float]
) -> None:
    ends: list[dict[str, float]] = []
    for looks in ((), looks_s):
        bench = Bench(PlainCosts(base_s=0.01, sample_s=0.002, token_s=1e-5, prefill_token_s=0.001), rows=4)
        for position, (time_s, lengths) in enumerate(arrivals):
            bench.clock.after(time_s, partial(bench.replica.add, group(position, *lengths)))
        for time_s in looks:
            bench.clock.after(time_s, bench.replica.advance)
        bench.clock.run_until(1000)
        assert set(bench.ends_s) == {str(position) for position in range(len(arrivals))}
        assert bench.replica.num_generated == pytest.approx(sum(sum(lengths) for _, lengths in arrivals))
        assert bench.replica.kv_cache_usage == pytest.approx(0.0)
        ends.append(bench.ends_s)
    assert ends[0] == pytest.approx(ends[1])
