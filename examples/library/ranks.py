"""One model over several processes that you start yourself, on one machine or on several: this is one of them.

python examples/library/ranks.py MODEL_FOLDER RANK NUM_RANKS HOST:PORT     HOST is the address of rank 0

RANKS_SECRET in the environment is a text of your own, the same for all: who does not know it cannot take part.
On one machine the engine does it for you: Engine(model_path, EngineConfig(tensor_parallel_size=2)).
"""

from __future__ import annotations

import os
import sys

import torch

from rlserve.engine import Engine, EngineConfig, RankPlace, Request, SamplingParams, follow, join_ranks


def main(model_path: str, rank: int, num_ranks: int, address: str) -> None:
    host, _, port = address.rpartition(":")
    config = EngineConfig(dtype="float32", kv_cache_bytes=16 * 2**20, tensor_parallel_size=num_ranks)
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
    secret = os.environ["RANKS_SECRET"]
    place = RankPlace(rank=rank, num_ranks=num_ranks, host=host, port=int(port), secret=secret)
    group = join_ranks(place, config)
    if rank > 0:
        follow(model_path, config, group)  # until rank 0 closes its engine, or ends
        print(f"rank {rank} was told to end")
        return
    engine = Engine(model_path, config, ranks=group)
    engine.add(Request(id="0", prompt_token_ids=(5, 6, 7), sampling=SamplingParams(n=4, max_tokens=16)))
    while engine.has_work:
        for output in engine.step():
            print([sample.token_ids for sample in output.samples])
    engine.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
