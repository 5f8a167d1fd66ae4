"""Makes what keeps a run in step with its cluster: nodes that come and go, and other runs that share them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rlserve.controller.context import RunContext
from rlserve.controller.departures import Departures
from rlserve.controller.gang_book import GangBook
from rlserve.controller.node_watch import NodeWatch, PoolChanges, plan_changes
from rlserve.controller.ports import Ports
from rlserve.controller.recovery import Recovery
from rlserve.controller.scale_out import ScaleOut
from rlserve.controller.setup import RunSetup, worker_spec
from rlserve.controller.shared_pool import CLAIM_INTERVAL_S, SharedPool
from rlserve.controller.slot_need import SlotNeed
from rlserve.pool.gangs import Gang


def cluster_side(
    run: RunContext,
    setup: RunSetup,
    ports: Ports,
    book: GangBook,
    recovery: Recovery,
    departures: Departures,
    scale_out: ScaleOut | None,
    need: SlotNeed,
) -> NodeWatch | None:
    """None where the slots stay as they are."""
    if ports.nodes is None:
        return None
    config, fleet = setup.config, ports.fleet
    nodes, interval_s = ports.nodes, config.manager.interval_s
    if ports.sharing is not None:
        shared = SharedPool(
            run,
            book,
            departures,
            sharing=ports.sharing,
            nodes=ports.nodes,
            useful=need.useful,
            lend_timeout_s=config.pool.switch_timeout_s + config.trainer.step_timeout_s,
        )
        nodes, interval_s = shared.nodes, min(interval_s, CLAIM_INTERVAL_S)

    async def start(gang: Gang) -> None:
        await fleet.start([(slot, worker_spec(setup, slot)) for slot in gang.slots])

    plan: Callable[..., PoolChanges] = partial(
        plan_changes,
        wanted=config.pool.slots,
        gang_size=config.rollout.engine.tensor_parallel_size,
        auto_prefer=config.pool.auto_prefer,
    )
    return NodeWatch(
        run,
        book,
        recovery,
        departures,
        nodes=nodes,
        plan=plan if scale_out is None else partial(scale_out.changes, plan),
        start=start,
        interval_s=interval_s,
    )
