"""Models, engines and batches that several parts use."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from models import SHAPES, model_folder

from gpu_parts.base import Place, Report
from rlserve.engine import Engine, EngineConfig, Request, RequestOutput
from rlserve.trainers import Batch

MAX_MODEL_LEN = 4096


def folder_of(place: Place, name: str) -> str:
    """The model of this name on a GPU, the smallest one on a CPU."""
    return str(model_folder(SHAPES[name if place.on_gpu else "tiny"], place.cache))


def make_engine(place: Place, name: str, **changes: Any) -> Engine:
    """An engine whose cache takes a third of what is free."""
    settings: dict[str, Any] = {
        "device": place.device,
        "dtype": "bfloat16" if place.on_gpu else "float32",
        "max_model_len": MAX_MODEL_LEN if place.on_gpu else 128,
        "kv_cache_bytes": torch.cuda.mem_get_info()[0] // 3 if place.on_gpu else 2**20,
        "enable_prefix_caching": False,
    }
    return Engine(folder_of(place, name), EngineConfig(**(settings | changes)))


def serve(engine: Engine, requests: list[Request]) -> dict[str, RequestOutput]:
    """The outputs of all requests, given at once, by id."""
    for request in requests:
        engine.add(request)
    outputs: dict[str, RequestOutput] = {}
    while engine.has_work:
        for output in engine.step():
            assert output.error is None, output.error
            outputs[output.request_id] = output
    engine.check_integrity()
    return outputs


def make_models(place: Place, report: Report) -> None:
    """Write the models that the other parts use, where they are not there yet."""
    start = time.perf_counter()
    for name in ("6m", "596m"):
        folder_of(place, name)
    report.figure("models: s to write them", time.perf_counter() - start)


def tokens(outputs: dict[str, RequestOutput]) -> dict[str, tuple[int, ...]]:
    """Tokens of each request's one sample."""
    return {request_id: tuple(output.samples[0].token_ids) for request_id, output in outputs.items()}


def answers(outputs: dict[str, RequestOutput]) -> dict[str, tuple[tuple[int, ...], tuple[float, ...]]]:
    """Tokens and log-probabilities of each request's one sample, to be compared bit by bit."""
    return {
        request_id: (tuple(output.samples[0].token_ids), tuple(output.samples[0].log_probs))
        for request_id, output in outputs.items()
    }


def make_batch(*, num_samples: int, prompt_length: int, response_length: int, vocab_size: int, seed: int) -> Batch:
    """Random samples of one length, eight to a prompt group."""
    rng = np.random.default_rng(seed)
    num_response_tokens = num_samples * response_length
    log_probs = np.full(num_response_tokens, -np.log(vocab_size), dtype=np.float32)
    return Batch(
        sample_ids=tuple(f"{seed}:{index}" for index in range(num_samples)),
        group_ids=tuple(f"{seed}:{index // 8}" for index in range(num_samples)),
        prompt_lengths=np.full(num_samples, prompt_length, dtype=np.int32),
        response_lengths=np.full(num_samples, response_length, dtype=np.int32),
        token_ids=rng.integers(0, vocab_size, num_samples * (prompt_length + response_length)).astype(np.int32),
        loss_mask=np.ones(num_response_tokens, dtype=bool),
        log_probs=log_probs,
        behaviour_log_probs=log_probs,
        weight_versions=np.zeros(num_response_tokens, dtype=np.int32),
        rewards=rng.normal(size=num_samples).astype(np.float32),
        finish_reasons=("length",) * num_samples,
    )


def synchronize(place: Place) -> None:
    """Wait for the GPU, where there is one."""
    if place.on_gpu:
        torch.cuda.synchronize()
