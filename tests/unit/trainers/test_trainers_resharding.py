"""Ranks that come, leave and are lost between steps and in the middle of one: everybody goes on with the same bits."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_ranks import on_ranks
from torch import Tensor, nn

from rlserve.errors import StateLostError
from rlserve.trainers import Membership, TorchTrainerConfig
from rlserve.trainers.backends.pytorch.optimizer import ShardedAdamW, joined
from rlserve.trainers.backends.pytorch.parameters import FlatParameters
from rlserve.trainers.backends.pytorch.progress import StepProgress
from rlserve.trainers.backends.pytorch.resharding import reshard
from rlserve.trainers.backends.pytorch.state import TrainingState
from rlserve.trainers.elastic.base import Group, LocalGroup
from rlserve.trainers.elastic.holdings import Holdings
from rlserve.trainers.elastic.intervals import Interval, Intervals
from rlserve.trainers.elastic.standing import NOTHING, Standing, common_step, may_go_on

CPU = torch.device("cpu")


class Rank:
    """What of a rank's state takes part in a change of the group: small networks, their optimizer, its progress."""

    def __init__(self, *, holds_state: bool) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0 if holds_state else 1)
            modules = {"policy": nn.Linear(5, 7), "critic": nn.Linear(7, 3)}
        flat = FlatParameters(modules, CPU)
        optimizer = ShardedAdamW(TorchTrainerConfig(learning_rate=0.1, weight_decay=0.01), flat)
        self.everything = Interval(0, flat.vector.numel())
        if holds_state:
            optimizer.hold([optimizer.new_moments(self.everything)])
        self.state: Any = SimpleNamespace(
            flat=flat,
            flat_reference=None,
            optimizer=optimizer,
            progress=StepProgress(flat, optimizer, holds_state=holds_state, carried={}),
            holdings=Holdings(num_elements=flat.vector.numel(), num_holders=1),
        )

    def stage(self, seed: int, *, completes_step: bool) -> None:
        flat, optimizer = self.state.flat, self.state.optimizer
        gradient = torch.randn(flat.vector.shape, generator=torch.Generator().manual_seed(seed))
        parts = optimizer.own_parts(list(flat.segments), gradient)
        self.state.progress.stage(parts, dict.fromkeys(flat.segments, 3.0), completes_step=completes_step)

    def step(self, group: Group, number: int, *, num_updates: int, stop_before: int | None = None) -> None:
        """Up to the last update; ``stop_before`` stages one that it does not apply."""
        self.state.progress.take_back()
        for update in range(num_updates):
            is_last = update == num_updates - 1
            self.stage(10 * number + update, completes_step=is_last)
            if update == stop_before:
                return
            found = {"step": float(number)} if is_last else None
            self.state.progress.apply(found, found)
            if stop_before is None:
                TrainingState.gather_parameters(self.state, group)

    def bits(self) -> tuple[Tensor, dict[tuple[Interval, str], Tensor]]:
        held = {(each.elements, name): getattr(each, name) for each in self.state.optimizer.moments for name in MOMENTS}
        return self.state.flat.vector, held


MOMENTS = ("first", "second")


def regroup(ranks: list[Rank]) -> None:
    def join(group: Group) -> None:
        place = Membership(
            rank=group.rank, num_ranks=len(ranks), host="", port=0, secret="", generation=1, num_leaving=0
        )
        reshard(ranks[group.rank].state, group, place)

    if len(ranks) == 1:
        join(LocalGroup())
    else:
        on_ranks(len(ranks), join)


def together(ranks: list[Rank], number: int, num_updates: int) -> None:
    if len(ranks) == 1:
        ranks[0].step(LocalGroup(), number, num_updates=num_updates)
    else:
        on_ranks(len(ranks), lambda group: ranks[group.rank].step(group, number, num_updates=num_updates))


def assert_like(ranks: list[Rank], alone: Rank) -> None:
    expected = alone.state.optimizer.moments
    for rank in ranks:
        vector, held = rank.bits()
        assert torch.equal(vector, alone.state.flat.vector)
        for (elements, name), values in held.items():
            assert torch.equal(values, joined(expected, elements, name))
        assert rank.state.progress.num_steps == alone.state.progress.num_steps
        assert rank.state.progress.metrics == alone.state.progress.metrics
        assert rank.state.progress.carried == alone.state.progress.carried
        assert rank.state.optimizer.num_updates == alone.state.optimizer.num_updates


@settings(max_examples=25, deadline=None)
@given(
    num_ranks=st.integers(1, 5),
    num_updates=st.integers(1, 3),
    changes=st.lists(
        st.tuples(
            st.sampled_from(["join", "leave", "lose", "lose", "reorder"]),
            st.integers(0, 4),
            st.lists(st.integers(0, 3), min_size=5, max_size=5),
        ),
        min_size=1,
        max_size=5,
    ),
)
def test_ranks_that_change_equal_one_that_does_not(
    num_ranks: int, num_updates: int, changes: list[tuple[str, int, list[int]]]
) -> None:
    """The list of a change says how far each rank got in a step in which one was lost."""
    alone, ranks = Rank(holds_state=True), [Rank(holds_state=index == 0) for index in range(num_ranks)]
    regroup(ranks)
    for number, (change, index, progress) in enumerate(changes):
        together([*ranks], number, num_updates)
        alone.step(LocalGroup(), number, num_updates=num_updates)
        index %= len(ranks)
        if change == "join" and len(ranks) < 5:
            ranks = [*ranks, Rank(holds_state=False)]
        elif change == "reorder":
            ranks = ranks[index:] + ranks[:index]
        elif change == "leave" and len(ranks) > 1:
            ranks = ranks[:index] + ranks[index + 1 :]
        elif change == "lose" and len(ranks) > 1:
            # An update is applied where all have staged it, so nobody is more than one ahead of anybody.
            slowest = min(min(progress), num_updates - 1)
            survivors = [rank for place, rank in enumerate(ranks) if place != index]
            ahead = [progress[place] > slowest for place in range(len(survivors))]
            for rank, is_ahead in zip(survivors, ahead, strict=True):
                stop_before = slowest + is_ahead
                rank.step(LocalGroup(), number + 100, num_updates=num_updates, stop_before=stop_before)
            if slowest == num_updates - 1 and any(ahead):
                alone.step(LocalGroup(), number + 100, num_updates=num_updates)
            ranks = survivors
        regroup(ranks)
        assert_like(ranks, alone)


def test_a_group_that_breaks_while_it_forms_loses_nothing() -> None:
    """One rank has received everything, one nothing yet, and a third is lost."""
    alone, ranks = Rank(holds_state=True), [Rank(holds_state=True), *(Rank(holds_state=False) for _ in range(3))]
    regroup(ranks)
    together(ranks, 0, 1)
    alone.step(LocalGroup(), 0, num_updates=1)
    three = [ranks[0], ranks[2], ranks[3]]  # rank 1 is lost

    def join(group: Group) -> None:
        place = Membership(rank=group.rank, num_ranks=3, host="", port=0, secret="", generation=2)
        optimizer = three[group.rank].state.optimizer
        hold, num_calls = optimizer.hold, 0

        def hold_what_has_come_in(moments: Any) -> None:
            nonlocal num_calls
            num_calls += 1
            if (group.rank, num_calls) == (1, 1):
                hold(moments)

        optimizer.hold = hold_what_has_come_in
        reshard(three[group.rank].state, group, place)
        optimizer.hold = hold

    on_ranks(3, join)
    regroup(three[:2])
    assert_like(three[:2], alone)


def standing(num_steps: int, shards: Intervals = (), *, can_complete: bool = False) -> Standing:
    return Standing(
        num_steps=num_steps, num_updates=0, shards=shards, has_all_parameters=True, can_complete=can_complete
    )


def test_a_rank_that_cannot_come_to_the_step_of_another_is_refused() -> None:
    assert common_step([standing(NOTHING), standing(3), standing(2, can_complete=True)]).num_steps == 3
    with pytest.raises(StateLostError, match="rank 1 holds the state after step 2 and another that after step 3"):
        common_step([standing(3), standing(2)])
    with pytest.raises(StateLostError, match="no trainer is left that holds the state"):
        common_step([standing(NOTHING)])


def test_ranks_step_on_while_others_join_where_no_gang_that_may_be_lost_holds_anything_alone() -> None:
    first, second, third = Interval(0, 16), Interval(16, 32), Interval(32, 48)
    nothing, everything = standing(NOTHING), (first, second, third)
    held_twice = [standing(3, (first, third)), standing(3, (second, first)), standing(3, (third, second))]
    assert may_go_on([*held_twice, nothing], gang_size=1)
    assert not may_go_on(held_twice, gang_size=1), "nobody joins"
    assert not may_go_on([*held_twice[:2], nothing], gang_size=1), "one was lost or has left"
    assert not may_go_on([standing(3, everything), nothing], gang_size=1), "the only one there is"
    alone = [standing(3, (first, second)), standing(3, (third,)), nothing, nothing]
    assert not may_go_on(alone, gang_size=2), "the only gang"
    assert may_go_on([standing(3, everything), standing(3, everything), nothing], gang_size=1)
    assert not may_go_on([*held_twice, standing(3), nothing, nothing], gang_size=2), "a gang has both copies"
    ahead = standing(4, (second, first))
    staged = standing(3, (second, first), can_complete=True)
    incomplete = replace(held_twice[1], has_all_parameters=False)
    for odd in (ahead, staged, incomplete):
        assert not may_go_on([held_twice[0], odd, held_twice[2], nothing], gang_size=1), odd


def test_a_note_is_read_as_it_was_written() -> None:
    found = Standing.from_note(standing(4, (Interval(0, 16), Interval(32, 48)), can_complete=True).note())
    assert found == standing(4, (Interval(0, 16), Interval(32, 48)), can_complete=True)
