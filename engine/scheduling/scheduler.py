"""Which tokens the next step computes, and who holds which row and which blocks.

One step:

    grow      each decoding sample gets the block its next token needs: a new one at a block's end, a copy of
              its own where the block is shared (copy on write). No free block: the last in order is preempted.
    decode    all decoding samples, one token each.
    prefill   prompts under way, in chunks, with what is left of the token budget.
    admit     waiting samples in order, while rows, blocks and budget last.

Nothing is reserved for tokens that may come: a sample holds the blocks of the tokens it has. Progress is sure,
because the first in order is never preempted for another, and the whole cache holds one longest sequence.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rlserve.engine.kv_cache.block_pool import BlockPool
from rlserve.engine.kv_cache.prefix import extend_chain, root_hash
from rlserve.engine.scheduling.scheduled_step import Chunk, ScheduledStep
from rlserve.engine.sequences.sequence import RequestState, Sequence, SequenceState
from rlserve.engine.sequences.table import SequenceTable


@dataclass(kw_only=True)
class SchedulerCounts:
    """Running totals."""

    num_preemptions: int = 0
    prefix_queries: int = 0
    """Tokens looked up in the prefix cache, by samples that start; not when they come back from a preemption."""
    prefix_hits: int = 0
    """Tokens found there."""
    num_recovered_tokens: int = 0
    """Tokens of preempted samples that were still cached when they came back."""
    num_prefill_chunks: int = 0
    num_partial_chunks: int = 0
    """Chunks that left a part of their prompt to later steps."""
    num_forks: int = 0
    num_block_copies: int = 0
    states: Counter[SequenceState] = field(default_factory=Counter)


class Scheduler:
    """Owner of sequences between arrival and end, of rows, and of KV blocks."""

    def __init__(
        self,
        *,
        table: SequenceTable,
        pool: BlockPool,
        block_size: int,
        max_num_batched_tokens: int,
        enable_prefix_caching: bool,
        eos_token_ids: tuple[int, ...],
    ) -> None:
        self.counts = SchedulerCounts()
        self._table = table
        self._pool = pool
        self._block_size = block_size
        self._max_num_batched_tokens = max_num_batched_tokens
        self._enable_prefix_caching = enable_prefix_caching
        self._eos_token_ids = eos_token_ids
        self._waiting: list[Sequence] = []
        """A heap by order. Ended sequences stay in it until they come up."""
        self._held: list[Sequence] | None = None
        """Samples that must not start, while there is such a thing; else None."""
        self._prefilling: list[Sequence] = []
        self._block_copies: dict[int, int] = {}
        self._started: list[RequestState] = []
        self.set_weight_version(0)

    @property
    def num_waiting(self) -> int:
        """Samples without a row."""
        return self.counts.states[SequenceState.WAITING] + self.counts.states[SequenceState.FOLLOWING]

    @property
    def num_running(self) -> int:
        """Samples with a row."""
        return self.counts.states[SequenceState.RUNNING]

    def add(self, sequences: list[Sequence]) -> None:
        """Take the samples of one request. One leads, and the others follow it: the one with the fewest
        tokens, because a sample without tokens can share what it computed with all others."""
        leader, *followers = sorted(sequences, key=lambda sequence: len(sequence.history))
        leader.followers = followers
        self.counts.states[SequenceState.WAITING] += 1
        if self._held is not None:
            self._held.append(leader)
        else:
            heapq.heappush(self._waiting, leader)
        for follower in followers:
            follower.state = SequenceState.FOLLOWING
            self.counts.states[SequenceState.FOLLOWING] += 1

    def hold_unstarted(self) -> None:
        """Start no request any more; those that have started go on."""
        held = [sequence for sequence in self._waiting if not sequence.owner.has_started]
        self._held = held + (self._held or [])
        self._waiting = [sequence for sequence in self._waiting if sequence.owner.has_started]
        heapq.heapify(self._waiting)

    def release_held(self) -> None:
        """Let all requests start again."""
        for sequence in self._held or []:
            heapq.heappush(self._waiting, sequence)
        self._held = None

    def schedule(self) -> ScheduledStep:
        """Decide the next step, and take the rows and blocks that it needs. Asks for no token of the step in
        flight, but drops those of samples that it preempts."""
        self._block_copies, self._started = {}, []
        decode_rows = self._grow_decoding()
        budget = self._max_num_batched_tokens - len(decode_rows)
        chunks: list[Chunk] = []
        under_way = iter(self._prefilling.copy())
        while budget > 0 and (sequence := next(under_way, None) or self._admit_next()) is not None:
            chunks.append(self._next_chunk(sequence, budget))
            budget -= chunks[-1].end - chunks[-1].start
        self.counts.num_prefill_chunks += len(chunks)
        self.counts.num_partial_chunks += sum(not chunk.completes for chunk in chunks)
        self.counts.num_block_copies += len(self._block_copies)
        started = tuple(self._started)
        return ScheduledStep(
            decode_rows=decode_rows, chunks=tuple(chunks), block_copies=self._block_copies, started=started
        )

    def may_preempt(self) -> bool:
        """Whether the next step could run out of blocks. Reading the tokens in flight first may then end samples,
        and otherwise leaves the one that loses its blocks with all its tokens."""
        return len(self._needy(self._table.decode_rows())) > self._pool.num_free

    def complete_chunks(self, step: ScheduledStep) -> None:
        """Note that the chunks of the step are computed: blocks that became full get their names, finished
        prefills decode."""
        for chunk in step.chunks:
            chunk.sequence.num_computed = chunk.end
            self._publish(chunk.sequence, chunk.end)
            if chunk.completes:
                self._prefilling.remove(chunk.sequence)
                self._table.decoding[chunk.sequence.row] = True

    def complete_decoding(self, rows_D: NDArray[np.intp], num_computed_D: NDArray[np.int32]) -> None:
        """Note that a step has computed the last of so many tokens of decoding rows, all known: blocks that
        became full get their names."""
        for place in np.flatnonzero(num_computed_D % self._block_size == 0).tolist():
            self._publish(self._table.sequence(int(rows_D[place])), int(num_computed_D[place]))

    def release_followers(self, leaders: Iterable[Sequence]) -> dict[Sequence, Sequence]:
        """Let the followers of some samples go on from the prompts that these have just computed.

        Followers without tokens fork, as far as there are rows: they share all blocks of the leader, and their
        first token comes from the same logits. Those are returned, each with its leader. All others wait.
        """
        leader_of: dict[Sequence, Sequence] = {}
        for leader in leaders:
            for follower in leader.followers:
                has_row = len(leader_of) < self._table.num_free
                if has_row and leader.num_tokens == follower.num_tokens == len(leader.owner.prompt):
                    leader_of[follower] = leader
                else:
                    self._wait(follower)
            leader.followers = []
        self._fork(leader_of)
        return leader_of

    def end(self, *sequences: Sequence) -> None:
        """Take back everything that some sequences have. Their histories stay."""
        self._take_back(*(sequence for sequence in sequences if sequence.state is SequenceState.RUNNING))
        for sequence in sequences:
            self._move(sequence, SequenceState.ENDED)

    def set_weight_version(self, version: int, *, recompute: bool = False) -> None:
        """Everything cached so far is of the past: no prefix is found any more, and what decoding sequences
        have computed is never shared by name. They keep it and go on, or, with ``recompute``, are computed anew from
        their tokens, all of which must be known. Prompts under way begin anew, so that the keys and values of a prompt,
        and its scores, are of one version."""
        self._weight_version = version
        self._pool.forget_all()
        for sequence in list(self._prefilling):
            self._send_back(sequence)
        for sequence in self._waiting + (self._held or []):
            if sequence.owner.must_score_prompt and sequence.owner.prompt_scores is not None:
                sequence.owner.prompt_scores.restart()
        if recompute:
            self._recompute_decoding()
        for sequence in self._table.running():
            sequence.names_version = None

    def _recompute_decoding(self) -> None:
        """Send all decoding sequences back. Of each request one leads, so that their prompt is computed once."""
        leaders: dict[str, Sequence] = {}
        for sequence in sorted(self._table.running()):
            leader = leaders.get(sequence.owner.request.id)
            if leader is None or not self._enable_prefix_caching:
                leaders[sequence.owner.request.id] = sequence
                self._send_back(sequence)
                continue
            self._take_back(sequence)
            sequence.was_preempted = True
            self._move(sequence, SequenceState.FOLLOWING)
            leader.followers.append(sequence)

    def check_idle(self) -> None:
        """Assert that no sample is left, and that none has kept a block or a row. Takes little time."""
        assert (self.num_running, self.num_waiting, self._table.num_free) == (0, 0, len(self._table.num_tokens))
        self._pool.check_all_free()

    def check_integrity(self) -> None:
        """Assert that every block and row is held by whom it must be, and by nobody else."""
        running = self._table.running()
        self._pool.check_integrity(Counter(block for sequence in running for block in sequence.blocks))
        assert len(running) == self.num_running
        assert len(running) + self._table.num_free == len(self._table.num_tokens)
        for sequence in running:
            num_tokens = int(self._table.num_tokens[sequence.row])
            assert sequence.state is SequenceState.RUNNING
            assert len(sequence.blocks) * self._block_size >= num_tokens - 1
            assert self._table.block_tables[sequence.row, : len(sequence.blocks)].tolist() == sequence.blocks
            assert (sequence in self._prefilling) != bool(self._table.decoding[sequence.row])
            self._check_names(sequence)
        waiting = [each for each in self._waiting + (self._held or []) if each.state is SequenceState.WAITING]
        assert len(waiting) == self.counts.states[SequenceState.WAITING]
        assert all(not sequence.blocks and sequence.row < 0 for sequence in waiting)
        num_followers = sum(len(leader.followers) for leader in running + waiting)
        assert num_followers == self.counts.states[SequenceState.FOLLOWING], "a follower has no leader"

    def _check_names(self, sequence: Sequence) -> None:
        """Assert that blocks go by the names of what is computed in them, by the weights of now."""
        num_known, num_tokens = self._table.num_known[sequence.row], self._table.num_tokens[sequence.row]
        num_computed = sequence.num_computed if sequence in self._prefilling else min(num_known, num_tokens - 1)
        names: list[bytes] = []
        token_ids = self._table.token_ids[sequence.row, :num_computed]
        extend_chain(names, self._root_of(sequence), token_ids, self._block_size)
        for index, block in enumerate(sequence.blocks):
            name = self._pool.name_of(block)
            is_right = index < len(names) and name == names[index] and sequence.names_version == self._weight_version
            assert name is None or is_right, f"block {block} goes by the name of something else"

    def _needy(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Those of the decoding rows whose next token needs a block: a new one, or a copy of one that is shared."""
        positions = self._table.num_tokens[rows] - 1
        is_shared = self._pool.reference_counts[self._table.block_tables[rows, positions // self._block_size]] > 1
        needy: NDArray[np.intp] = rows[(positions % self._block_size == 0) | is_shared]
        return needy

    def _grow_decoding(self) -> NDArray[np.intp]:
        """Give the decoding rows the blocks that they need; returns those rows that are left."""
        rows, num_departures = self._table.decode_rows(), self._table.num_departures
        for sequence in sorted(map(self._table.sequence, self._needy(rows).tolist()), key=lambda each: each.order):
            if sequence.state is SequenceState.RUNNING:
                self._grow(sequence)
        return rows if self._table.num_departures == num_departures else self._table.decode_rows()

    def _grow(self, sequence: Sequence) -> None:
        """Give a decoding sequence the block that its next token is written to, its own."""
        index = (int(self._table.num_tokens[sequence.row]) - 1) // self._block_size
        while True:
            shared = sequence.blocks[index] if index < len(sequence.blocks) else None
            if shared is not None and self._pool.reference_counts[shared] == 1:
                return
            if self._pool.num_free:
                break
            victim = max(self._table.running())
            self._preempt(victim)
            if victim is sequence:
                return
        block = self._pool.allocate()
        if shared is None:
            sequence.blocks.append(block)
        else:
            self._block_copies[block] = shared
            sequence.blocks[index] = block
            self._pool.release([shared])
        self._table.block_tables[sequence.row, index] = block

    def _admit_next(self) -> Sequence | None:
        """Give the first waiting sequence a row and the blocks of all its tokens, if there are enough."""
        while self._waiting and self._waiting[0].state is not SequenceState.WAITING:
            heapq.heappop(self._waiting)
        if not self._waiting or not self._table.num_free:
            return None
        sequence = self._waiting[0]
        cached, num_blocks = self._cached_blocks(sequence), -(-sequence.num_tokens // self._block_size)
        num_taken = num_blocks - len(cached) + sum(map(self._pool.is_free, cached))
        # Those that run, and those that follow, will want a block soon; leaving them some avoids preemption.
        reserve = min(self.num_running + len(sequence.followers), self._pool.num_blocks // 8) if self.num_running else 0
        if self._pool.num_free - num_taken < reserve:
            return None
        heapq.heappop(self._waiting)
        for block in cached:
            self._pool.share(block)
        sequence.blocks = cached + [self._pool.allocate() for _ in range(num_blocks - len(cached))]
        sequence.num_computed = sequence.num_published_tokens = len(cached) * self._block_size
        self._count_lookup(sequence)
        self._table.take(sequence, self._eos_token_ids)
        self._move(sequence, SequenceState.RUNNING)
        if not sequence.owner.has_started:
            sequence.owner.has_started = True
            self._started.append(sequence.owner)
        self._prefilling.append(sequence)
        return sequence

    def _count_lookup(self, sequence: Sequence) -> None:
        """Count what a sample that is about to start found in the prefix cache. One that was preempted is not counted
        again: it finds what it made itself."""
        owner = sequence.owner
        if not owner.has_started:
            owner.num_cached_tokens = min(sequence.num_computed, len(owner.prompt))
        if sequence.was_preempted:
            self.counts.num_recovered_tokens += sequence.num_computed
            return
        sequence.num_prefilled_tokens = sequence.num_tokens - sequence.num_computed
        if self._enable_prefix_caching and not owner.must_score_prompt:
            self.counts.prefix_queries += sequence.num_tokens
            self.counts.prefix_hits += sequence.num_computed

    def _cached_blocks(self, sequence: Sequence) -> list[int]:
        """The blocks of the longest cached prefix. The last token is always computed: its logits are wanted."""
        if not self._enable_prefix_caching:
            return []
        if sequence.names_version != self._weight_version:
            sequence.names_version = self._weight_version
            sequence.block_names = []
        token_ids = np.concatenate([sequence.owner.prompt, sequence.history.token_ids])
        extend_chain(sequence.block_names, self._root_of(sequence), token_ids, self._block_size)
        num_usable = 0 if sequence.owner.must_score_prompt else (len(token_ids) - 1) // self._block_size
        blocks: list[int] = []
        for name in sequence.block_names[:num_usable]:
            block = self._pool.find(name)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _root_of(self, sequence: Sequence) -> bytes:
        return root_hash(self._weight_version, sequence.owner.request.cache_salt, sequence.owner.adapter_id)

    def _publish(self, sequence: Sequence, num_computed: int) -> None:
        """Name the blocks that are full now, so that other sequences find them."""
        if not self._enable_prefix_caching or sequence.names_version != self._weight_version:
            return
        token_ids = self._table.token_ids[sequence.row, :num_computed]
        extend_chain(sequence.block_names, self._root_of(sequence), token_ids, self._block_size)
        for index in range(sequence.num_published_tokens // self._block_size, num_computed // self._block_size):
            self._pool.publish(sequence.blocks[index], sequence.block_names[index])
        sequence.num_published_tokens = num_computed

    def _next_chunk(self, sequence: Sequence, budget: int) -> Chunk:
        start, num_tokens = sequence.num_computed, sequence.num_tokens
        end = min(num_tokens, start + budget)
        return Chunk(sequence=sequence, start=start, end=end, completes=end == num_tokens)

    def _fork(self, leader_of: Mapping[Sequence, Sequence]) -> None:
        for leader, num_followers in Counter(leader_of.values()).items():
            for block in leader.blocks:
                self._pool.share(block, times=num_followers)
        for follower, leader in leader_of.items():
            follower.blocks = list(leader.blocks)
            follower.block_names = list(leader.block_names)
            follower.names_version = leader.names_version
            follower.num_published_tokens = leader.num_published_tokens
            self._move(follower, SequenceState.RUNNING)
        self._table.take_as(leader_of)
        self.counts.num_forks += len(leader_of)

    def _preempt(self, victim: Sequence) -> None:
        self._send_back(victim)
        victim.num_preemptions += 1
        self.counts.num_preemptions += 1

    def _send_back(self, sequence: Sequence) -> None:
        """Have a running sequence wait, and be computed from its first token on."""
        self._take_back(sequence)
        sequence.was_preempted = True
        self._wait(sequence)

    def _take_back(self, *sequences: Sequence) -> None:
        self._table.give_back(sequences)
        self._prefilling = [sequence for sequence in self._prefilling if sequence.row >= 0]
        for sequence in sequences:
            self._pool.release(sequence.blocks)
            sequence.blocks = []

    def _wait(self, sequence: Sequence) -> None:
        self._move(sequence, SequenceState.WAITING)
        heapq.heappush(self._waiting, sequence)

    def _move(self, sequence: Sequence, state: SequenceState) -> None:
        self.counts.states[sequence.state] -= 1
        sequence.move(state)
        self.counts.states[state] += 1
