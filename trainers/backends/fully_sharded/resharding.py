"""Shards move to the ranks of a new group, in memory.

Every rank may bring another cut: the whole initial state, rows of the last group's, or nothing. What it held before
stays as it is until all have everything, so a group that breaks meanwhile loses nothing but the rank that it lost. But
a lost rank's rows are nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rlserve.errors import StateLostError
from rlserve.trainers.backends.fully_sharded.layout import Cut, ShardedTensor
from rlserve.trainers.backends.fully_sharded.state import HeldShards, ShardedState
from rlserve.trainers.backends.pytorch.state import MOMENTS
from rlserve.trainers.base import Membership, Traffic
from rlserve.trainers.elastic.base import Group, LocalGroup
from rlserve.trainers.elastic.exchange import carry_out, exchange_notes
from rlserve.trainers.elastic.intervals import Interval, Intervals, intersection
from rlserve.trainers.elastic.standing import NOTHING, Standing, common_step, settled
from rlserve.trainers.elastic.transfers import Transfer, missing, plan_transfers, traffic_of

_EMPTY = Standing(num_steps=NOTHING, num_updates=0, shards=(), has_all_parameters=False)


def reshard(state: ShardedState, group: Group, membership: Membership, device: torch.device) -> Traffic:
    """Bring a rank to where the group stands, with its rows of everything, and tell what all send for that. All ranks
    call this together.

    Raises:
        StateLostError: some rows are nowhere any more; on all ranks. Nothing was changed.
        WorkerFailedError: a rank was lost.
    """
    standing, cut = _standing(state), state.cut
    note = {"standing": standing.note(), "cut": None if cut is None else [cut.rank, cut.num_ranks]}
    notes = exchange_notes(group, note, device)
    standings = [Standing.from_note(note["standing"]) for note in notes]
    cuts = [None if note["cut"] is None else Cut(rank=note["cut"][0], num_ranks=note["cut"][1]) for note in notes]
    common = common_step(standings)
    _check_whole(state, cuts, membership)
    if state.held is not None:
        state.held.progress.settle(common)
    standings = [settled(standing, common.num_steps) for standing in standings]

    num_holders = membership.num_ranks - membership.num_leaving
    new_cuts = [Cut(rank=rank, num_ranks=num_holders) if rank < num_holders else None for rank in range(len(notes))]
    if new_cuts == cuts:
        assert state.held is not None
        state.held.progress.stand(common)
        return Traffic()
    new_cut = new_cuts[group.rank]
    held = None if new_cut is None else state.new_shards(new_cut)
    traffic = _carry_out(state, held, group, cuts, new_cuts, moment=None, device=device)
    if common.num_updates > 0:  # until then moments are zeros
        for moment in MOMENTS.values():
            traffic += _carry_out(state, held, group, cuts, new_cuts, moment=moment, device=device)
    exchange_notes(group, "received", device)
    if held is not None:
        held.progress.stand(common)
        state.hold(held)
    return traffic


def cut_up_alone(state: ShardedState, device: torch.device) -> None:
    """Take the initial state to the device of a rank on its own."""
    cut = Cut(rank=0, num_ranks=1)
    held = state.new_shards(cut)
    _carry_out(state, held, LocalGroup(), [cut], [cut], moment=None, device=device)
    state.hold(held)


def _standing(state: ShardedState) -> Standing:
    if state.held is not None:
        return state.held.progress.standing()
    if state.initial is None:
        return _EMPTY
    return Standing(num_steps=0, num_updates=0, shards=(), has_all_parameters=True, carried=state.initially_carried)


def _check_whole(state: ShardedState, cuts: Sequence[Cut | None], membership: Membership) -> None:
    everything = [(tensor.elements,) for tensor in state.layout.tensors]
    for tensor, wanted in zip(state.layout.tensors, everything, strict=True):
        if missing([tensor.held(cut) for cut in cuts], [wanted]):
            num_before = max(cut.num_ranks for cut in cuts if cut is not None)
            there = {cut.rank for cut in cuts if cut is not None and cut.num_ranks == num_before}
            lost = ", ".join(str(rank) for rank in range(num_before) if rank not in there)
            raise StateLostError(
                f"trainer group {membership.generation}: rank {lost} of {num_before} is not there any more, and with "
                "trainer.sharding=full its shard of parameters and optimizer state is nowhere else"
            )


def _carry_out(
    state: ShardedState,
    held: HeldShards | None,
    group: Group,
    cuts: Sequence[Cut | None],
    new_cuts: Sequence[Cut | None],
    *,
    moment: str | None,
    device: torch.device,
) -> Traffic:
    """Send what has a new holder: all parameters, or one moment. ``held`` is filled."""
    plan: list[Transfer] = []
    traffic = Traffic()
    for tensor in state.layout.trained if moment else state.layout.tensors:
        present = [tensor.held(cut) for cut in cuts]
        wanted = [tensor.held(cut) for cut in new_cuts]
        of_tensor = plan_transfers(present, wanted)
        plan += of_tensor
        traffic += traffic_of(of_tensor, present, wanted)
        for kept in _common(present[group.rank], wanted[group.rank]):
            assert held is not None
            _write(held, tensor, kept, state.read(kept, moment), moment)

    def write(elements: Interval, values: Tensor) -> None:
        assert held is not None
        _write(held, state.layout.at(elements)[0], elements, values, moment)

    carry_out(group, plan, lambda elements: state.read(elements, moment).to(device), write, device=device)
    return traffic


def _write(held: HeldShards, tensor: ShardedTensor, elements: Interval, values: Tensor, moment: str | None) -> None:
    first = tensor.elements.first + tensor.part(held.shards.cut).first
    held.rows(tensor, moment)[elements.first - first : elements.end - first].copy_(values)


def _common(present: Intervals, wanted: Intervals) -> Iterator[Interval]:
    for one in present:
        for other in wanted:
            common = intersection(one, other)
            if common.num_elements:
                yield common
