"""What accelerators there are: on this machine, or in the Ray cluster that the process has joined."""

from __future__ import annotations

from collections import Counter

from rlserve.pool.catalogue import is_cpu
from rlserve.pool.nvidia import visible_gpus

ACCELERATOR_PREFIX = "accelerator_type:"
"""Of the marker resource that Ray gives a node for the type of its accelerators."""


def discover_machine() -> dict[str, int]:
    """GPUs of this machine by Ray's name for their type, those that CUDA will see; empty where there is none.

    Raises:
        PoolError: the driver does not answer, or CUDA_VISIBLE_DEVICES names what is not there.
    """
    return dict(Counter(gpu.type for gpu in visible_gpus()))


def discover_cluster() -> dict[str, int]:
    """Slots of the joined Ray cluster by type.

    GPUs count under their accelerator type. Nodes without GPUs declare CPU slots as custom resources whose
    name begins with ``cpu-``: ``ray start --resources='{"cpu-a": 2}'``. By name, because Ray has its nodes in no order
    that lasts, and the order of the types decides which slots begin in which role.
    """
    import ray  # only here: the command line looks at this machine without starting Ray

    found: Counter[str] = Counter()
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        resources: dict[str, float] = node["Resources"]
        types = [key.removeprefix(ACCELERATOR_PREFIX) for key in resources if key.startswith(ACCELERATOR_PREFIX)]
        if types and resources.get("GPU"):
            found[types[0]] += int(resources["GPU"])
        for name, count in resources.items():
            if is_cpu(name) and name != "CPU":
                found[name] += int(count)
    return dict(sorted(found.items()))
