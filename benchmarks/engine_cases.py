"""What is measured: the cases, and the requests of each round."""

from __future__ import annotations

import random
from dataclasses import dataclass

from models import SHAPES
from peers.base import BenchmarkRequest, PeerOptions

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and a number of requests, all submitted at once."""

    name: str
    shape: str
    """Name of a shape of ``models.py``."""
    dtype: str
    num_prompts: int
    prompt_tokens: tuple[int, int] = (16, 64)
    """Shortest and longest prompt, uniformly distributed."""
    output_tokens: tuple[int, int] = (32, 256)
    """Shortest and longest answer, uniformly distributed; the samples of one prompt have one length."""
    num_samples: int = 1
    """Samples of each prompt."""
    kv_cache_bytes: int = GIB
    default_rounds: int = 3

    @property
    def num_sequences(self) -> int:
        """Samples of all prompts."""
        return self.num_prompts * self.num_samples


_CASES = (
    Case(name="6m-f32", shape="6m", dtype="float32", num_prompts=64),
    Case(name="6m-bf16", shape="6m", dtype="bfloat16", num_prompts=64),
    Case(name="6m-bf16-256", shape="6m", dtype="bfloat16", num_prompts=256),
    Case(name="75m-bf16", shape="75m", dtype="bfloat16", num_prompts=64),
    Case(
        name="596m-bf16-16",
        shape="596m",
        dtype="bfloat16",
        num_prompts=16,
        kv_cache_bytes=2 * GIB,
        default_rounds=2,
    ),
    Case(
        name="groups-75m-bf16",
        shape="75m",
        dtype="bfloat16",
        num_prompts=16,
        num_samples=8,
        prompt_tokens=(512, 512),
        kv_cache_bytes=2 * GIB,
        default_rounds=2,
    ),
)
CASES = {case.name: case for case in _CASES}

SMOKE = Case(
    name="smoke",
    shape="tiny",
    dtype="float32",
    num_prompts=4,
    prompt_tokens=(4, 8),
    output_tokens=(2, 6),
    num_samples=2,
)
"""Shows in seconds that every peer works; measures nothing."""


def make_requests(case: Case, round_index: int) -> list[BenchmarkRequest]:
    """The requests of a round, the same in every process. Lengths are the same in every round, so that rounds can
    be compared; tokens are not, so that no peer finds a prompt of the round before in its cache."""
    lengths = random.Random(f"lengths of {case.name}")
    tokens = random.Random(f"tokens of {case.name} in round {round_index}")
    vocab_size = SHAPES[case.shape].vocab_size
    requests = []
    for index in range(case.num_prompts):
        num_prompt_tokens, max_tokens = lengths.randint(*case.prompt_tokens), lengths.randint(*case.output_tokens)
        requests.append(
            BenchmarkRequest(
                id=f"round-{round_index}-prompt-{index}",
                prompt_token_ids=tuple(tokens.randrange(vocab_size) for _ in range(num_prompt_tokens)),
                num_samples=case.num_samples,
                max_tokens=max_tokens,
            )
        )
    return requests


def num_output_tokens(requests: list[BenchmarkRequest]) -> int:
    """Tokens that the requests ask for."""
    return sum(request.num_samples * request.max_tokens for request in requests)


def peer_options(case: Case, *, model_folder: str, num_threads: int) -> PeerOptions:
    """What every peer is told for the case."""
    return PeerOptions(
        model_folder=model_folder,
        dtype=case.dtype,
        num_threads=num_threads,
        kv_cache_bytes=case.kv_cache_bytes,
        max_num_sequences=case.num_sequences,
        max_model_len=case.prompt_tokens[1] + case.output_tokens[1],
    )
