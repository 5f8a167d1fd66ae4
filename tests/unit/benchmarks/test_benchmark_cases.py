"""Cases, requests and model shapes of the engine benchmark."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from engine_cases import CASES, SMOKE, Case, make_requests, num_output_tokens, peer_options
from models import SHAPES

FOLDER = Path(__file__).parents[3] / "benchmarks"
EVERY_CASE = [*CASES.values(), SMOKE]


@pytest.mark.parametrize("case", EVERY_CASE, ids=lambda case: case.name)
def test_requests_have_the_counts_and_lengths_of_their_case(case: Case) -> None:
    requests = make_requests(case, 1)
    vocab_size = SHAPES[case.shape].vocab_size
    assert len({request.id for request in requests}) == case.num_prompts
    for request in requests:
        assert case.prompt_tokens[0] <= len(request.prompt_token_ids) <= case.prompt_tokens[1]
        assert case.output_tokens[0] <= request.max_tokens <= case.output_tokens[1]
        assert request.num_samples == case.num_samples
        assert all(0 <= token < vocab_size for token in request.prompt_token_ids)
    assert num_output_tokens(requests) == case.num_samples * sum(request.max_tokens for request in requests)


def test_requests_are_the_same_in_every_process() -> None:
    program = "from engine_cases import *; print(hash(tuple(make_requests(CASES['6m-bf16'], 3))))"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=FOLDER,
            env={"PYTHONHASHSEED": "0", "PYTHONPATH": str(FOLDER)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    }
    assert len(hashes) == 1
    assert make_requests(CASES["6m-bf16"], 3) == make_requests(CASES["6m-bf16"], 3)


def test_rounds_share_lengths_but_no_tokens() -> None:
    first, second = (make_requests(CASES["groups-75m-bf16"], round_index) for round_index in (1, 2))
    assert [request.max_tokens for request in first] == [request.max_tokens for request in second]
    assert [len(request.prompt_token_ids) for request in first] == [len(request.prompt_token_ids) for request in second]
    beginnings = [request.prompt_token_ids[:16] for request in (*first, *second)]
    assert len(set(beginnings)) == len(beginnings), "a prompt of one round would be cached in the next"


@pytest.mark.parametrize("case", EVERY_CASE, ids=lambda case: case.name)
def test_every_peer_can_hold_all_samples_at_once(case: Case) -> None:
    options = peer_options(case, model_folder="unused", num_threads=2)
    shape = SHAPES[case.shape]
    element_bytes = 4 if case.dtype == "float32" else 2
    token_bytes = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * element_bytes
    largest_block = 128
    tokens = sum(
        request.num_samples * (request.max_tokens + 2 * largest_block) + len(request.prompt_token_ids)
        for request in make_requests(case, 1)
    )
    assert tokens * token_bytes <= options.kv_cache_bytes
    assert options.max_num_sequences == case.num_prompts * case.num_samples
    assert options.max_model_len >= case.prompt_tokens[1] + case.output_tokens[1]


@pytest.mark.parametrize(("name", "num_parameters"), [("6m", 6e6), ("75m", 75e6), ("596m", 596e6)])
def test_shapes_have_the_size_of_their_name(name: str, num_parameters: float) -> None:
    assert SHAPES[name].num_parameters == pytest.approx(num_parameters, rel=0.05)
