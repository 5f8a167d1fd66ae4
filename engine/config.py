"""Configuration of the rollout engine. Imports no torch, so that the command line stays quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlserve.errors import check_fields

KvCacheDtype = Literal["auto", "int8", "fp8"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How one engine computes and how much it may hold; which model it serves is given apart."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; ``auto`` takes the GPU that the process sees, if it sees one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of the weights and of the KV cache. ``float16`` is not for the backend ``cpu``: it is for a GPU, where it
    rounds less than bfloat16, and overflows with models whose activations go beyond 65504."""
    weight_dtype: Literal["auto", "int8"] = "auto"
    """``int8`` computes all products but the head with weights rounded to 8 bits, with a scale for each output:
    a quarter less memory in all, and faster where one or two samples are decoded, not where many are. Updates bring
    the weights in full, which are rounded anew. It changes log-probabilities. Only for the backend ``cpu``, and models
    without experts."""
    kv_cache_dtype: KvCacheDtype = "auto"
    """``auto`` caches keys and values as ``dtype``; ``int8`` and ``fp8`` (e4m3) in half the memory of bfloat16, with a
    scale of each token and head. They change log-probabilities a little, ``int8`` less. The backend ``cpu`` has
    ``int8``, ``torch`` and ``triton`` have both, ``flash`` has neither; ``fp8`` on a GPU needs one of compute
    capability 8.9 or later."""
    block_size: int = 16
    """Tokens per KV block."""
    num_blocks: int | None = None
    """KV blocks in the cache; None sizes the cache from ``kv_cache_bytes``."""
    kv_cache_bytes: int | None = None
    """Memory for the KV cache where ``num_blocks`` is None. None takes what is free on a GPU, see
    ``gpu_memory_fraction``, and 256 MiB on the CPU or with more than one GPU to an engine."""
    gpu_memory_fraction: float = 0.9
    """Share for the KV cache of what is free on the GPU when the weights are there, less what the largest step takes;
    no more than twice what ``max_num_sequences`` sequences of ``max_model_len`` fill.
    Weights that arrive in buckets are staged in the rest: leave room for a copy of them."""
    max_num_sequences: int = 128
    """Most sequences (samples, not requests) computed in one step."""
    max_num_batched_tokens: int = 2048
    """Most tokens computed in one step; longer prompts are prefilled in chunks."""
    max_model_len: int | None = None
    """Longest prompt plus answer in tokens; None takes the model's own limit."""
    enable_prefix_caching: bool = True
    """Share full KV blocks between requests with the same beginning."""
    on_new_weights: Literal["keep_kv", "recompute"] = "keep_kv"
    """What becomes of samples that decode while new weights are swapped in; their tokens and log-probabilities stay in
    any case. ``keep_kv`` goes on from the keys and values that older weights made, at no cost; ``recompute`` computes
    those of all tokens so far anew, so that the tokens to come are those of the new weights alone."""
    deterministic: bool = False
    """The same tokens and log-probabilities, bit for bit, whatever else is in the batch: on the CPU, with the backend
    ``cpu`` or ``torch``. It costs speed with ``torch`` (where bits also depend on the number of threads) and with
    experts, and nothing else where a step is one program anyway: see ``docs/architecture.md``."""
    attention_backend: Literal["auto", "torch", "cpu", "triton", "flash"] = "auto"
    """``cpu`` is the C++ kernel compiled at first use; ``triton`` and ``flash`` (flash-attn) need a GPU; ``torch`` is
    plain PyTorch anywhere. ``auto`` takes ``cpu`` or ``triton``, by device, where it can be had."""

    cuda_graphs: bool = True
    """On a GPU with ``triton`` or ``flash``: replay a decoding step as one CUDA graph. They are captured at the first
    such step, which takes seconds. Models with experts are computed without."""
    tensor_parallel_size: int = 1
    """Processes that share the model: each has a part of the heads, of the MLPs, of the vocabulary and of the KV cache,
    which ``kv_cache_bytes`` sizes in each. The engine starts the others on this machine; on GPUs each takes one. In a
    run they are a gang: the slots that a replica has, and that move together."""
    overlap_scheduling: bool | None = None
    """Plan and launch the next step while the device computes one, before its tokens are read: see
    ``engine/core/pipeline.py``. A sample that ends by a stop is computed one token too far, which is dropped. Steps
    with penalties, biases or details of draws are not overlapped. None does so on a GPU; on the CPU it gains
    nothing."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "block_size": self.block_size >= 1 or "must be at least 1",
                "num_blocks": self.num_blocks is None or self.num_blocks >= 1 or "must be at least 1",
                "kv_cache_bytes": self.kv_cache_bytes is None or self.kv_cache_bytes >= 1 or "must be at least 1",
                "gpu_memory_fraction": 0 < self.gpu_memory_fraction <= 1 or "must be greater than 0 and at most 1",
                "max_num_sequences": self.max_num_sequences >= 1 or "must be at least 1",
                "max_num_batched_tokens": self.max_num_batched_tokens >= 1 or "must be at least 1",
                "deterministic": not (self.deterministic and self.tensor_parallel_size > 1)
                or "must be false with tensor_parallel_size > 1: sums over processes round otherwise",
                "overlap_scheduling": not (self.overlap_scheduling and self.tensor_parallel_size > 1)
                or "must not be true with tensor_parallel_size > 1",
                "weight_dtype": not (self.weight_dtype == "int8" and self.tensor_parallel_size > 1)
                or "must be auto with tensor_parallel_size > 1",
                "tensor_parallel_size": self.tensor_parallel_size >= 1 or "must be at least 1",
                "max_model_len": self.max_model_len is None or self.max_model_len >= 2 or "must be at least 2",
            },
        )
