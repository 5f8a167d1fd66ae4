"""Two workers' ranks of one engine: formed once, warm through a spell of training, formed anew when one is lost."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_folders import write_model
from pool_builders import make_spec

from rlserve.distributed.addresses import free_port
from rlserve.distributed.base import RankPlace
from rlserve.engine import Engine, EngineConfig
from rlserve.errors import WorkerFailedError
from rlserve.pool.pacing.unpaced import Unpaced
from rlserve.pool.roles.engine_rank import EngineRank

CONFIG = EngineConfig(dtype="float32", num_blocks=16, tensor_parallel_size=2, max_num_batched_tokens=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def ranks(model: Path) -> Iterator[tuple[EngineRank, EngineRank]]:
    spec = make_spec("cpu/0", model_path=str(model), engine=CONFIG)
    leader, follower = (EngineRank(spec, Unpaced(), timeout_s=20.0) for _ in range(2))
    yield leader, follower
    leader.end()
    follower.end()


def places() -> tuple[RankPlace, RankPlace]:
    first = RankPlace(rank=0, num_ranks=2, host="127.0.0.1", port=free_port(), secret="s")
    return first, replace(first, rank=1)


def form(ranks: tuple[EngineRank, EngineRank], where: tuple[RankPlace, RankPlace]) -> Engine:
    ranks[1].follow(where[1])
    return ranks[0].lead(where[0])


def shape_of_embedding(engine: Engine) -> torch.Size:
    """It takes all ranks to show it."""
    return next(tensor.shape for name, tensor in engine.named_weights() if "embed" in name)


def test_ranks_stay_formed_while_their_workers_train(ranks: tuple[EngineRank, EngineRank]) -> None:
    where = places()
    engine = form(ranks, where)
    engine.release_memory(weights=True)
    assert form(ranks, where) is engine
    assert shape_of_embedding(engine)[1] == 32


def test_a_follower_that_is_lost_breaks_the_engine_and_another_can_be_formed(
    ranks: tuple[EngineRank, EngineRank],
) -> None:
    engine = form(ranks, places())
    engine.close()  # as the end of a process: connections close
    ranks[1].end()
    with pytest.raises(WorkerFailedError):
        shape_of_embedding(engine)
    again = form(ranks, places())
    assert again is not engine
    assert shape_of_embedding(again)[1] == 32


def test_a_follower_leaves_a_leader_that_lets_it_go(ranks: tuple[EngineRank, EngineRank]) -> None:
    form(ranks, places())
    with ThreadPoolExecutor() as threads:
        ending = threads.submit(ranks[1].end)  # waits for its rank 0
        ranks[0].end()
        ending.result(20)
