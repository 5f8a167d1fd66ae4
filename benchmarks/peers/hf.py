"""``generate`` of transformers, on padded batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from peers.base import WARM_UP_TOKENS, BenchmarkRequest, Peer, PeerOptions, RunOutcome, shortened
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList

PAD_TOKEN_ID = 0


class HuggingFacePeer(Peer):
    """Left-padded batches, each generated until its longest sample ends. The samples of a prompt are rows of
    their own, because ``num_return_sequences`` too computes the prompt once for each."""

    def __init__(self, options: PeerOptions) -> None:
        super().__init__(options)
        torch.set_num_threads(options.num_threads)
        self._model = load_model(options)
        self._batch_size = options.max_num_sequences

    def run(self, requests: Sequence[BenchmarkRequest]) -> RunOutcome:
        rows, start = one_row_a_sample(requests), time.perf_counter()
        num_output_tokens, first_token_s = 0, []
        for batch in batches(rows, self._batch_size):
            clock = _FirstTokenClock()
            num_output_tokens += self._generate(batch, clock)
            first_token_s += [clock.first_token_time - start] * len(batch)
        return RunOutcome(num_output_tokens=num_output_tokens, first_token_s=tuple(first_token_s))

    def warm_up(self, requests: Sequence[BenchmarkRequest]) -> None:
        """Also chooses the batch size, by the time of a few tokens at each size: larger batches are quicker a
        token, smaller ones waste fewer rows on samples that have ended."""
        rows = one_row_a_sample(requests)
        predicted_s = {}
        for size in sorted({-(-len(rows) // parts) for parts in (1, 2, 4)}):
            start = time.perf_counter()
            self._generate(shortened(rows[:size]), _FirstTokenClock())
            token_s = (time.perf_counter() - start) / WARM_UP_TOKENS
            predicted_s[size] = token_s * num_padded_steps(rows, size)
        self._batch_size = min(predicted_s, key=lambda size: predicted_s[size])

    def versions(self) -> dict[str, str]:
        return {"transformers": transformers.__version__, "torch": torch.__version__}

    def settings(self) -> dict[str, str]:
        return {"batch_size": str(self._batch_size), "attention": "sdpa"}

    def _generate(self, batch: Sequence[BenchmarkRequest], clock: _FirstTokenClock) -> int:
        """Generate for one batch; returns the tokens that were asked for."""
        width = max(len(request.prompt_token_ids) for request in batch)
        input_ids = torch.full((len(batch), width), PAD_TOKEN_ID)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, request in enumerate(batch):
            prompt = torch.tensor(request.prompt_token_ids)
            input_ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        output = self._model.generate(
            input_ids,
            attention_mask=mask,
            generation_config=sampling_config(max(request.max_tokens for request in batch)),
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        num_generated = output.shape[1] - width
        return sum(min(request.max_tokens, num_generated) for request in batch)


class _FirstTokenClock(StoppingCriteria):  # type: ignore[misc]  # transformers has no types
    """Stops nothing; notes when it is first asked, which is after the first token."""

    def __init__(self) -> None:
        self.first_token_time = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.first_token_time = self.first_token_time or time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def load_model(options: PeerOptions) -> Any:
    """The model of the folder in the dtype of the case."""
    dtype = getattr(torch, options.dtype)
    return AutoModelForCausalLM.from_pretrained(options.model_folder, dtype=dtype, attn_implementation="sdpa").eval()


def sampling_config(max_new_tokens: int, *, num_return_sequences: int = 1) -> GenerationConfig:
    """Plain sampling at temperature 1 that only the length ends."""
    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=max_new_tokens,
        num_return_sequences=num_return_sequences,
        pad_token_id=PAD_TOKEN_ID,
    )


def one_row_a_sample(requests: Sequence[BenchmarkRequest]) -> list[BenchmarkRequest]:
    """Each request as many times as it wants samples, under ids of their own."""
    return [
        replace(request, id=f"{request.id}-{index}", num_samples=1)
        for request in requests
        for index in range(request.num_samples)
    ]


def batches(rows: Sequence[BenchmarkRequest], size: int) -> list[Sequence[BenchmarkRequest]]:
    """The rows in order, ``size`` at a time."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def num_padded_steps(rows: Sequence[BenchmarkRequest], size: int) -> int:
    """Steps to generate all batches, each until its longest row ends."""
    return sum(max(row.max_tokens for row in batch) for batch in batches(rows, size))
