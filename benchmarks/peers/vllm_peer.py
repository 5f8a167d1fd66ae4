"""The CPU build of vLLM. Runs on a Python of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence

from peers.base import BenchmarkRequest, Peer, PeerOptions, RunOutcome

_ENVIRONMENT = {
    # In one process: on few cores the messages between front end, core and worker cost more than they overlap.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The threads are not pinned, as those of no other peer are.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
_ONEDNN_ISA = {"avx2": "AVX2", "avx512": "AVX512_CORE_VNNI", "avx512_bf16": "AVX512_CORE_BF16"}
"""What oneDNN calls the instruction sets that ``RLSERVE_MAX_CPU_ISA`` names."""
BLOCK_SIZE = 128
"""Tokens of a KV block: the default of the CPU build."""


class VllmPeer(Peer):
    """``LLM.generate`` with compilation, prefix caching and chunked prefill, as it does by itself."""

    def __init__(self, options: PeerOptions) -> None:
        super().__init__(options)
        os.environ.update(_ENVIRONMENT)
        _leave_out_instructions(os.environ.get("RLSERVE_MAX_CPU_ISA"))
        import vllm  # reads the environment when it is imported

        self._vllm = vllm
        self._llm = vllm.LLM(
            model=options.model_folder,
            dtype=options.dtype,
            skip_tokenizer_init=True,
            max_model_len=options.max_model_len,
            max_num_seqs=options.max_num_sequences,
            kv_cache_memory_bytes=options.kv_cache_bytes,
            block_size=BLOCK_SIZE,
            enable_prefix_caching=True,
            disable_log_stats=False,
        )

    def run(self, requests: Sequence[BenchmarkRequest]) -> RunOutcome:
        prompts = [{"prompt_token_ids": list(request.prompt_token_ids)} for request in requests]
        sampling = [self._sampling_params(request) for request in requests]
        outputs = self._llm.generate(prompts, sampling, use_tqdm=False)
        return RunOutcome(
            num_output_tokens=sum(len(sample.token_ids) for output in outputs for sample in output.outputs),
            first_token_s=tuple(output.metrics.first_token_latency for output in outputs),
        )

    def versions(self) -> dict[str, str]:
        import torch

        return {"vllm": self._vllm.__version__, "torch": torch.__version__}

    def settings(self) -> dict[str, str]:
        compilation = self._llm.llm_engine.vllm_config.compilation_config
        return {"block_size": str(BLOCK_SIZE), "compilation": compilation.mode.name, "processes": "1"}

    def _sampling_params(self, request: BenchmarkRequest) -> object:
        return self._vllm.SamplingParams(
            n=request.num_samples,
            temperature=1.0,
            max_tokens=request.max_tokens,
            ignore_eos=True,
            detokenize=False,
        )


def _leave_out_instructions(max_isa: str | None) -> None:
    """What our kernels leave out vLLM leaves out too: it picks its own kernels by what torch says of the processor,
    and oneDNN's by an environment variable."""
    if not max_isa:
        return
    os.environ["ONEDNN_MAX_CPU_ISA"] = _ONEDNN_ISA[max_isa]
    import torch

    missing = {
        "_is_avx512_bf16_supported": max_isa != "avx512_bf16",
        "_is_avx512_supported": max_isa == "avx2",
        "_is_amx_tile_supported": True,
    }
    for name, is_missing in missing.items():
        if is_missing:
            setattr(torch.cpu, name, lambda: False)
