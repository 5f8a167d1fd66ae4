"""What a run may grow by, from its configuration and its prices, and what asks for it."""

from __future__ import annotations

from collections.abc import Callable

from rlserve.config.tree import RunConfig
from rlserve.controller.context import RunContext
from rlserve.controller.departures import Departures
from rlserve.controller.gang_book import GangBook
from rlserve.controller.ports import Ports
from rlserve.controller.scale_out import Growth, ScaleOut
from rlserve.controller.setup import RunSetup
from rlserve.manager.policies.base import Observation
from rlserve.manager.scale_out.base import NodeType, Terms
from rlserve.roofline.accelerators import slot_type
from rlserve.tracking.cost.prices import Prices


def scale_out_of(
    run: RunContext,
    setup: RunSetup,
    ports: Ports,
    book: GangBook,
    departures: Departures,
    *,
    observe: Callable[[], Observation],
) -> ScaleOut | None:
    """What asks for nodes; None where the run does not grow."""
    if ports.request_nodes is None:
        return None
    growth = growth_of(setup.config, setup.prices)
    return ScaleOut(
        run,
        book,
        departures,
        growth,
        observe=observe,
        request=ports.request_nodes,
        interval_s=setup.config.manager.interval_s,
    )


def growth_of(config: RunConfig, prices: Prices | None) -> Growth:
    """The terms of ``scale_out``; that they fit the rest was checked before."""
    asks = config.scale_out
    return Growth(
        terms=Terms(
            types=tuple(_node_type(config, name, prices) for name in asks.max_slots),
            money_per_hour=asks.money_per_hour,
            grow_after_s=asks.grow_after_s,
            shrink_after_s=asks.shrink_after_s,
            cooldown_s=asks.cooldown_s,
            node_timeout_s=asks.node_timeout_s,
            retry_after_s=asks.retry_after_s,
        ),
        min_return=asks.min_return,
        by_rates=config.deciding.policy == "rate_matching",
        train_on_spot=config.pool.train_on_spot,
        prices=prices,
    )


def _node_type(config: RunConfig, name: str, prices: Prices | None) -> NodeType:
    num_slots = config.scale_out.node_slots(name)
    price = None if prices is None else prices.of(name)
    return NodeType(
        name=name,
        num_gangs=num_slots // config.rollout.engine.tensor_parallel_size,
        num_slots=num_slots,
        min_nodes=-(-least_slots(config, name) // num_slots),
        max_nodes=config.scale_out.max_slots[name] // num_slots,
        price_per_hour=None if price is None else price * num_slots,
        figure=slot_type(name).memory_bandwidth_gb_s * num_slots,
    )


def least_slots(config: RunConfig, name: str) -> int:
    """Of a type, those that are never given back."""
    listed = 0 if config.pool.slots == "auto" else sum(each.count for each in config.pool.slots if each.type == name)
    return max(listed, config.scale_out.min_slots.get(name, 0))
