"""From the configuration of a load to the load. Reads the trace, if there is one."""

from __future__ import annotations

from pathlib import Path

from rlserve.rollout.workload.config import WorkloadConfig
from rlserve.rollout.workload.courses import Course, Drift, SquareWave, Steady
from rlserve.rollout.workload.lengths import Lengths, LogNormalLengths, TraceLengths
from rlserve.rollout.workload.trace import Trace, read_trace
from rlserve.rollout.workload.workload import Workload


def create_workload(config: WorkloadConfig, *, seed: int, num_steps: int, tokens_scale: float) -> Workload:
    """The load that a run is put under.

    Raises:
        DataError: ``trace`` has no lengths.
    """
    trace = None if config.trace is None else read_trace(Path(config.trace))
    return Workload(
        lengths=_lengths(config, trace),
        kept=kept_course(config),
        says_kept=trace if trace is not None and trace.kept else None,
        tool_share=config.tool_share,
        tool_wait_s=config.tool_wait_s,
        tool_sigma=config.sigma,
        seed=seed,
        num_steps=num_steps,
        tokens_scale=tokens_scale,
    )


def kept_course(config: WorkloadConfig) -> Course:
    """The share of groups that are kept, over the run."""
    if config.kept_share_end is None:
        return Steady(config.kept_share)
    if config.kept_course == "linear":
        return Drift(config.kept_share, config.kept_share_end)
    return SquareWave(config.kept_share, config.kept_share_end, config.num_phases)


def _lengths(config: WorkloadConfig, trace: Trace | None) -> Lengths | None:
    if trace is not None:
        return TraceLengths(trace=trace)
    if config.median_tokens is None:
        return None
    return LogNormalLengths(median_tokens=Steady(config.median_tokens), sigma=config.sigma)
