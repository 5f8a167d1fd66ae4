"""Beam search of a server against transformers' on the same model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import ALPHABET
from served import SMALL_ENGINE, ServedModel, served
from transformers import AutoModelForCausalLM, GenerationConfig

from rlserve.tasks.character_tokenizer import character_tokenizer

PROMPT = "12+34="
WIDTH, MAX_TOKENS = 4, 24
TOKENIZER = character_tokenizer(ALPHABET)


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[ServedModel]:
    with served(tiny_model, *SMALL_ENGINE) as running:
        yield running


def ours(server: ServedModel, **asked: Any) -> tuple[list[list[int]], list[float]]:
    """The best answers, and the mean of their log-probabilities."""
    body = {"prompt": PROMPT, "n": WIDTH, "max_tokens": MAX_TOKENS, "use_beam_search": True, "logprobs": 0, **asked}
    with server.http() as client:
        answer = client.post("/v1/completions", json={**body, "return_token_ids": True})
    assert answer.status_code == 200, answer.text
    choices = answer.json()["choices"]
    log_probs = [choice["logprobs"]["token_logprobs"] for choice in choices]
    return [choice["token_ids"] for choice in choices], [sum(each) / len(each) for each in log_probs]


def theirs(model: Path, end_token_ids: list[int] | None) -> tuple[list[list[int]], list[float]]:
    prompt = torch.tensor([TOKENIZER.encode(PROMPT)])
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    policy.generation_config = GenerationConfig(eos_token_id=end_token_ids, pad_token_id=TOKENIZER.pad_token_id)
    found = policy.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        num_beams=WIDTH,
        num_return_sequences=WIDTH,
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        early_stopping="never",
        output_scores=True,
        return_dict_in_generate=True,
    )
    return found.sequences[:, prompt.shape[1] :].tolist(), found.sequences_scores.tolist()


def test_answers_that_do_not_end_are_those_of_transformers(server: ServedModel, tiny_model: Path) -> None:
    token_ids, scores = ours(server, ignore_eos=True)
    expected, expected_scores = theirs(tiny_model, None)
    assert token_ids == expected
    assert scores == pytest.approx(expected_scores, abs=1e-4)


def test_answers_that_end_are_as_good_at_least(server: ServedModel, tiny_model: Path) -> None:
    """Transformers keeps of the beams that end only those among the likeliest of all."""
    ends = TOKENIZER.encode("78", add_special_tokens=False)
    token_ids, scores = ours(server, stop_token_ids=ends)
    _, expected_scores = theirs(tiny_model, [TOKENIZER.eos_token_id, *ends])
    assert any(each[-1] in ends for each in token_ids)
    assert all(score >= other - 1e-4 for score, other in zip(scores, expected_scores, strict=True))


def test_beams_are_read_from_the_prefix_cache(server: ServedModel) -> None:
    found_before = server.metric("vllm:prefix_cache_hits_total")
    ours(server, ignore_eos=True, max_tokens=40)
    assert server.metric("vllm:prefix_cache_hits_total") > found_before
