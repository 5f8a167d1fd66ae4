"""The contract of a peer: an engine that the benchmark measures. Standard library only: a peer may run on a Python
that has none of rlserve's dependencies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

WARM_UP_TOKENS = 16
"""Output tokens of each request in the warm-up: enough for every kernel to be compiled and every page touched."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkRequest:
    """A prompt to be completed ``num_samples`` times with exactly ``max_tokens`` tokens; nothing ends it before."""

    id: str
    prompt_token_ids: tuple[int, ...]
    num_samples: int
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class PeerOptions:
    """What is the same for every peer of a case."""

    model_folder: str
    dtype: str
    """``float32`` or ``bfloat16``: weights, computation and KV cache."""
    num_threads: int
    kv_cache_bytes: int
    """Memory for the KV cache, where a peer has a fixed one."""
    max_num_sequences: int
    """All samples of the case: no peer has to wait for a place."""
    max_model_len: int


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What one run of all requests gave."""

    num_output_tokens: int
    """Tokens that were asked for; padding and tokens past a request's end do not count."""
    first_token_s: tuple[float, ...]
    """Per request: seconds from the start of the run, when all are submitted, to its first token. Empty where the
    peer does not tell."""


class Peer(ABC):
    """One engine with one model loaded. Made in a process of its own, with its threads set before."""

    def __init__(self, options: PeerOptions) -> None:
        self.options = options

    @abstractmethod
    def run(self, requests: Sequence[BenchmarkRequest]) -> RunOutcome:
        """Submit all requests at once, and return when the last is complete."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the packages that do the work, by name."""

    @abstractmethod
    def settings(self) -> dict[str, str]:
        """Choices that matter for speed, as shown in the report."""

    def warm_up(self, requests: Sequence[BenchmarkRequest]) -> None:
        """Do once what must not be measured: compile, touch memory, choose sizes."""
        self.run(shortened(requests))


def shortened(requests: Sequence[BenchmarkRequest]) -> list[BenchmarkRequest]:
    """The same requests with at most :data:`WARM_UP_TOKENS` output tokens each."""
    return [replace(request, max_tokens=min(request.max_tokens, WARM_UP_TOKENS)) for request in requests]
