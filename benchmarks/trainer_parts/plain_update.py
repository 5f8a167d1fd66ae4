"""The same update in plain PyTorch, as quick as it is easily written: micro-batches of answers of like length, nothing
padded beyond that, no attention mask (padding is on the right), logits at answer tokens alone, fused AdamW.

Legend: S samples of a micro-batch, L longest of them, a answer tokens of a micro-batch, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from models import SHAPES
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from trainer_parts.base import Assignment, Outcome, Turn, TurnByTurn, Turns
from trainer_parts.batches import MadeUpBatch, make_batch

TOKENS_AT_ONCE = 2048
"""Padded tokens of a micro-batch."""
CLIP_RATIO, WEIGHT_CAP, MAX_GRAD_NORM, ADAM_BETAS = 0.2, 2.0, 1.0, (0.9, 0.95)


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroBatch:
    """Samples that go through the model at once."""

    input_ids_SL: Tensor
    states_a: Tensor
    """Index into [S * L] of the state before each answer token."""
    targets_a: Tensor
    advantages_a: Tensor
    weights_a: Tensor
    """Of each token in the loss."""


def micro_batches(batch: MadeUpBatch, tokens_at_once: int = TOKENS_AT_ONCE) -> Iterator[NDArray[np.int64]]:
    """The samples, sorted by length, in parts of at most so many padded tokens; one always fits."""
    order = np.argsort(batch.lengths, kind="stable")
    part: list[int] = []
    for index in order.tolist():
        longest = int(batch.lengths[index]) + batch.num_prompt_tokens
        if part and longest * (len(part) + 1) > tokens_at_once:
            yield np.array(part)
            part = []
        part.append(index)
    yield np.array(part)


def group_advantages(batch: MadeUpBatch) -> NDArray[np.float32]:
    """[B] GRPO's, of each answer among those to the same prompt."""
    rewards = batch.rewards.reshape(-1, batch.group_size)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    advantages: NDArray[np.float32] = (centred / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-6)).ravel()
    return advantages


class PlainUpdate(TurnByTurn):
    """Seconds of forward, backward, clipping and optimizer."""

    def __init__(self, assignment: Assignment) -> None:
        super().__init__(assignment)
        self._vocab_size = SHAPES[self.case.shape].vocab_size
        self._model = AutoModelForCausalLM.from_pretrained(assignment.model_folder, dtype=torch.float32)
        learning_rate = self.case.learning_rate
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=learning_rate, betas=ADAM_BETAS, weight_decay=0.0, fused=True
        )

    def do(self, turn: Turn, turns: Turns) -> Outcome:
        batch = make_batch(self.case, self._vocab_size, turn.first_step)
        begin_s = turns.elapsed_s
        norm = self._update(batch)
        value = turns.elapsed_s - begin_s
        return Outcome(value=value, work={**batch.work, "updates": 1}, remarks={"gradient norm": norm})

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def settings(self) -> dict[str, str]:
        return {"tokens in a micro-batch": str(TOKENS_AT_ONCE), "AdamW": "fused", "attention": "sdpa"}

    def _update(self, batch: MadeUpBatch) -> float:
        advantages, log_prob = group_advantages(batch), -float(np.log(self._vocab_size))
        for samples in micro_batches(batch):
            part = _micro_batch(batch, samples, advantages)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.case.dtype == "bfloat16"):
                states_SLH = self._model.model(part.input_ids_SL, use_cache=False).last_hidden_state
                logits_aV = self._model.lm_head(states_SLH.flatten(0, 1)[part.states_a])
            log_probs_a = -cross_entropy(logits_aV.float(), part.targets_a, reduction="none")
            _loss(log_probs_a, log_prob, part).backward()
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), MAX_GRAD_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)


def _loss(log_probs_a: Tensor, behaviour_log_prob: float, part: MicroBatch) -> Tensor:
    """GRPO's of the only update of a step, weighted by what the tokens were drawn from."""
    ratio_a = (log_probs_a - log_probs_a.detach()).exp()
    clipped_a = ratio_a.clamp(1 - CLIP_RATIO, 1 + CLIP_RATIO)
    importance_a = (log_probs_a.detach() - behaviour_log_prob).exp().clamp(max=WEIGHT_CAP)
    gain_a = torch.minimum(ratio_a * part.advantages_a, clipped_a * part.advantages_a)
    return -(importance_a * gain_a * part.weights_a).sum()


def _micro_batch(batch: MadeUpBatch, samples: NDArray[np.int64], advantages: NDArray[np.float32]) -> MicroBatch:
    num_prompt_tokens, lengths = batch.num_prompt_tokens, batch.lengths[samples].astype(np.int64)
    totals = batch.lengths.astype(np.int64) + num_prompt_tokens
    starts, longest = np.cumsum(totals) - totals, num_prompt_tokens + int(lengths.max())
    input_ids_SL = np.zeros((len(samples), longest), dtype=np.int64)
    for row, sample in enumerate(samples):
        own = batch.token_ids[starts[sample] : starts[sample] + totals[sample]]
        input_ids_SL[row, : len(own)] = own
    columns = np.arange(longest)
    is_state = (columns >= num_prompt_tokens - 1) & (columns < num_prompt_tokens - 1 + lengths[:, None])
    states_a = np.flatnonzero(is_state)
    return MicroBatch(
        input_ids_SL=torch.from_numpy(input_ids_SL),
        states_a=torch.from_numpy(states_a),
        targets_a=torch.from_numpy(input_ids_SL.ravel()[states_a + 1]),
        advantages_a=torch.from_numpy(np.repeat(advantages[samples], lengths)),
        weights_a=torch.from_numpy(np.repeat(1 / lengths / batch.num_samples, lengths).astype(np.float32)),
    )
