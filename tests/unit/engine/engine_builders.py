"""Tiny random models written by transformers, and what engine tests do over and over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from rlserve.distributed.addresses import listen
from rlserve.engine import (
    Engine,
    EngineConfig,
    FollowerThread,
    RankPlace,
    Request,
    RequestOutput,
    SamplingParams,
    join_ranks,
)

BOTH_WAYS = pytest.mark.parametrize("overlaps", [False, True], ids=["plain", "overlapped"], indirect=True)
"""As ``pytestmark`` of a module: all of its tests, with one step at a time and with overlapped scheduling."""
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "block_size": 4,
    "num_blocks": 96,
    "max_num_sequences": 16,
    "max_num_batched_tokens": 64,
}
"""Of engines in tests; ``conftest.py`` adds whether they overlap."""
END_S = 20.0
"""Until then a test waits for what an engine in another thread does."""

VOCAB_SIZE = 96
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GEMMA: dict[str, Any] = {
    "head_dim": 20,
    "sliding_window": 9,
    "query_pre_attn_scalar": 17,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
_FAMILIES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {"rope_parameters": _LLAMA3_ROPE, "attention_bias": True, "mlp_bias": True}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {"head_dim": 20}),
    "mistral": (MistralConfig, {"sliding_window": 7}),
    "qwen2_window": (Qwen2Config, {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 1}),
    "qwen3_window": (
        Qwen3Config,
        {
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
            "head_dim": 20,
        },
    ),
    "gemma2": (Gemma2Config, _GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}),
    "gemma3": (Gemma3TextConfig, _GEMMA | {"layer_types": ["sliding_attention", "full_attention"]}),
    "qwen3_moe": (
        Qwen3MoeConfig,
        {
            "head_dim": 20,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "norm_topk_prob": True,
            "num_hidden_layers": 3,
            "mlp_only_layers": [1],
        },
    ),
}
FAMILIES = tuple(_FAMILIES)


def build_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A transformers model with random weights, biases and norms too, so that none can be forgotten unseen."""
    torch.manual_seed(seed)
    config_class, own = _FAMILIES[family]
    model = AutoModelForCausalLM.from_config(config_class(**(_SHAPE | own | changes)))
    center = 0.0 if family.startswith("gemma") else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(center + 0.2 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return model.eval()


def save_model(folder: Path, family: str = "qwen3", seed: int = 0, **changes: Any) -> Path:
    """Write a model as a Hugging Face folder."""
    build_model(family, seed, **changes).save_pretrained(folder)
    return folder


def make_engine(folder: Path, *, load_weights: bool = True, **changes: Any) -> Engine:
    """An engine on the CPU, in float32, with few small blocks."""
    return Engine(folder, EngineConfig(**(SETTINGS | changes)), load_weights=load_weights)


@contextmanager
def engine_over_two_ranks(folder: Path, *, load_weights: bool = True, **changes: Any) -> Iterator[Engine]:
    """An engine over two ranks, as of :func:`make_engine`; the other rank is a thread, which starts quicker than a
    process."""
    config = EngineConfig(**(SETTINGS | {"tensor_parallel_size": 2} | changes))
    with listen() as listening:
        host, port = listening.getsockname()
        places = [RankPlace(rank=rank, num_ranks=2, host=host, port=port, secret="s") for rank in range(2)]
        follower = FollowerThread(folder, config, places[1])
        group = join_ranks(places[0], config, listening=listening)
        engine = Engine(folder, config, load_weights=load_weights, ranks=group)
        yield engine
        engine.close()
        follower.wait(60.0)


def make_request(request_id: str, prompt: Iterable[int], **sampling: Any) -> Request:
    """A request; what is not said about sampling is the default."""
    return Request(id=request_id, prompt_token_ids=tuple(prompt), sampling=SamplingParams(**sampling))


def run(engine: Engine, requests: Iterable[Request] = ()) -> dict[str, RequestOutput]:
    """Serve until there is no work, checking the engine's books after every step."""
    for request in requests:
        engine.add(request)
    outputs: dict[str, RequestOutput] = {}
    while engine.has_work:
        for output in engine.step():
            assert output.request_id not in outputs
            outputs[output.request_id] = output
        engine.check_integrity()
    return outputs


def weights_of(family: str, seed: int, **changes: Any) -> dict[str, torch.Tensor]:
    """Weights of a model by Hugging Face name, as a trainer sends them."""
    model = build_model(family, seed, **changes)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def weight_bytes(engine: Engine) -> int:
    """Memory that the weights take."""
    return sum(tensor.untyped_storage().nbytes() for tensor in engine._runner._parameters._fused)
