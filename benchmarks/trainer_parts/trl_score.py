"""A training by TRL's GRPOTrainer until it reaches a score."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import TrainerCallback

from trainer_parts.base import Outcome, Turn, TurnByTurn, Turns
from trainer_parts.data import Answer, held_out_records, reward_of
from trainer_parts.trl_common import load_policy, load_tokenizer, versions
from trainer_parts.trl_grpo import TaskReward, create_trainer, micro_batch_of

_PROMPTS_AT_ONCE = 128


class ScoreWatch(TrainerCallback):
    """Scores now and then, with the clock stopped, and ends the training at the score."""

    def __init__(self, peer: TrlScore, policy: Any, *, num_steps: int) -> None:
        self._peer = peer
        self._policy = policy
        self._num_steps = num_steps
        self._since_s = 0.0
        self.training_s = self.score = 0.0
        self.num_steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._since_s = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        case = self._peer.case
        self.training_s += time.perf_counter() - self._since_s
        self.num_steps += 1
        if self.num_steps % case.steps_per_evaluation == 0:
            self.score = self._peer.score(self._policy)
        is_reached = self.num_steps >= case.steps_per_evaluation and self.score >= case.target_score
        control.should_training_stop = is_reached or self.num_steps == self._num_steps
        self._since_s = time.perf_counter()


class TrlScore(TurnByTurn):
    """Seconds of all steps until the score is reached. Neither loading nor scoring is in them."""

    def do(self, turn: Turn, turns: Turns) -> Outcome:
        case, policy = self.case, load_policy(self.assignment)
        tokenizer = self._tokenizer = load_tokenizer(self.assignment)
        num_steps = case.steps_per_evaluation if turn.index == 0 else case.max_steps
        watch = ScoreWatch(self, policy, num_steps=num_steps)
        reward = TaskReward(case, tokenizer.eos_token_id)
        create_trainer(self.assignment, policy, tokenizer, reward, watch).train()
        if turn.index and watch.score < case.target_score:
            raise RuntimeError(f"scored {watch.score:.3f} after {num_steps} steps")
        remarks = {"steps": watch.num_steps, "score": watch.score, "s a step": watch.training_s / watch.num_steps}
        return Outcome(value=watch.training_s, remarks=remarks)

    def score(self, policy: Any) -> float:
        """The share of held-out prompts that the likeliest tokens answer right."""
        records, reward = held_out_records(self.assignment), reward_of(self.case)
        tokenizer, rewards = self._tokenizer, []
        policy.eval()
        for first in range(0, len(records), _PROMPTS_AT_ONCE):
            part = records[first : first + _PROMPTS_AT_ONCE]
            inputs = tokenizer([record.prompt for record in part], return_tensors="pt", padding=True)
            with torch.no_grad():
                found = policy.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    do_sample=False,
                    max_new_tokens=self.case.max_tokens,
                )[:, inputs["input_ids"].shape[1] :]
            for record, token_ids in zip(part, found, strict=True):
                text = tokenizer.decode(token_ids, skip_special_tokens=True)
                finished = bool((token_ids == tokenizer.eos_token_id).any())
                answer = Answer(id="", prompt=record.prompt, response=text, answer=record.answer, finished=finished)
                rewards.append(reward(answer))
        policy.train()
        return sum(value >= 1 for value in rewards) / len(rewards)

    def versions(self) -> dict[str, str]:
        return versions()

    def settings(self) -> dict[str, str]:
        return {
            "answers in a micro-batch": str(micro_batch_of(self.case)),
            "steps between scores": str(self.case.steps_per_evaluation),
        }
