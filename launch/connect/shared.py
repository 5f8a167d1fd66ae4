"""A cluster that several runs share: the slots that this one begins with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import ray

from rlserve.config.sharing_checks import num_gangs_needed
from rlserve.config.tree import RunConfig
from rlserve.controller.shared_pool import within
from rlserve.pool.config import PoolConfig, SlotGroupConfig
from rlserve.pool.discovery import count_slots
from rlserve.pool.gangs import Gang, Node
from rlserve.pool.sharing.broker import BrokerClient
from rlserve.pool.sharing.member import Member, claim_of
from rlserve.pool.slots import slot_groups

logger = logging.getLogger(__name__)


def join_others(config: RunConfig, name: str, show: Callable[[str], None]) -> Member | None:
    """Wait until the floor of this run is free in the joined cluster; None where it shares with nobody. What it is
    given is its until it is closed.

    Raises:
        PoolError: the floor was not free in time.
    """
    if not config.pool.share.enabled:
        return None
    claim = claim_of(
        config.pool,
        name=name,
        job_id=ray.get_runtime_context().get_job_id(),
        gang_size=config.rollout.engine.tensor_parallel_size,
        num_gangs_needed=num_gangs_needed(config),
    )
    member = Member(BrokerClient(), claim)

    def tell(obstacle: str) -> None:
        logger.warning("waiting for slots of the cluster that is shared: %s", obstacle)
        show("waiting for slots of the shared cluster")

    try:
        member.wait_for_floor(config.pool.share.wait_s, tell)
    except BaseException:
        member.close()
        raise
    return member


def as_given(config: RunConfig, gangs: Sequence[Gang]) -> RunConfig:
    """The configuration of a run that begins with fewer gangs than the cluster would make: of those, one trains at
    least."""
    wanted = config.pool.num_initial_rollout
    if wanted is None or not config.pool.share.enabled or wanted < len(gangs) or len(gangs) < 2:
        return config
    return replace(config, pool=replace(config.pool, num_initial_rollout=len(gangs) - 1))


def first_slots(
    config: PoolConfig, groups: tuple[SlotGroupConfig, ...], nodes: Sequence[Node], member: Member
) -> tuple[tuple[SlotGroupConfig, ...], tuple[Node, ...]]:
    """Groups and nodes as the run sees them at its start: with what it was given of them."""
    nodes = within(nodes, member.allowance.slots)
    if config.slots != "auto":
        return groups, nodes
    return slot_groups(config, {name: count for name, count in count_slots(nodes).items() if count}), nodes
