"""Our own engine."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from peers.base import BenchmarkRequest, Peer, PeerOptions, RunOutcome

import rlserve
from rlserve.engine import Engine, EngineConfig, Request, SamplingParams


class RlservePeer(Peer):
    """``Engine.add`` and ``Engine.step``; log-probabilities of every token are part of its work."""

    def __init__(self, options: PeerOptions) -> None:
        super().__init__(options)
        torch.set_num_threads(options.num_threads)
        self._config = EngineConfig(
            dtype="float32" if options.dtype == "float32" else "bfloat16",
            kv_cache_bytes=options.kv_cache_bytes,
            max_num_sequences=options.max_num_sequences,
            max_model_len=options.max_model_len,
        )
        self._engine = Engine(options.model_folder, self._config)

    def run(self, requests: Sequence[BenchmarkRequest]) -> RunOutcome:
        engine, start = self._engine, time.perf_counter()
        for request in requests:
            engine.add(_engine_request(request))
        num_samples = {request.id: request.num_samples for request in requests}
        stats = engine.stats()
        num_generated, num_preemptions = stats.num_generated_tokens, stats.num_preemptions
        num_decoding = num_output_tokens = 0
        first_token_s: list[float] = []
        while engine.has_work:
            outputs = engine.step()
            stats = engine.stats()
            # A sample gets a token in every step from its first to its last; what is more are first tokens.
            num_first = stats.num_generated_tokens - num_generated - num_decoding
            first_token_s += [time.perf_counter() - start] * num_first
            num_generated = stats.num_generated_tokens
            num_decoding += num_first - sum(num_samples[output.request_id] for output in outputs)
            for output in outputs:
                assert output.error is None, output.error
                num_output_tokens += sum(len(sample.token_ids) for sample in output.samples)
        was_preempted = stats.num_preemptions > num_preemptions
        return RunOutcome(
            num_output_tokens=num_output_tokens,
            first_token_s=() if was_preempted else tuple(first_token_s),
        )

    def versions(self) -> dict[str, str]:
        return {"rlserve": rlserve.__version__, "torch": torch.__version__}

    def settings(self) -> dict[str, str]:
        config = self._config
        return {
            "block_size": str(config.block_size),
            "max_num_batched_tokens": str(config.max_num_batched_tokens),
            "attention_backend": config.attention_backend,
        }


def _engine_request(request: BenchmarkRequest) -> Request:
    return Request(
        id=request.id,
        prompt_token_ids=request.prompt_token_ids,
        sampling=SamplingParams(n=request.num_samples, max_tokens=request.max_tokens, ignore_eos=True),
    )
