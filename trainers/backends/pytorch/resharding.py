"""A rank takes its place in a new group: agrees on the step, and on what each gets from those who have it."""

from __future__ import annotations

from collections.abc import Sequence

from rlserve.errors import StateLostError
from rlserve.trainers.backends.pytorch.arrival import Agreement, Arrival
from rlserve.trainers.backends.pytorch.state import MOMENTS, TrainingState
from rlserve.trainers.base import Membership, Traffic
from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.exchange import exchange_notes
from rlserve.trainers.elastic.holdings import Holdings
from rlserve.trainers.elastic.intervals import Interval, Intervals
from rlserve.trainers.elastic.standing import NOTHING, Standing, common_step, may_go_on, settled
from rlserve.trainers.elastic.transfers import Transfer, missing, plan_transfers, traffic_of

_NOTHING_TO_SEND: tuple[Sequence[Transfer], Traffic] = ((), Traffic())


def reshard(state: TrainingState, group: Group, membership: Membership) -> tuple[Arrival | None, Traffic]:
    """Bring a rank to where the group stands, and tell what all send for that. All ranks call this together.

    Where ranks join at a boundary, and the group was formed a second time, their state comes in beside the next step:
    the arrival is returned, for the caller to finish. Otherwise everything is there at the end. What a rank held before
    stays as it is until all have everything, so a group that breaks meanwhile loses nothing but the rank that it lost.

    Raises:
        StateLostError: no rank is left that holds some shard; on all ranks.
        WorkerFailedError: a rank was lost.
    """
    notes = exchange_notes(group, state.progress.standing().note(), state.flat.vector.device)
    standings = [Standing.from_note(note) for note in notes]
    common = common_step(standings)
    state.progress.settle(common)
    agreement = _agree([settled(standing, common.num_steps) for standing in standings], common, state, membership)
    arrival = Arrival(state, group, agreement)
    second = group.take_second()
    if second is not None and not membership.num_leaving and may_go_on(standings, gang_size=membership.gang_size):
        arrival.start(second)
        return arrival, agreement.traffic
    if second is not None:
        second.close()
    arrival.finish()
    return None, agreement.traffic


def _agree(standings: Sequence[Standing], common: Standing, state: TrainingState, membership: Membership) -> Agreement:
    holdings = Holdings(
        num_elements=state.flat.vector.numel(),
        num_holders=membership.num_ranks - membership.num_leaving,
        gang_size=membership.gang_size,
    )
    # Nothing is trained yet: all moments are zeros, which need be neither sent nor kept.
    is_new = common.num_updates == 0 and all(each.has_all_parameters for each in standings if each.num_steps != NOTHING)
    present = [standing.shards for standing in standings]
    if not is_new:
        _check_whole(present, holdings, membership)
    reference, traffic = _NOTHING_TO_SEND
    if state.flat_reference is not None:
        everything = _all_of(state.flat_reference.vector.numel())
        reference, traffic = _plan_parameters(
            [() if each.num_steps == NOTHING else everything for each in standings], everything, holdings
        )
    everything = _all_of(holdings.num_elements)
    parameters, of_parameters = _plan_parameters(
        [everything if each.has_all_parameters else each.shards for each in standings], everything, holdings
    )
    moments, of_moments = _NOTHING_TO_SEND
    if not is_new:
        moments, of_moments = _plan(present, [holdings.held_by(rank) for rank in range(len(standings))])
    return Agreement(
        common=common,
        holdings=holdings,
        keeps_moments=not is_new,
        parameters=parameters,
        reference=reference,
        moments=moments,
        traffic=traffic + of_parameters + of_moments * len(MOMENTS),
    )


def _check_whole(present: Sequence[Intervals], holdings: Holdings, membership: Membership) -> None:
    lost = sum(part.num_elements for part in missing(present, [_all_of(holdings.num_elements)]))
    if lost:
        raise StateLostError(
            f"trainer group {membership.generation}: no trainer is left that holds {lost / holdings.num_elements:.0%} "
            f"of the optimizer's state, whose two holders were lost together"
        )


def _plan_parameters(
    present: Sequence[Intervals], everything: Intervals, holdings: Holdings
) -> tuple[Sequence[Transfer], Traffic]:
    """Every rank that stays has all parameters, and the frozen reference where there is one."""
    return _plan(present, [everything if rank < holdings.num_holders else had for rank, had in enumerate(present)])


def _plan(present: Sequence[Intervals], wanted: Sequence[Intervals]) -> tuple[Sequence[Transfer], Traffic]:
    plan = plan_transfers(present, wanted)
    return plan, traffic_of(plan, present, wanted)


def _all_of(num_elements: int) -> Intervals:
    return (Interval(0, num_elements),)
