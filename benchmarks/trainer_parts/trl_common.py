"""What TRL's trainers have in common here: the same settings, answers of lengths that are drawn before, and a count of
the optimizer's steps.

An answer of n tokens is n - 1 free ones and the end-of-sequence token, which can neither come before nor stay away; in
ours it is n free ones. Both read, score and train n tokens.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList

from trainer_parts.base import Assignment

ADAM_BETA2 = 0.95
MAX_GRAD_NORM = 1.0
KL_COEFFICIENT = 0.05
VALUE_COEFFICIENT = 0.5


class ForcedLengths(LogitsProcessor):
    """Lets each row end with exactly so many new tokens, the end-of-sequence token the last. Padding is not drawn:
    TRL's PPO takes the first that it finds for the end."""

    def __init__(self, *, eos_token_id: int, pad_token_id: int) -> None:
        self._eos_token_id = eos_token_id
        self._pad_token_id = pad_token_id
        self._lengths_B = torch.empty(0, dtype=torch.long)
        self._num_prompt_tokens = 0

    def expect(self, lengths: list[int]) -> None:
        """Of the rows of the next generation."""
        self._lengths_B = torch.tensor(lengths)
        self._num_prompt_tokens = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        assert len(input_ids) == len(self._lengths_B), "generated in other parts than were expected"
        self._num_prompt_tokens = self._num_prompt_tokens or input_ids.shape[1]
        is_last_B = input_ids.shape[1] - self._num_prompt_tokens + 1 >= self._lengths_B
        scores = scores.masked_fill(is_last_B[:, None], -torch.inf)
        scores[:, self._pad_token_id] = -torch.inf
        scores[:, self._eos_token_id] = torch.where(is_last_B, 0.0, -torch.inf)
        return scores


class UpdateCount:
    """Counts the optimizer's steps in this process."""

    def __init__(self) -> None:
        self.num = 0
        register_optimizer_step_post_hook(self._count)

    def _count(self, optimizer: Any, arguments: Any, options: Any) -> None:
        self.num += 1


def load_policy(assignment: Assignment) -> Any:
    """In float32."""
    return AutoModelForCausalLM.from_pretrained(assignment.model_folder, dtype=torch.float32)


def load_tokenizer(assignment: Assignment) -> Any:
    """Of the built-in model: a token a character."""
    return AutoTokenizer.from_pretrained(assignment.model_folder, padding_side="left")


def force_lengths(policy: Any, tokenizer: Any) -> ForcedLengths:
    """Have every generation of ``policy`` keep to the lengths that the returned object is told."""
    lengths = ForcedLengths(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    policy.generate = partial(policy.generate, logits_processor=LogitsProcessorList([lengths]))
    return lengths


def common_arguments(assignment: Assignment, *, micro_batch: int) -> dict[str, Any]:
    """Of ``TrainingArguments``: the optimizer of ours, and nothing that only takes time."""
    case = assignment.case
    assert case.num_answers % micro_batch == 0
    return {
        "output_dir": os.path.join(tempfile.gettempdir(), "rlserve-trl"),  # nothing is written there
        "use_cpu": True,
        "bf16": False,
        "seed": 0,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": case.num_answers // micro_batch,
        "gradient_checkpointing": False,
        "learning_rate": case.learning_rate,
        "lr_scheduler_type": "constant",
        "adam_beta2": ADAM_BETA2,
        "weight_decay": 0.0,
        "max_grad_norm": MAX_GRAD_NORM,
        "optim": "adamw_torch_fused",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def versions() -> dict[str, str]:
    """Of what computes."""
    import transformers
    import trl

    return {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
