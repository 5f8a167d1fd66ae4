"""TRL's experimental PPOTrainer, one step after another, as ``trl_grpo`` does it. TRL 1.14 has no PPO any more: 1.12 is
known to work here.

It always has a frozen reference and always computes old log-probabilities, reference and values before the update; so
does ours in these cases (``kl_coefficient`` above 0). One pass over the batch, one update. Its reward is a network:
here one that decodes the answers and asks the task.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer

from trainer_parts.base import Case
from trainer_parts.data import Answer, reward_of, training_records
from trainer_parts.trl_common import KL_COEFFICIENT, VALUE_COEFFICIENT, common_arguments
from trainer_parts.trl_grpo import ENDLESS, TrlSteps, TurnTaking, micro_batch_of


class TaskRewardModel(nn.Module):
    """Looks like a reward model, and gives the task's reward at every position. Counts what it sees."""

    base_model_prefix = "reader"

    def __init__(self, case: Case, tokenizer: Any, num_prompt_tokens: int) -> None:
        super().__init__()
        self._reward = reward_of(case)
        self._tokenizer = tokenizer
        self._num_prompt_tokens = num_prompt_tokens
        self.num_answers = self.num_tokens = 0

    def reader(self, *, input_ids: Tensor, attention_mask: Tensor, **others: Any) -> SimpleNamespace:
        """What TRL takes for hidden states: the rewards [B, S, 1]."""
        rewards = []
        ends = attention_mask.sum(dim=1).tolist()
        for index, (token_ids, end) in enumerate(zip(input_ids, ends, strict=True)):
            prompt = self._tokenizer.decode(token_ids[: self._num_prompt_tokens], skip_special_tokens=True)
            text = self._tokenizer.decode(token_ids[self._num_prompt_tokens : end], skip_special_tokens=True)
            rewards.append(
                self._reward(Answer(id=str(index), prompt=prompt, response=text, answer=prompt[0], finished=True))
            )
        self.num_answers += len(rewards)
        self.num_tokens += sum(ends) - self._num_prompt_tokens * len(rewards)
        return SimpleNamespace(hidden_states=[torch.tensor(rewards)[:, None, None].expand(*input_ids.shape, 1)])

    def score(self, hidden_states: Tensor) -> Tensor:
        """The same."""
        return hidden_states


class TrlPpo(TrlSteps):
    """PPO."""

    def _create_reward(self) -> TaskRewardModel:
        assert self.case.task == "digits", "whose prompts have one length, and begin with the right digit"
        records = training_records(self.assignment)
        self._prompts = [self._tokenizer(record.prompt)["input_ids"] for record in records]
        return TaskRewardModel(self.case, self._tokenizer, len(self._prompts[0]))

    def _create_trainer(self, callback: TurnTaking) -> PPOTrainer:
        case = self.case
        arguments = PPOConfig(
            **common_arguments(self.assignment, micro_batch=micro_batch_of(case)),
            total_episodes=ENDLESS * case.num_answers,
            num_ppo_epochs=1,
            num_mini_batches=1,
            local_rollout_forward_batch_size=case.num_answers,
            num_sample_generations=0,
            response_length=case.longest_answer,
            stop_token="eos",
            temperature=1.0,
            kl_coef=KL_COEFFICIENT,
            vf_coef=VALUE_COEFFICIENT,
        )
        data = Dataset.from_dict({"input_ids": [prompt for prompt in self._prompts for _ in range(case.num_samples)]})
        value_model = AutoModelForSequenceClassification.from_pretrained(
            self.assignment.model_folder, num_labels=1, dtype=torch.float32
        )
        trainer = PPOTrainer(
            args=arguments,
            processing_class=self._tokenizer,
            model=self._policy,
            ref_model=None,
            reward_model=self._reward,
            train_dataset=data,
            eval_dataset=data.select(range(case.num_answers)),
            value_model=value_model,
            callbacks=[callback],
        )
        in_order = DataLoader(data, batch_size=case.num_answers, collate_fn=trainer.data_collator)
        trainer.dataloader = trainer.accelerator.prepare(in_order)  # its own shuffles: lengths belong to rows
        return trainer
