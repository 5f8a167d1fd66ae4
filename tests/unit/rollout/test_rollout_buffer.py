"""When the sample buffer gives a batch, and of which groups."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_builders import make_group, make_scored

from rlserve.rollout.buffer import SampleBuffer
from rlserve.rollout.ledger import GroupState, Ledger


class Bench:
    """A ledger and a buffer, with groups brought to the buffer in one call."""

    def __init__(self, *, prompts_per_step: int, max_staleness: int) -> None:
        self.ledger = Ledger(prompts_per_step=prompts_per_step, max_staleness=max_staleness)
        self.buffer = SampleBuffer(self.ledger, prompts_per_step=prompts_per_step)

    def admit(self, count: int, *, version: int) -> None:
        for position in self.enqueue(count, version=version):
            self.ledger.start(f"0:{position}", version=version, time_s=0.0)

    def enqueue(self, count: int, *, version: int) -> range:
        positions = range(self.ledger.num_admitted, self.ledger.num_admitted + count)
        for position in positions:
            self.ledger.admit(f"0:{position}", position=position, current_version=version, time_s=0.0)
        return positions

    def finish(self, *positions: int, version: int) -> None:
        for position in positions:
            self.ledger.score(f"0:{position}", time_s=0.0)
            scored = make_scored(make_group(position), [[version]])
            self.buffer.put(scored, time_s=0.0)

    def take(self, version: int) -> list[int] | None:
        batch = self.buffer.take(version)
        return None if batch is None else [scored.group.position for scored in batch]

    def train(self, version: int) -> list[int] | None:
        positions = self.take(version)
        if positions is not None:
            self.buffer.commit(time_s=0.0)
        return positions


def test_a_batch_has_exactly_the_declared_size() -> None:
    bench = Bench(prompts_per_step=2, max_staleness=1)
    bench.admit(4, version=0)
    bench.finish(3, version=0)
    assert bench.take(0) is None
    bench.finish(1, 0, version=0)
    assert bench.take(0) == [0, 1]


def test_finished_groups_go_first_while_slow_ones_can_still_be_in_time() -> None:
    bench = Bench(prompts_per_step=2, max_staleness=1)
    bench.admit(4, version=0)
    bench.finish(2, 3, version=0)
    assert bench.train(0) == [2, 3]  # 0 and 1 fit into the next batch


def test_the_batch_waits_for_groups_that_no_later_batch_may_take() -> None:
    bench = Bench(prompts_per_step=2, max_staleness=1)
    bench.admit(4, version=0)
    bench.finish(2, 3, version=0)
    bench.train(0)
    bench.admit(2, version=1)
    bench.finish(4, 5, version=1)
    assert bench.take(1) is None  # 0 and 1 were admitted at 0 and may be trained at 1 at the latest
    bench.finish(0, version=0)
    assert bench.take(1) is None
    bench.finish(1, version=0)
    assert bench.take(1) == [0, 1]


def test_the_batch_waits_before_more_fall_due_than_one_batch_holds() -> None:
    bench = Bench(prompts_per_step=1, max_staleness=2)
    bench.admit(3, version=0)
    bench.finish(2, version=0)
    assert bench.train(0) == [2]
    bench.admit(1, version=1)
    bench.finish(3, version=1)
    assert bench.take(1) is None  # else both 0 and 1 would be due at 2
    bench.finish(0, version=0)
    assert bench.take(1) == [0]


def test_a_dropped_group_is_waited_for_no_more() -> None:
    bench = Bench(prompts_per_step=1, max_staleness=0)
    bench.admit(1, version=0)
    bench.ledger.drop("0:0", reason="test", time_s=0.0)
    bench.admit(1, version=0)
    bench.finish(1, version=0)
    assert bench.take(0) == [1]


def test_a_group_that_started_over_is_as_young_as_its_tokens() -> None:
    bench = Bench(prompts_per_step=1, max_staleness=1)
    bench.admit(2, version=0)
    bench.finish(0, version=0)
    bench.train(0)
    bench.finish(1, version=1)  # admitted at 0, but all of its tokens are of version 1
    bench.admit(1, version=1)
    bench.finish(2, version=1)
    assert bench.train(1) == [1]
    assert bench.train(2) == [2]


def test_groups_stay_buffered_until_their_step_is_done() -> None:
    bench = Bench(prompts_per_step=1, max_staleness=1)
    bench.admit(2, version=0)
    bench.finish(0, 1, version=0)
    bench.take(0)
    assert (len(bench.buffer), bench.ledger.count(GroupState.BUFFERED), bench.ledger.room) == (1, 2, 0)
    bench.buffer.commit(time_s=0.0)
    assert (len(bench.buffer), bench.ledger.count(GroupState.TRAINED), bench.ledger.room) == (1, 1, 1)
    bench.buffer.check_integrity()


@given(
    seed=st.integers(0, 2**32),
    prompts_per_step=st.integers(1, 4),
    max_staleness=st.integers(0, 3),
    share_slow=st.sampled_from([0.0, 0.1, 0.3, 0.6]),
)
@settings(max_examples=150, deadline=None)
def test_staleness_is_bounded_and_training_goes_on_whatever_the_durations(
    seed: int, prompts_per_step: int, max_staleness: int, share_slow: float
) -> None:
    """Rounds in which the window is refilled, every group under way ages by one, and one batch is taken if it can be.

    A few groups take many rounds, as a few answers are very long; some start over, some are dropped.
    """
    random = Random(seed)
    bench = Bench(prompts_per_step=prompts_per_step, max_staleness=max_staleness)
    longest, waiting = 12, list[int]()
    under_way: dict[int, tuple[int, int]] = {}  # position: (rounds to go, version of its first token)
    version = rounds_without_step = 0
    for _ in range(80):
        waiting += bench.enqueue(bench.ledger.room, version=version)
        num_started = random.randint(0, len(waiting))
        started, waiting = waiting[:num_started], waiting[num_started:]
        for position in started:
            bench.ledger.start(f"0:{position}", version=version, time_s=0.0)
            under_way[position] = (longest if random.random() < share_slow else random.randint(1, 3), version)
        for position, (rounds, first_version) in list(under_way.items()):
            chance = random.random()
            if chance < 0.01:
                bench.ledger.drop(f"0:{position}", reason="test", time_s=0.0)
                del under_way[position]
            elif chance < 0.02:
                bench.ledger.requeue(f"0:{position}", time_s=0.0)
                bench.ledger.start(f"0:{position}", version=version, time_s=0.0)
                under_way[position] = (rounds, version)
            elif rounds == 1:
                bench.finish(position, version=first_version)
                del under_way[position]
            else:
                under_way[position] = (rounds - 1, first_version)
        batch = bench.buffer.take(version)
        bench.buffer.check_integrity()
        if batch is None:
            rounds_without_step += 1
            assert rounds_without_step < 10 * longest, "no batch although every group finishes in time"
            continue
        assert len(batch) == prompts_per_step
        assert version - min(scored.oldest_version for scored in batch) <= max_staleness
        bench.buffer.commit(time_s=0.0)
        version, rounds_without_step = version + 1, 0
    assert version >= 4
    assert bench.ledger.num_trained == version * prompts_per_step
