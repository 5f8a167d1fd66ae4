"""Continuous batching of transformers: what ``generate_batch`` runs, with a length for each request."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import transformers
from peers.base import BenchmarkRequest, Peer, PeerOptions, RunOutcome
from peers.hf import load_model, sampling_config
from transformers import ContinuousBatchingConfig

PAGE_SIZE = 256
"""Tokens of a page: the default of transformers."""
MAX_BATCH_TOKENS = 512
SPARE_PAGES = 16
RESULT_DEADLINE_S = 600.0


class ContinuousBatchingPeer(Peer):
    """The manager behind ``generate_batch``, which itself gives all requests one length."""

    def __init__(self, options: PeerOptions) -> None:
        super().__init__(options)
        torch.set_num_threads(options.num_threads)
        self._model = load_model(options)

    def run(self, requests: Sequence[BenchmarkRequest]) -> RunOutcome:
        num_samples = requests[0].num_samples  # one number for all: it belongs to the manager
        start = time.perf_counter()
        manager_context = self._model.continuous_batching_context_manager(
            generation_config=sampling_config(
                max(request.max_tokens for request in requests), num_return_sequences=num_samples
            ),
            continuous_batching_config=self._batching_config(),
            block=True,
            warmup=False,
        )
        num_output_tokens, first_token_s = 0, {}
        with torch.no_grad(), manager_context as manager:
            for request in requests:
                manager.add_request(
                    list(request.prompt_token_ids),
                    request_id=request.id,
                    max_new_tokens=request.max_tokens,
                    record_timestamps=True,
                    eos_token_id=-1,
                )
            for _ in range(len(requests) * num_samples):
                result = manager.get_result(timeout=RESULT_DEADLINE_S)
                if result is None or result.error is not None:
                    raise RuntimeError(result.error if result else f"no result within {RESULT_DEADLINE_S:.0f} s")
                num_output_tokens += len(result.generated_tokens)
                first_token_s[result.request_id] = result.timestamps[0] - start
        return RunOutcome(
            num_output_tokens=num_output_tokens,
            first_token_s=tuple(first_token_s[request.id] for request in requests),
        )

    def versions(self) -> dict[str, str]:
        return {"transformers": transformers.__version__, "torch": torch.__version__}

    def settings(self) -> dict[str, str]:
        return {"page_size": str(PAGE_SIZE), "max_batch_tokens": str(MAX_BATCH_TOKENS), "attention": "paged|sdpa"}

    def _batching_config(self) -> ContinuousBatchingConfig:
        """As many pages as the case can fill: the mask of SDPA has a column for each token of the cache."""
        pages_a_sequence = -(-self.options.max_model_len // PAGE_SIZE)
        return ContinuousBatchingConfig(
            page_size=PAGE_SIZE,
            num_blocks=self.options.max_num_sequences * pages_a_sequence + SPARE_PAGES,
            max_batch_tokens=MAX_BATCH_TOKENS,
            max_requests_per_batch=self.options.max_num_sequences,
        )
