"""Updates of ours on batches that are there already: GRPO without a reference, one step of the optimizer each."""

from __future__ import annotations

import numpy as np

from rlserve.trainers import Batch
from rlserve.trainers.algorithms.config import GRPOConfig
from trainer_parts.base import Assignment, Outcome, Turn, TurnByTurn, Turns
from trainer_parts.batches import MadeUpBatch, make_batch
from trainer_parts.rlserve_training import trainer_of, versions


def batch_of(made_up: MadeUpBatch, vocab_size: int) -> Batch:
    """As the rollout side hands it over. The log-probabilities are those of tokens that are all as likely."""
    num_tokens, num_samples = made_up.num_response_tokens, made_up.num_samples
    log_probs = np.full(num_tokens, -np.log(vocab_size), dtype=np.float32)
    return Batch(
        sample_ids=tuple(map(str, range(num_samples))),
        group_ids=tuple(str(index // made_up.group_size) for index in range(num_samples)),
        prompt_lengths=np.full(num_samples, made_up.num_prompt_tokens, dtype=np.int32),
        response_lengths=made_up.lengths,
        token_ids=made_up.token_ids,
        loss_mask=np.ones(num_tokens, dtype=bool),
        log_probs=log_probs,
        behaviour_log_probs=log_probs,
        weight_versions=np.zeros(num_tokens, dtype=np.int32),
        rewards=made_up.rewards,
        finish_reasons=("length",) * num_samples,
    )


class RlserveUpdate(TurnByTurn):
    """Seconds of ``Trainer.step``."""

    def __init__(self, assignment: Assignment) -> None:
        super().__init__(assignment)
        from models import SHAPES

        self._vocab_size = SHAPES[self.case.shape].vocab_size
        self._trainer = trainer_of(assignment, GRPOConfig())

    def do(self, turn: Turn, turns: Turns) -> Outcome:
        before = self._trainer.num_steps
        made_up = make_batch(self.case, self._vocab_size, turn.first_step)
        begin_s = turns.elapsed_s
        metrics = self._trainer.step(batch_of(made_up, self._vocab_size))
        value = turns.elapsed_s - begin_s
        return Outcome(
            value=value,
            work={**made_up.work, "updates": self._trainer.num_steps - before},
            phases_s={"update": value},
            remarks={"gradient norm": metrics["actor/grad_norm"], "padding share": metrics["perf/padding_share"]},
        )

    def versions(self) -> dict[str, str]:
        return versions()

    def settings(self) -> dict[str, str]:
        return {"logical shards": "12 at most", "tokens in a pass": "16384"}
