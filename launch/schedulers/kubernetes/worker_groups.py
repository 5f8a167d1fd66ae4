"""The groups of pods of a run, those that Ray's autoscaler may change included. Pure.

::

    pool.slots ──► NodeGroup each ──┬── a type that the run may grow by: all of its pods are one group ──► min … max
                                    └── any other ──► as many pods as its slots fill
    scale_out.max_slots ──► types that pool.slots lacks ──► a group without pods at first ──► min … max
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlserve.config import RunConfig
from rlserve.errors import UserError
from rlserve.launch.config import LaunchConfig
from rlserve.launch.schedulers.plan import NodeGroup, node_group, node_groups
from rlserve.manager.scale_out.config import ScaleOutConfig
from rlserve.pool.config import SlotGroupConfig
from rlserve.pool.discovery import accelerator_marker
from rlserve.roofline.accelerators import is_cpu


@dataclass(frozen=True, kw_only=True)
class WorkerGroup:
    """Like pods, each of which is a node of the run's Ray cluster."""

    nodes: NodeGroup
    """Those that the run begins with; none, where it only grows by them."""
    min_nodes: int
    max_nodes: int
    resources: Mapping[str, int]
    """What Ray is told of a pod beside its CPUs and GPUs. Its autoscaler must know the types of GPUs of pods that are
    not there yet, which Ray sees only once they are."""

    @property
    def may_grow(self) -> bool:
        """Whether the run may ask for more."""
        return self.max_nodes > self.nodes.num_nodes


def worker_groups(config: RunConfig) -> tuple[WorkerGroup, ...]:
    """Of a run that is a job of Kubernetes.

    Raises:
        UserError: as :func:`~rlserve.launch.schedulers.plan.node_groups`; or the slots of a type that the run may grow
            by do not fill pods.
    """
    asks, launch = config.scale_out, config.launch
    listed = node_groups(config.pool, launch)
    if not asks.is_enabled:
        return tuple(
            WorkerGroup(
                nodes=group,
                min_nodes=0 if group.is_spot else group.num_nodes,
                max_nodes=group.num_nodes,
                resources=group.resources,
            )
            for group in listed
        )
    fixed = [
        WorkerGroup(
            nodes=group,
            # The autoscaler brings back what is below the least, and nothing else: not even on spot machines is it 0.
            min_nodes=group.num_nodes,
            max_nodes=group.num_nodes,
            resources=_marked(group),
        )
        for group in listed
        if group.type not in asks.max_slots
    ]
    return (*fixed, *(_growing(config, name) for name in asks.max_slots))


def _growing(config: RunConfig, name: str) -> WorkerGroup:
    """All pods of a type that the run may grow by."""
    asks, launch = config.scale_out, config.launch
    _check_node(asks, launch, name)
    assert config.pool.slots != "auto"
    same = [(number, group) for number, group in enumerate(config.pool.slots) if group.type == name]
    number, like = same[0] if same else (len(config.pool.slots) + list(asks.max_slots).index(name), None)
    per_node, count = asks.node_slots(name), sum(group.count for _, group in same)
    if count % per_node:
        raise UserError(
            f"scale_out.slots_per_node of {name} must divide the {count} slots of that type in pool.slots, "
            f"got {per_node}"
        )
    one = replace(like or SlotGroupConfig(type=name, count=per_node, prefer="rollout"), count=per_node)
    nodes = replace(
        node_group(number, one, launch),
        num_nodes=count // per_node,
    )
    least = max(count, asks.min_slots.get(name, 0))
    return WorkerGroup(
        nodes=nodes,
        min_nodes=-(-least // per_node),
        max_nodes=asks.max_slots[name] // per_node,
        resources=_marked(nodes),
    )


def _check_node(asks: ScaleOutConfig, launch: LaunchConfig, name: str) -> None:
    if not is_cpu(name) and asks.node_slots(name) > launch.gpus_per_node:
        raise UserError(
            f"scale_out.slots_per_node of {name} must be at most launch.gpus_per_node ({launch.gpus_per_node}), "
            f"got {asks.node_slots(name)}"
        )


def _marked(group: NodeGroup) -> Mapping[str, int]:
    return {**group.resources, **({accelerator_marker(group.type): 1} if group.is_gpu else {})}
