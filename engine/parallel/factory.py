"""Which runner computes: one process, or rank 0 of several."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from pathlib import Path

from rlserve.engine.config import EngineConfig
from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.shard import Shard
from rlserve.engine.parallel.base import RankGroup
from rlserve.engine.runner.model_runner import ModelRunner
from rlserve.errors import UserError


def create_runner(spec: ModelSpec, config: EngineConfig, model_path: Path, ranks: RankGroup | None) -> ModelRunner:
    """The runner of an engine; with more than one rank the others are started, unless ``ranks`` has them.

    Raises:
        UserError: a size of the model does not divide by the number of ranks, there are not as many GPUs, or
            ``ranks`` are not as many as configured.
        WorkerFailedError: another rank could not be started.
    """
    num_ranks = config.tensor_parallel_size
    if ranks is not None and (ranks.num_ranks, ranks.rank) != (num_ranks, 0):
        raise UserError(
            f"tensor_parallel_size={num_ranks}, but this is rank {ranks.rank} of {ranks.num_ranks}: "
            "the engine is on rank 0, and on the others call follow()"
        )
    shard = Shard.of(spec, 0, num_ranks)
    if num_ranks == 1:
        return ModelRunner(shard, config)
    from rlserve.distributed.addresses import listen
    from rlserve.distributed.base import RankPlace
    from rlserve.engine.parallel.distributed import join_ranks
    from rlserve.engine.parallel.rank_processes import RankProcesses
    from rlserve.engine.parallel.sharded_runner import LeadingRunner

    if ranks is not None:
        return LeadingRunner(shard, config, ranks)
    with ExitStack() as undo:
        listening = undo.enter_context(listen())
        host, port = listening.getsockname()
        place = RankPlace(rank=0, num_ranks=num_ranks, host=host, port=port, secret=secrets.token_hex(32))
        processes = RankProcesses(model_path, config, place)
        undo.callback(processes.kill)
        group = join_ranks(place, config, listening=listening, check=processes.check)
        undo.callback(group.close)
        runner = LeadingRunner(shard, config, group, processes.wait)
        undo.pop_all()
    return runner
