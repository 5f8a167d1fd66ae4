"""What accelerators there are: on this machine, or in the Ray cluster that the process has joined."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping

from rlserve.pool.gangs import Node
from rlserve.pool.nvidia import visible_gpus
from rlserve.roofline.accelerators import SPOT_SUFFIX, is_cpu

ACCELERATOR_PREFIX = "accelerator_type:"
"""Of the marker resource that Ray gives a node for the type of its accelerators."""
SPOT_RESOURCE = "spot"
"""A custom resource that nodes with GPUs declare on spot machines: ``ray start --resources='{"spot": 1}'``."""


def accelerator_marker(type_name: str) -> str:
    """What Ray calls it: an accelerator on a spot machine is marked as any other."""
    return f"{ACCELERATOR_PREFIX}{type_name.removesuffix(SPOT_SUFFIX)}"


def discover_machine() -> dict[str, int]:
    """GPUs of this machine by Ray's name for their type, those that CUDA will see; empty where there is none.

    Raises:
        PoolError: the driver does not answer, or CUDA_VISIBLE_DEVICES names what is not there.
    """
    return dict(Counter(gpu.type for gpu in visible_gpus()))


def discover_cluster() -> tuple[Node, ...]:
    """The living nodes of the joined Ray cluster that offer slots, by name.

    GPUs count under their accelerator type. Nodes without GPUs declare CPU slots as custom resources whose
    name begins with ``cpu-``: ``ray start --resources='{"cpu-a": 2}'``. By name, because Ray has its nodes in no order
    that lasts. GPUs of a node that declares ``spot`` are of a type of their own, with ``-spot`` behind its name.
    """
    import ray  # only here: the command line looks at this machine without starting Ray
    from ray._private.state import state  # Ray shows in no other way that a node is draining

    draining = state.get_draining_nodes()
    nodes = [
        Node(
            id=node["NodeID"],
            name=node["NodeManagerHostname"],
            counts=_slots_of(node["Resources"]),
            is_draining=node["NodeID"] in draining,
            grace_s=_seconds_until(draining.get(node["NodeID"])),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return tuple(sorted((node for node in nodes if node.counts), key=lambda node: (node.name, node.id)))


def free_slots() -> dict[tuple[str, str], int]:
    """Slots of the joined Ray cluster that no process has, by node and type."""
    from ray._private import state  # Ray shows in no other way what is free on each node

    resources: Mapping[str, Mapping[str, float]] = state.available_resources_per_node()
    return {(node_id, name): count for node_id, free in resources.items() for name, count in _slots_of(free).items()}


def node_labels(node_id: str | None) -> Mapping[str, str]:
    """What a node of the joined Ray cluster was started with as its labels, and Ray's own; none of one that is gone."""
    import ray

    return next((node["Labels"] for node in ray.nodes() if node["NodeID"] == node_id), {})


def _seconds_until(deadline_ms: int | None) -> float | None:
    """From Ray's deadline of draining, of which 0 is none."""
    return max(deadline_ms / 1000 - time.time(), 0.0) if deadline_ms else None


def count_slots(nodes: Iterable[Node]) -> dict[str, int]:
    """Slots of all nodes by type, those of draining nodes left out. Ordered by the types' names: the order decides
    which slots begin in which role."""
    found: Counter[str] = Counter()
    for node in nodes:
        if not node.is_draining:
            found.update(node.counts)
    return dict(sorted(found.items()))


def _slots_of(resources: Mapping[str, float]) -> dict[str, int]:
    types = [key.removeprefix(ACCELERATOR_PREFIX) for key in resources if key.startswith(ACCELERATOR_PREFIX)]
    suffix = SPOT_SUFFIX if resources.get(SPOT_RESOURCE) else ""
    found = {f"{types[0]}{suffix}": int(resources["GPU"])} if types and resources.get("GPU") else {}
    return found | {name: int(count) for name, count in resources.items() if is_cpu(name) and name != "CPU"}
