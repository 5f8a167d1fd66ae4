"""What a run may grow by: ``scale_out`` of its configuration, at its prices."""

from __future__ import annotations

from rlserve.config.tree import RunConfig
from rlserve.manager.policies.base import GangFigures
from rlserve.manager.scale_out.base import NodeType, Terms
from rlserve.roofline.accelerators import is_spot, slot_type
from rlserve.tracking.cost.prices import Prices


def growth_terms(config: RunConfig, prices: Prices | None) -> Terms:
    """As configured; that it fits the rest was checked before."""
    asks = config.scale_out
    return Terms(
        types=tuple(_node_type(config, name, prices) for name in asks.max_slots),
        by_rates=config.deciding.policy == "rate_matching",
        min_return=asks.min_return,
        money_per_hour=asks.money_per_hour,
        grow_after_s=asks.grow_after_s,
        shrink_after_s=asks.shrink_after_s,
        cooldown_s=asks.cooldown_s,
        node_timeout_s=asks.node_timeout_s,
        retry_after_s=asks.retry_after_s,
    )


def _node_type(config: RunConfig, name: str, prices: Prices | None) -> NodeType:
    num_slots, kind = config.scale_out.node_slots(name), slot_type(name)
    price = None if prices is None else prices.of(name)
    return NodeType(
        name=name,
        num_gangs=num_slots // config.rollout.engine.tensor_parallel_size,
        num_slots=num_slots,
        min_nodes=-(-_least_slots(config, name) // num_slots),
        max_nodes=config.scale_out.max_slots[name] // num_slots,
        price_per_hour=None if price is None else price * num_slots,
        figures=GangFigures(memory_bandwidth_gb_s=kind.memory_bandwidth_gb_s, flops_tflops=kind.flops_tflops),
        may_train=config.pool.train_on_spot or not is_spot(name),
    )


def _least_slots(config: RunConfig, name: str) -> int:
    """Of a type, those that are never given back."""
    listed = 0 if config.pool.slots == "auto" else sum(each.count for each in config.pool.slots if each.type == name)
    return max(listed, config.scale_out.min_slots.get(name, 0))
