"""From the configuration of a run to the pace of a slot."""

from __future__ import annotations

from dataclasses import replace

from rlserve.engine.config import EngineConfig
from rlserve.pool.pacing.base import Pace, Pacing
from rlserve.pool.pacing.config import PacingConfig
from rlserve.pool.pacing.roofline_pace import RooflinePace
from rlserve.pool.pacing.unpaced import Unpaced
from rlserve.roofline.costs import Costs
from rlserve.roofline.model_shapes import read_shape
from rlserve.trainers.algorithms.config import AlgorithmConfig
from rlserve.trainers.backends.config import OptimizationConfig

_FORWARD_SHARE = 1 / 3
"""Of a forward and a backward pass."""


def create_pace(pacing: Pacing | None) -> Pace:
    """The pace of a worker; None is that of this machine."""
    return Unpaced() if pacing is None else RooflinePace(pacing)


def run_costs(
    config: PacingConfig, algorithm: AlgorithmConfig, trainer: OptimizationConfig, *, tensor_parallel_size: int
) -> Costs:
    """What the modelled model costs in a run with this algorithm.

    Raises:
        UserError: ``pool.pacing.model`` is neither a known size nor a dense model's folder.
    """
    needs = algorithm.needs
    has_own_critic = needs.critic and not trainer.shares_trunk
    num_networks = 1 + has_own_critic
    has_old_log_probs = needs.log_probs or algorithm.num_epochs * algorithm.num_mini_batches > 1
    reads_policy = has_old_log_probs or (needs.critic and trainer.shares_trunk)
    num_forward = has_own_critic + needs.reference + reads_policy
    return Costs(
        shape=read_shape(config.model),
        tokens_scale=config.tokens_scale,
        tensor_parallel_size=tensor_parallel_size,
        num_trained_networks=num_networks,
        num_train_passes=algorithm.num_epochs * num_networks + _FORWARD_SHARE * num_forward,
    )


def paced_engine(engine: EngineConfig, pacing: Pacing) -> EngineConfig:
    """The engine of a paced slot: its cache holds as many tokens as the accelerator's, unless the run says how many."""
    if engine.num_blocks is not None or engine.kv_cache_bytes is not None:
        return engine
    num_tokens = pacing.costs.num_kv_tokens(pacing.slot_type, memory_fraction=engine.gpu_memory_fraction)
    return replace(engine, num_blocks=max(1, num_tokens // engine.block_size))
