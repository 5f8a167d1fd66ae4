"""A rank takes its place in a new group: agrees on the step, and gets what it should hold from those who have it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlserve.errors import StateLostError
from rlserve.trainers.backends.pytorch.optimizer import Moments, joined, rearranged
from rlserve.trainers.backends.pytorch.state import TrainingState
from rlserve.trainers.base import Membership
from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.exchange import carry_out, exchange_notes
from rlserve.trainers.elastic.holdings import Holdings
from rlserve.trainers.elastic.intervals import Interval, Intervals, difference, intersection
from rlserve.trainers.elastic.standing import NOTHING, Standing, common_step, settled
from rlserve.trainers.elastic.transfers import missing, plan_transfers


def reshard(state: TrainingState, group: Group, membership: Membership) -> None:
    """Bring a rank to where the group stands. All ranks call this together.

    What a rank held before stays as it is until all have everything, so a group that breaks meanwhile loses nothing
    but the rank that it lost.

    Raises:
        StateLostError: no rank is left that holds some shard; on all ranks.
        WorkerFailedError: a rank was lost.
    """
    device = state.flat.vector.device
    notes = exchange_notes(group, state.progress.standing().note(), device)
    standings = [Standing.from_note(note) for note in notes]
    common = common_step(standings)
    state.progress.settle(common)
    standings = [settled(standing, common.num_steps) for standing in standings]
    holdings = Holdings(
        num_elements=state.flat.vector.numel(),
        num_holders=membership.num_ranks - membership.num_leaving,
        gang_size=membership.gang_size,
    )
    wanted = [holdings.held_by(rank) for rank in range(group.num_ranks)]
    present = [standing.shards for standing in standings]
    if common.num_updates == 0 and all(each.has_all_parameters for each in standings if each.num_steps != NOTHING):
        # Nothing is trained yet: all moments are zeros, which need be neither sent nor kept.
        state.optimizer.hold(())
        present = [()] * group.num_ranks
    else:
        _check_whole(present, holdings, membership)

    _fill_parameters(state, group, standings, holdings)
    old = state.optimizer.moments
    new = _received_moments(state, group, present, wanted)
    kept = [
        moments.part(rest)
        for moments in old
        for rest in difference([moments.elements], [each.elements for each in new])
    ]
    state.optimizer.hold([*new, *kept])
    state.progress.stand(common)
    exchange_notes(group, "received", device)
    state.optimizer.hold(new)
    state.holdings = holdings


def _check_whole(present: Sequence[Intervals], holdings: Holdings, membership: Membership) -> None:
    lost = sum(part.num_elements for part in missing(present, [_all_of(holdings.num_elements)]))
    if lost:
        raise StateLostError(
            f"trainer group {membership.generation}: no trainer is left that holds {lost / holdings.num_elements:.0%} "
            f"of the optimizer's state, whose two holders were lost together"
        )


def _fill_parameters(state: TrainingState, group: Group, standings: Sequence[Standing], holdings: Holdings) -> None:
    """Every rank that stays has all parameters, and the frozen reference where there is one."""
    stays = [rank < holdings.num_holders for rank in range(group.num_ranks)]
    all_parameters = _all_of(state.flat.vector.numel())
    present = [all_parameters if each.has_all_parameters else each.shards for each in standings]
    wanted = [all_parameters if stay else had for stay, had in zip(stays, present, strict=True)]
    _send(group, present, wanted, state.flat.vector)
    if state.flat_reference is not None:
        everything = _all_of(state.flat_reference.vector.numel())
        present = [() if each.num_steps == NOTHING else everything for each in standings]
        wanted = [everything if stay else had for stay, had in zip(stays, present, strict=True)]
        _send(group, present, wanted, state.flat_reference.vector)


def _send(group: Group, present: Sequence[Intervals], wanted: Sequence[Intervals], vector: Tensor) -> None:
    """Of a vector of which every rank has room for the whole."""

    def write(elements: Interval, values: Tensor) -> None:
        vector[elements.elements] = values

    plan = plan_transfers(present, wanted)
    carry_out(group, plan, lambda elements: vector[elements.elements], write, device=vector.device)


def _received_moments(
    state: TrainingState, group: Group, present: Sequence[Intervals], wanted: Sequence[Intervals]
) -> list[Moments]:
    """The moments of what this rank should hold, beside those that it held."""
    old = state.optimizer.moments
    new = rearranged(old, wanted[group.rank], state.optimizer)
    plan = plan_transfers(present, wanted) if any(present) else ()
    for name in ("first", "second"):

        def read(elements: Interval, name: str = name) -> Tensor:
            return joined(old, elements, name)

        def write(elements: Interval, values: Tensor, name: str = name) -> None:
            for moments in new:
                common = intersection(moments.elements, elements)
                if common.num_elements:
                    part = values[common.first - elements.first : common.end - elements.first]
                    getattr(moments.part(common), name).copy_(part)

        carry_out(group, plan, read, write, device=state.flat.vector.device)
    return new


def _all_of(num_elements: int) -> Intervals:
    return (Interval(0, num_elements),)
