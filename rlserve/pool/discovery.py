"""What accelerators there are: on this machine, or in the Ray cluster that the process has joined."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter

from rlserve.pool.catalogue import GPU_TYPES, is_cpu

_ACCELERATOR_PREFIX = "accelerator_type:"


def normalise_gpu_name(name: str) -> str:
    """``NVIDIA H100 80GB HBM3`` → ``H100``: the catalogue's name where one occurs in it, else the words joined."""
    words = re.split(r"[\s\-_]+", name.upper())
    for known in sorted(GPU_TYPES, key=len, reverse=True):
        if known.upper() in words or known.upper() in "".join(words):
            return known
    return "-".join(word for word in words if word != "NVIDIA")


def discover_machine() -> dict[str, int]:
    """GPUs of this machine by type, asked of the driver; empty where there is none."""
    executable = shutil.which("nvidia-smi")
    if executable is None:
        return {}
    answer = subprocess.run(
        [executable, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
    )
    names = answer.stdout.splitlines() if answer.returncode == 0 else []
    return dict(Counter(normalise_gpu_name(name) for name in names if name.strip()))


def discover_cluster() -> dict[str, int]:
    """Slots of the joined Ray cluster by type.

    GPUs count under their accelerator type. Nodes without GPUs declare CPU slots as custom resources whose
    name begins with ``cpu-``: ``ray start --resources='{"cpu-a": 2}'``.
    """
    import ray  # only here: the command line looks at this machine without starting Ray

    found: Counter[str] = Counter()
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        resources: dict[str, float] = node["Resources"]
        types = [key.removeprefix(_ACCELERATOR_PREFIX) for key in resources if key.startswith(_ACCELERATOR_PREFIX)]
        if types and resources.get("GPU"):
            found[types[0]] += int(resources["GPU"])
        for name, count in resources.items():
            if is_cpu(name) and name != "CPU":
                found[name] += int(count)
    return dict(found)
