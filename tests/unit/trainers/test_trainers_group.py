"""A group of two ranks on gloo, in threads of this process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from rlserve.distributed.addresses import LOOPBACK, free_port
from rlserve.trainers import Membership
from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.distributed import join_group

TIMEOUT_S = 20.0


def test_a_rank_says_that_it_waits_as_long_as_another_does_not_come() -> None:
    port = free_port()

    def join(rank: int) -> Group:
        place = Membership(rank=rank, num_ranks=2, host=LOOPBACK, port=port, secret="s", generation=1)
        return join_group(place, timeout_s=TIMEOUT_S, device=torch.device("cpu"))

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(join, range(2))
        assert not first.is_waiting
        gathered = threads.submit(first.all_gather, torch.ones(1))
        while not first.is_waiting:
            assert not gathered.done(), "the other rank has not come"
        second.all_gather(torch.ones(1))
        gathered.result(TIMEOUT_S)
        assert not first.is_waiting
        assert not second.is_waiting
        first.close()
        second.close()
