"""One step of the trainer against a plain PyTorch loop on the same batch: the same networks and optimizer
and PPO's losses, with whole logits and nothing that shards, resizes or rolls back."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from gpu_parts.base import Place, Report
from gpu_parts.models import folder_of, make_batch, synchronize
from rlserve.trainers import Batch, PPOConfig, TorchTrainerConfig, create_trainer

HIGHEST_RATIO = 0.6
"""Of the trainer's seconds to the plain loop's."""
CLIP_RATIO, VALUE_COEFFICIENT, MAX_GRAD_NORM, LEARNING_RATE = 0.2, 0.5, 1.0, 1e-6


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """The batch, and how much of it goes through the networks at once."""

    num_samples: int
    prompt_length: int
    response_length: int
    num_samples_at_once: int

    @property
    def length(self) -> int:
        """Tokens of a sample."""
        return self.prompt_length + self.response_length


GPU_SIZE = StepSize(num_samples=64, prompt_length=128, response_length=384, num_samples_at_once=8)
CPU_SIZE = StepSize(num_samples=4, prompt_length=4, response_length=8, num_samples_at_once=2)


def measure_trainer(place: Place, report: Report) -> None:
    """Seconds and peak memory of a step, of both."""
    size, folder = GPU_SIZE if place.on_gpu else CPU_SIZE, folder_of(place, "596m")
    batch = make_batch(
        num_samples=size.num_samples,
        prompt_length=size.prompt_length,
        response_length=size.response_length,
        vocab_size=128,
        seed=0,
    )
    ours_s, ours_bytes = _measure_ours(place, size, folder, batch, "auto")
    report.figure("trainer: s a step", ours_s)
    report.figure("trainer: response tokens/s", batch.num_response_tokens / ours_s)
    unfused_s, unfused_bytes = _measure_ours(place, size, folder, batch, "torch")
    report.figure("trainer, kernels=torch: s a step", unfused_s)
    plain_s, plain_bytes = _measure_plain(place, size, folder, batch)
    report.figure("plain PyTorch: s a step", plain_s)
    if not place.on_gpu:
        report.skipped("trainer: seconds, of those of plain PyTorch", "needs a GPU: a tiny model says nothing")
        report.skipped("trainer: peak bytes, of those of plain PyTorch", "needs a GPU")
        return
    report.figure("trainer: peak bytes", ours_bytes)
    report.figure("trainer, kernels=torch: peak bytes", unfused_bytes)
    report.figure("plain PyTorch: peak bytes", plain_bytes)
    report.at_most("trainer: seconds, of those of plain PyTorch", ours_s / plain_s, HIGHEST_RATIO)
    report.figure("trainer, kernels=torch: seconds, of those of plain PyTorch", unfused_s / plain_s)
    report.figure("trainer: peak bytes, of those of plain PyTorch", ours_bytes / plain_bytes)


def _measure_ours(
    place: Place, size: StepSize, folder: str, batch: Batch, kernels: Literal["auto", "torch"]
) -> tuple[float, int]:
    trainer = create_trainer(
        TorchTrainerConfig(
            dtype="bfloat16" if place.on_gpu else "float32",
            kernels=kernels,
            num_logical_shards=4 if place.on_gpu else 2,
            ppo_max_token_len_per_gpu=size.num_samples_at_once * size.length,
        ),
        PPOConfig(),
        model_path=folder,
        seed=0,
        device=place.device,
    )
    measured = _second_of_two(place, lambda: trainer.step(batch))
    trainer.leave()
    return measured


def _measure_plain(place: Place, size: StepSize, folder: str, batch: Batch) -> tuple[float, int]:
    loop = PlainLoop(folder, place, size)
    return _second_of_two(place, lambda: loop.step(batch))


def _second_of_two(place: Place, step: Callable[[], object]) -> tuple[float, int]:
    """Seconds of the second call, and the most bytes held on the GPU during it; the first compiles and allocates."""
    gc.collect()
    step()
    if place.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    synchronize(place)
    start = time.perf_counter()
    step()
    synchronize(place)
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() if place.on_gpu else 0


class PlainLoop:
    """PPO with a critic, written the obvious way.

    Legend: B samples at once, S tokens of a sample, R response tokens of a sample, H hidden size.
    """

    def __init__(self, folder: str, place: Place, size: StepSize) -> None:
        self._place, self._size = place, size
        self._policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(place.device)
        self._critic = AutoModel.from_pretrained(folder, dtype=torch.float32).to(place.device)
        self._head = nn.Linear(self._critic.config.hidden_size, 1, bias=False, device=place.device)
        self._groups = [list(self._policy.parameters()), [*self._critic.parameters(), *self._head.parameters()]]
        self._optimizer = torch.optim.AdamW([{"params": group} for group in self._groups], lr=LEARNING_RATE)

    def step(self, batch: Batch) -> None:
        """One pass over the batch and one step of the optimizer."""
        tokens = torch.from_numpy(batch.token_ids).view(batch.num_samples, self._size.length)
        parts = tokens.long().to(self._place.device).split(self._size.num_samples_at_once)
        rewards = torch.from_numpy(batch.rewards).to(self._place.device).split(self._size.num_samples_at_once)
        with torch.no_grad():
            old = [(self._log_probs(part), self._values(part)) for part in parts]
        advantages = [reward[:, None] - values for reward, (_, values) in zip(rewards, old, strict=True)]
        flat = torch.cat(advantages)
        mean, deviation, num_tokens = flat.mean(), flat.std(), flat.numel()
        for part, reward, advantage, (old_log_probs, _) in zip(parts, rewards, advantages, old, strict=True):
            normal = (advantage - mean) / (deviation + 1e-8)
            ratio = (self._log_probs(part) - old_log_probs).exp()
            clipped = ratio.clamp(1 - CLIP_RATIO, 1 + CLIP_RATIO)
            (-torch.minimum(ratio * normal, clipped * normal).sum() / num_tokens).backward()
            error = self._values(part) - reward[:, None]
            (VALUE_COEFFICIENT * 0.5 * error.square().sum() / num_tokens).backward()
        for group in self._groups:
            nn.utils.clip_grad_norm_(group, MAX_GRAD_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _log_probs(self, tokens_BS: Tensor) -> Tensor:
        """[B, R] of the response tokens."""
        with torch.autocast(self._place.device, torch.bfloat16, enabled=self._place.on_gpu):
            logits = self._policy(tokens_BS, use_cache=False).logits[:, self._size.prompt_length - 1 : -1]
        targets_BR = tokens_BS[:, self._size.prompt_length :]
        return logits.float().log_softmax(-1).gather(-1, targets_BR[..., None]).squeeze(-1)

    def _values(self, tokens_BS: Tensor) -> Tensor:
        """[B, R] of the states before the response tokens."""
        with torch.autocast(self._place.device, torch.bfloat16, enabled=self._place.on_gpu):
            hidden_BSH = self._critic(tokens_BS, use_cache=False).last_hidden_state
            values = self._head(hidden_BSH[:, self._size.prompt_length - 1 : -1])
        return values.float().squeeze(-1)
