"""Who is scheduled when, without a model: the scheduler alone, on small tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.engine.kv_cache.block_pool import BlockPool
from rlserve.engine.requests.generated_tokens import NO_TOKENS
from rlserve.engine.requests.request import Request, SamplingParams
from rlserve.engine.scheduling.scheduled_step import ScheduledStep
from rlserve.engine.scheduling.scheduler import Scheduler
from rlserve.engine.sequences.prompt_scores import PromptScores
from rlserve.engine.sequences.sequence import LEGAL_MOVES, RequestState, Sequence, SequenceState
from rlserve.engine.sequences.table import SequenceTable
from rlserve.errors import IllegalTransitionError

BLOCK_SIZE = 4


class Bench:
    """A scheduler whose model writes the token 1 for everybody."""

    def __init__(self, *, num_blocks: int = 16, num_rows: int = 8, max_num_batched_tokens: int = 32) -> None:
        self.table = SequenceTable(num_rows=num_rows, max_model_len=num_blocks * BLOCK_SIZE, block_size=BLOCK_SIZE)
        self.pool = BlockPool(num_blocks)
        self.scheduler = Scheduler(
            table=self.table,
            pool=self.pool,
            block_size=BLOCK_SIZE,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_prefix_caching=True,
            eos_token_ids=(),
        )
        self.num_added = 0

    def add(self, prompt: list[int], n: int = 1, priority: int = 0, cache_salt: str = "") -> list[Sequence]:
        request = Request(
            id=str(self.num_added),
            prompt_token_ids=tuple(prompt),
            sampling=SamplingParams(n=n, max_tokens=1000),
            priority=priority,
            cache_salt=cache_salt,
        )
        owner = RequestState(
            request=request, arrival=self.num_added, arrival_s=0.0, prompt=np.array(prompt, dtype=np.int32)
        )
        self.num_added += 1
        sequences = [Sequence(owner=owner, index=index, history=NO_TOKENS) for index in range(n)]
        self.scheduler.add(sequences)
        return sequences

    def step(self) -> ScheduledStep:
        step = self.scheduler.schedule()
        self.scheduler.complete_chunks(step)
        rows = step.decode_rows.tolist()
        for chunk in step.chunks:
            if chunk.completes:
                rows += [s.row for s in (chunk.sequence, *self.scheduler.release_followers([chunk.sequence]))]
        table_rows, ones = np.array(rows, dtype=np.intp), np.ones(len(rows))
        positions = self.table.reserve(table_rows, 0)
        num_decoding = len(step.decode_rows)
        self.scheduler.complete_decoding(step.decode_rows, positions[:num_decoding])
        self.table.fill(table_rows, positions, ones.astype(np.int32), -ones, -ones)
        self.scheduler.check_integrity()
        return step


def test_a_long_prompt_is_prefilled_in_chunks_beside_decoding_samples() -> None:
    bench = Bench(max_num_batched_tokens=10)
    (short,) = bench.add([1, 2, 3])
    bench.step()
    (long,) = bench.add(list(range(25)))
    for start, end in ((0, 9), (9, 18), (18, 25)):
        step = bench.step()
        assert step.decode_rows.tolist() == [short.row]
        assert [(chunk.sequence, chunk.start, chunk.end) for chunk in step.chunks] == [(long, start, end)]
        assert step.chunks[0].completes == (end == 25)
    assert set(bench.step().decode_rows.tolist()) == {short.row, long.row}


def test_lower_priority_numbers_go_first_and_equal_ones_in_order_of_arrival() -> None:
    bench = Bench(num_rows=1)
    late, early, urgent = bench.add([1], priority=1), bench.add([2]), bench.add([3], priority=-5)
    order = []
    for _ in range(3):
        (chunk,) = bench.step().chunks
        order.append(chunk.sequence)
        bench.scheduler.end(chunk.sequence)
    assert order == [urgent[0], early[0], late[0]]


def test_admission_takes_blocks_for_the_tokens_there_are_and_not_for_those_that_may_come() -> None:
    bench = Bench(num_blocks=16)
    for _ in range(6):
        bench.add([1, 2, 3, 4, 5])
    bench.step()
    assert bench.scheduler.num_running == 6
    assert bench.pool.num_blocks - bench.pool.num_free == 12


def test_the_last_in_order_is_preempted_keeps_its_tokens_and_comes_back_from_the_cache() -> None:
    bench = Bench(num_blocks=8)
    (first,), (last,) = bench.add(list(range(8))), bench.add(list(range(50, 58)))
    while not bench.scheduler.counts.num_preemptions:
        bench.step()
    assert first.state is SequenceState.RUNNING
    assert last.state is SequenceState.WAITING
    assert last.blocks == []
    num_kept = len(last.history.token_ids)
    assert num_kept == 9
    bench.scheduler.end(first)
    (chunk,) = bench.step().chunks
    assert chunk.sequence is last
    assert chunk.end == 8 + num_kept
    assert chunk.start > 0, "its own blocks are still cached"
    assert bench.table.num_tokens[last.row] == 8 + num_kept + 1


def test_a_higher_priority_is_not_preempted_for_a_lower_one() -> None:
    bench = Bench(num_blocks=8)
    (humble,) = bench.add(list(range(8)), priority=3)
    (urgent,) = bench.add(list(range(50, 58)), priority=-3)
    while not bench.scheduler.counts.num_preemptions:
        bench.step()
    assert urgent.state is SequenceState.RUNNING
    assert humble.state is SequenceState.WAITING


def test_samples_of_a_request_share_the_prompt_and_copy_only_the_block_they_write_to() -> None:
    bench = Bench()
    samples = bench.add(list(range(10)), n=3)
    step = bench.step()
    assert sum(chunk.end - chunk.start for chunk in step.chunks) == 10
    assert {sample.state for sample in samples} == {SequenceState.RUNNING}
    assert bench.pool.num_blocks - bench.pool.num_free == 3
    shared = samples[0].blocks[2]

    step = bench.step()

    assert set(step.block_copies.values()) == {shared}
    assert len(step.block_copies) == 2, "the last holder writes in place"
    assert [sample.blocks[:2] for sample in samples] == [samples[0].blocks[:2]] * 3
    assert len({sample.blocks[2] for sample in samples}) == 3
    assert bench.pool.num_blocks - bench.pool.num_free == 5


def test_samples_without_a_row_wait_and_find_the_prompt_in_the_cache() -> None:
    bench = Bench(num_rows=2)
    samples = bench.add(list(range(8)), n=4)
    bench.step()
    assert [sample.state for sample in samples].count(SequenceState.RUNNING) == 2
    for sample in samples[:2]:
        bench.scheduler.end(sample)
    step = bench.step()
    assert [(chunk.sequence, chunk.start) for chunk in step.chunks] == [(samples[2], 4), (samples[3], 4)]


def test_the_hit_rate_counts_each_sample_that_starts_once() -> None:
    bench = Bench(num_blocks=8)
    (first,) = bench.add(list(range(8)))
    (last,) = bench.add(list(range(50, 58)))
    while not bench.scheduler.counts.num_preemptions:
        bench.step()
    bench.scheduler.end(first)
    bench.step()
    assert last.num_published_tokens >= 12, "found again in the cache"
    assert (bench.scheduler.counts.prefix_queries, bench.scheduler.counts.prefix_hits) == (16, 0)
    assert bench.scheduler.counts.num_recovered_tokens == 12
    assert last.owner.num_cached_tokens == 0, "it had made them itself"
    bench.scheduler.end(last)
    (again,) = bench.add([*range(50, 57), 99])
    bench.step()
    assert (bench.scheduler.counts.prefix_queries, bench.scheduler.counts.prefix_hits) == (24, 4)
    assert again.owner.num_cached_tokens == 4


def test_a_prompt_that_ends_in_the_middle_leaves_only_what_was_computed() -> None:
    bench = Bench(max_num_batched_tokens=10)
    (aborted,) = bench.add(list(range(30)))
    bench.step()
    bench.scheduler.end(aborted)
    bench.add(list(range(30)))
    (chunk,) = bench.step().chunks
    assert chunk.start == 8


def test_a_block_that_goes_by_the_name_of_something_else_is_found() -> None:
    bench = Bench(max_num_batched_tokens=10)
    (sequence,) = bench.add(list(range(30)))
    bench.step()
    bench.pool.publish(sequence.blocks[2], b"not computed yet")
    with pytest.raises(AssertionError, match="goes by the name of something else"):
        bench.scheduler.check_integrity()


def test_a_group_reports_what_was_cached_before_it_came() -> None:
    bench = Bench(num_rows=2)
    samples = bench.add(list(range(9)), n=4)
    bench.step()
    for sample in samples[:2]:
        bench.scheduler.end(sample)
    bench.step()
    assert (bench.scheduler.counts.prefix_queries, bench.scheduler.counts.prefix_hits) == (27, 16)
    assert samples[0].owner.num_cached_tokens == 0


def test_what_does_not_look_into_the_cache_is_not_counted() -> None:
    bench = Bench()
    bench.scheduler._enable_prefix_caching = False
    bench.add(list(range(9)))
    bench.step()
    assert bench.scheduler.counts.prefix_queries == 0
    bench = Bench()
    (scored,) = bench.add(list(range(9)))
    scored.owner.prompt_scores = PromptScores(scored.owner.prompt, 0)
    bench.step()
    assert bench.scheduler.counts.prefix_queries == 0


@pytest.mark.parametrize("state", list(SequenceState))
@pytest.mark.parametrize("target", list(SequenceState))
def test_only_the_moves_of_the_table_are_legal(state: SequenceState, target: SequenceState) -> None:
    (sequence,) = Bench().add([1])
    sequence.state = state
    if target in LEGAL_MOVES[state]:
        sequence.move(target)
        assert sequence.state is target
    else:
        with pytest.raises(IllegalTransitionError, match=f"request '0', sample 0: {state} -> {target}"):
            sequence.move(target)


def test_a_fork_has_the_row_that_it_would_have_taken_for_itself() -> None:
    bench = Bench()
    leader, *followers = bench.add([1, 2, 3, 4, 5], n=3)
    sampling = leader.owner.request.sampling
    lengths = (30, 20, 10)
    leader.owner.request = replace(
        leader.owner.request,
        sampling=replace(
            sampling,
            sample_max_tokens=lengths,
            temperature=0.5,
            top_k=3,
            top_p=0.9,
            min_p=0.1,
            min_tokens=2,
            stop_token_ids=(7, 8),
        ),
    )
    step = bench.scheduler.schedule()
    bench.scheduler.complete_chunks(step)
    assert bench.scheduler.release_followers([leader]) == dict.fromkeys(followers, leader)
    for follower in followers:
        alone = SequenceTable(num_rows=8, max_model_len=64, block_size=BLOCK_SIZE)
        apart = Sequence(owner=leader.owner, index=follower.index, history=NO_TOKENS, blocks=list(leader.blocks))
        alone.take(apart, ())
        alone.decoding[apart.row] = True
        for name, column in vars(alone).items():
            if isinstance(column, np.ndarray):
                assert np.array_equal(column[apart.row], getattr(bench.table, name)[follower.row]), name
    assert bench.scheduler.num_running == 3


def test_what_is_idle_has_everything_back() -> None:
    bench = Bench()
    bench.scheduler.check_idle()
    (sample,) = bench.add([1, 2, 3])
    with pytest.raises(AssertionError):
        bench.scheduler.check_idle()
    bench.step()
    with pytest.raises(AssertionError):
        bench.scheduler.check_idle()
    bench.scheduler.end(sample)
    bench.scheduler.check_idle()
    bench.pool.allocate()
    with pytest.raises(AssertionError, match="1 blocks are lost"):
        bench.scheduler.check_idle()


PROMPTS = st.lists(st.integers(0, 1), min_size=2 * BLOCK_SIZE + 1, max_size=3 * BLOCK_SIZE)


@given(requests=st.lists(st.tuples(PROMPTS, st.sampled_from(["", "a", "b"])), min_size=2, max_size=6))
def test_a_cached_prefix_is_found_by_requests_of_the_same_salt_alone(requests: list[tuple[list[int], str]]) -> None:
    bench = Bench(num_blocks=64, max_num_batched_tokens=64)
    known: dict[str, set[tuple[int, ...]]] = {"": set(), "a": set(), "b": set()}
    for prompt, salt in requests:
        num_hits = bench.scheduler.counts.prefix_hits
        bench.add(prompt, cache_salt=salt)
        bench.step()
        beginnings = [tuple(prompt[:end]) for end in range(BLOCK_SIZE, len(prompt) + 1, BLOCK_SIZE)]
        usable = [beginning for beginning in beginnings if len(beginning) < len(prompt) and beginning in known[salt]]
        assert bench.scheduler.counts.prefix_hits - num_hits == len(max(usable, key=len, default=()))
        known[salt].update(beginnings)
