"""Random LoRA adapters, written by peft, and requests that have them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_builders import VOCAB_SIZE, build_model, make_request
from peft import LoraConfig, PeftModel, get_peft_model

from rlserve.engine import Request, RequestOutput

NAMES = (None, "first", "second")
ALL_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_adapter(folder: Path, family: str = "qwen3", seed: int = 1, **changes: Any) -> Path:
    """Write an adapter of the model that ``build_model`` makes of a family, none of whose matrices is zero."""
    settings: dict[str, Any] = {"r": 5, "lora_alpha": 9, "target_modules": ALL_MODULES, "task_type": "CAUSAL_LM"}
    model = get_peft_model(build_model(family), LoraConfig(**(settings | changes)))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(str(folder))
    return folder


def merged_model(adapter: Path, family: str = "qwen3") -> Any:
    """That model with the adapter merged into it by peft."""
    return PeftModel.from_pretrained(build_model(family), str(adapter)).merge_and_unload().eval()


def adapter_requests(num: int = 24, **sampling: Any) -> list[Request]:
    """In turn for the model alone and for two adapters; many prompts begin alike, whatever the adapter."""
    rng = random.Random(3)
    beginnings = [rng.choices(range(VOCAB_SIZE), k=13) for _ in range(2)]
    return [
        replace(
            make_request(
                str(index),
                beginnings[index % 2] + rng.choices(range(VOCAB_SIZE), k=rng.randint(1, 30)),
                **({"temperature": 0.0, "max_tokens": rng.randint(6, 20), "n": 1 + (index % 4 == 0)} | sampling),
            ),
            adapter=NAMES[index % 3],
        )
        for index in range(num)
    ]


def assert_greedy(output: RequestOutput, request: Request, model: Any) -> None:
    """Check that the answer is the one of that model, with its log-probabilities."""
    assert output.error is None
    assert len(output.samples) == request.sampling.n
    for sample in output.samples:
        assert len(sample.token_ids) == request.sampling.max_tokens
        tokens = torch.tensor([*request.prompt_token_ids, *sample.token_ids])
        with torch.no_grad():
            logits = model(tokens[None]).logits[0].float()
        first = len(request.prompt_token_ids) - 1
        assert logits[first:-1].argmax(dim=-1).tolist() == list(sample.token_ids)
        chosen = logits.log_softmax(dim=-1)[:-1].gather(1, tokens[1:, None]).squeeze(1)
        assert sample.log_probs == pytest.approx(chosen[first:].tolist(), abs=2e-4)
        if request.sampling.prompt_log_probs is not None:
            assert output.prompt_log_probs[1:] == pytest.approx(chosen[:first].tolist(), abs=2e-4)
