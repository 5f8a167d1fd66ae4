"""GPUs as the driver, Ray and torch see them, and the compiled kernels for the CPU.

Ray and torch are asked in a process of their own: a broken driver can hang or end whoever asks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rlserve.cli.doctor.base import Finding, bad, good, warning
from rlserve.errors import PoolError
from rlserve.pool.nvidia import VISIBLE_DEVICES, visible_gpus

TIMEOUT_S = 120.0
_PROGRAM = """
import json
import torch
from ray._private.accelerators import NvidiaGPUAcceleratorManager as Manager
from rlserve.native.library import NativeBuildError, find_kernels
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "num_torch": 0, "problem": None}
try:
    found["num_torch"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found["num_torch"]:
        torch.zeros(1, device="cuda")
except RuntimeError as error:
    found["problem"] = str(error)
found["num_ray"] = Manager.get_current_node_num_accelerators()
found["kernels"] = found["no_compiler"] = None
try:
    kernels = find_kernels()
    found["kernels"] = None if kernels is None else str(kernels)
except NativeBuildError as error:
    found["no_compiler"] = str(error)
print("FOUND" + json.dumps(found))
"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What torch and Ray answer."""

    torch: str
    """Version."""
    cuda: str | None
    """That torch was built for; None: for the CPU alone."""
    num_torch: int
    num_ray: int
    problem: str | None
    """What torch said when it was asked to compute on a GPU."""
    kernels: str | None
    """The compiled kernels; None: they will be compiled at first use."""
    no_compiler: str | None
    """Why they cannot be."""


def examine_computing() -> Iterator[Finding]:
    """GPUs and kernels."""
    types: list[str] = []
    try:
        types = [gpu.type for gpu in visible_gpus()]
    except PoolError as error:
        yield bad("GPUs", str(error))
    seen = ask()
    if isinstance(seen, str):
        yield bad("torch", seen)
        return
    yield from judge_gpus(types, seen)
    yield judge_kernels(seen)


def ask() -> Seen | str:
    """Ask torch and Ray; what went wrong, if they do not answer."""
    command = [sys.executable, "-c", _PROGRAM]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"does not answer within {TIMEOUT_S:g} s: the driver may hang; go without by {VISIBLE_DEVICES}="
    _, mark, found = answer.stdout.rpartition("FOUND")
    if not mark:
        last = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
        return f"cannot be imported: {last}"
    return Seen(**json.loads(found))


def judge_gpus(types: list[str], seen: Seen) -> Iterator[Finding]:
    """Whether driver, torch and Ray see the same."""
    built = f"for CUDA {seen.cuda}" if seen.cuda else "for the CPU alone"
    yield good("torch", f"{seen.torch}, built {built}")
    named = ", ".join(f"{number} x {kind}" for kind, number in Counter(types).items()) or "none"
    hidden = f" ({VISIBLE_DEVICES}={os.environ[VISIBLE_DEVICES]})" if VISIBLE_DEVICES in os.environ else ""
    if seen.problem is not None:
        yield bad("GPUs", f"{named}, but torch cannot compute there: {seen.problem.splitlines()[0]}")
    elif types and not seen.cuda:
        yield bad("GPUs", f"{named}{hidden}, but this torch is for the CPU alone: install one for CUDA")
    elif len(types) != seen.num_torch:
        yield bad(
            "GPUs",
            f"the driver has {named}{hidden}, torch sees {seen.num_torch}: its CUDA may be newer than the driver takes",
        )
    elif types and seen.num_ray < len(types):
        yield bad("GPUs", f"{named}{hidden}, but Ray sees {seen.num_ray}: NVML does not answer it")
    elif types:
        yield good("GPUs", f"{named}{hidden}, seen by driver, torch and Ray alike")
    else:
        yield good("GPUs", f"none{hidden}: runs use processes of the CPU")


def judge_kernels(seen: Seen) -> Finding:
    """The kernels of the engine for the CPU."""
    if seen.no_compiler is not None:
        return warning(
            "CPU kernels", f"cannot be compiled, so the engine is slower on the CPU ({seen.no_compiler}): install g++"
        )
    return good("CPU kernels", seen.kernels or "not compiled yet: done at first use, in half a minute or so")
