"""What training by ours adds to the memory of a rank: GRPO without a critic or a reference, float32."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

from models import SHAPES, model_folder
from process_usage import held_bytes, peak_bytes

from rlserve.trainers import GRPOConfig, Membership, TorchTrainerConfig, create_trainer
from trainer_parts.base import Assignment, Outcome, Turn, TurnByTurn, Turns
from trainer_parts.batches import make_batch
from trainer_parts.memory_ranks import Place, RankMemory, most_of_ranks, run_rank
from trainer_parts.rlserve_update import batch_of, versions


class RlserveMemory(TurnByTurn):
    """Bytes a parameter of the rank with most."""

    def do(self, turn: Turn, turns: Turns) -> Outcome:
        small_folder = model_folder(SHAPES["tiny"], Path(self.assignment.model_folder).parent)
        return most_of_ranks(__name__, self.assignment, str(small_folder))

    def versions(self) -> dict[str, str]:
        return versions()

    def settings(self) -> dict[str, str]:
        return {"logical shards": "12 at most"}


def measure(assignment: Assignment, small_folder: str, place: Place) -> RankMemory:
    """As one rank."""
    case = assignment.case
    small_vocab, vocab_size = SHAPES["tiny"].vocab_size, SHAPES[case.shape].vocab_size
    config, algorithm = TorchTrainerConfig(learning_rate=case.learning_rate), GRPOConfig()
    small = create_trainer(config, algorithm, model_path=small_folder, seed=0, device="cpu")
    small.step(batch_of(make_batch(replace(case, shape="tiny"), small_vocab, 0), small_vocab))
    del small
    gc.collect()
    before = held_bytes()
    trainer = create_trainer(
        config,
        algorithm,
        model_path=assignment.model_folder,
        seed=0,
        device="cpu",
        membership=Membership(
            rank=place.rank,
            num_ranks=place.num_ranks,
            host="127.0.0.1",
            port=place.port,
            secret="benchmark",
            generation=1,
        ),
        load_weights=place.rank == 0,
    )
    for step in range(case.steps_per_turn):
        trainer.step(batch_of(make_batch(case, vocab_size, step), vocab_size))
    num_parameters = sum(tensor.numel() for tensor in trainer.weights().values())
    return RankMemory(added_bytes=peak_bytes() - before, num_parameters=num_parameters)


if __name__ == "__main__":
    run_rank(measure)
