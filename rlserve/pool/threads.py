"""How many threads a worker computes with, for all libraries that read it from the environment when they are loaded."""

from __future__ import annotations


def thread_environment(num_threads: int) -> dict[str, str]:
    """Environment variables of a worker with ``num_threads``."""
    return {
        # Spinning threads ruin everything when trainer and engines share cores: wait passively.
        "OMP_WAIT_POLICY": "passive",
        "OMP_NUM_THREADS": str(num_threads),
        "MKL_NUM_THREADS": str(num_threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
