"""Overlapped scheduling: what is launched before what is read, what is computed in vain, and that nothing else
changes. Beside these, whole modules and the state machine run both ways."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_builders import VOCAB_SIZE, make_engine, make_request, run, save_model, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlserve.engine import Engine, EngineConfig, FinishReason, Request
from rlserve.engine.kernels.base import Draw, SampledTokens
from rlserve.engine.sampling.sampler import DrawDetails
from rlserve.engine.sequences.table import SequenceTable


@cache
def folder() -> Path:
    return save_model(Path(tempfile.mkdtemp()), "qwen3")


@dataclass(frozen=True)
class WatchedDraw:
    """Notes when its tokens are read."""

    draw: Draw
    name: str
    events: list[str]

    @property
    def token_ids_B(self) -> torch.Tensor:
        return self.draw.token_ids_B

    def read(self) -> SampledTokens:
        self.events.append(f"read {self.name}")
        return self.draw.read()


def watch(engine: Engine) -> list[str]:
    """Launches and reads of the engine's steps from now on, in order."""
    events: list[str] = []
    draw = engine._runner.draw

    def watched(
        logits_RV: torch.Tensor, rows: SequenceTable, rows_B: NDArray[np.intp], logits_row_B: NDArray[np.int32]
    ) -> tuple[Draw, list[DrawDetails]]:
        name = str(sum(event.startswith("launch") for event in events) + 1)
        events.append(f"launch {name}")
        drawn, details = draw(logits_RV, rows, rows_B, logits_row_B)
        return WatchedDraw(drawn, name, events), details

    engine._runner.draw = watched  # type: ignore[method-assign]
    return events


def same_both_ways(requests: list[Request], **changes: Any) -> tuple[Engine, Engine]:
    """The plain and the overlapped engine after they served the requests and gave the same, bit for bit."""
    plain, overlapped = (
        make_engine(folder(), attention_backend="torch", deterministic=True, overlap_scheduling=overlaps, **changes)
        for overlaps in (False, True)
    )
    expected = run(plain, requests)
    found = run(overlapped, requests)
    assert {name: output.samples for name, output in found.items()} == {
        name: output.samples for name, output in expected.items()
    }
    return plain, overlapped


def test_the_next_step_is_launched_before_the_tokens_of_the_last_one_are_read() -> None:
    engine = make_engine(folder(), overlap_scheduling=True)
    events = watch(engine)
    run(engine, [make_request("0", [1, 2, 3], max_tokens=4)])
    assert events == [
        *("launch 1", "launch 2", "read 1", "launch 3", "read 2", "launch 4", "read 3"),
        "read 4",
    ]


def test_without_overlap_a_step_is_read_before_the_next_one_is_launched() -> None:
    engine = make_engine(folder(), overlap_scheduling=False)
    events = watch(engine)
    run(engine, [make_request("0", [1, 2, 3], max_tokens=2)])
    assert events == ["launch 1", "read 1", "launch 2", "read 2"]


def test_on_the_cpu_nothing_overlaps_unless_asked_for() -> None:
    assert not Engine(folder(), EngineConfig(device="cpu", num_blocks=4))._runner.overlaps


@pytest.mark.parametrize(
    "sampling", [{"frequency_penalty": 0.5}, {"num_top_log_probs": 2}, {"logit_bias": {3: 1.0}}, {"min_tokens": 2}]
)
def test_what_must_know_all_tokens_reads_them_before_it_draws(sampling: dict[str, Any]) -> None:
    engine = make_engine(folder(), overlap_scheduling=True)
    events = watch(engine)
    run(engine, [make_request("0", [1, 2, 3], max_tokens=3, **sampling), make_request("1", [4], max_tokens=5)])
    assert events == [
        *("launch 1", "read 1", "launch 2", "read 2", "launch 3"),
        *("launch 4", "read 3", "launch 5", "read 4", "read 5"),  # the other request goes on alone
    ]


def test_samples_that_end_by_length_are_not_computed_too_far() -> None:
    requests = [make_request(str(index), [index, 5], n=2, max_tokens=1 + 3 * index, seed=index) for index in range(4)]
    plain, overlapped = same_both_ways(requests)
    assert overlapped.stats().num_dropped_tokens == 0
    assert overlapped.stats().num_computed_tokens == plain.stats().num_computed_tokens
    assert overlapped.stats().num_generated_tokens == plain.stats().num_generated_tokens


def test_the_token_behind_a_stop_is_dropped_and_nothing_else() -> None:
    requests = [
        make_request(str(index), [7, index], max_tokens=40, seed=index, stop_token_ids=tuple(range(0, VOCAB_SIZE, 8)))
        for index in range(12)
    ]
    plain, overlapped = same_both_ways(requests)
    num_stopped = sum(output.samples[0].finish_reason is FinishReason.STOP for output in run(plain, requests).values())
    assert num_stopped > 6
    assert overlapped.stats().num_dropped_tokens == num_stopped
    assert overlapped.stats().num_computed_tokens * 2 == plain.stats().num_computed_tokens + 2 * num_stopped
    assert plain.stats().num_dropped_tokens == 0


def test_a_row_that_changes_hands_gets_no_token_of_its_last_owner() -> None:
    first = make_request("0", [9, 8, 7], max_tokens=30, temperature=0.0)
    tokens = run(make_engine(folder()), [first])["0"].samples[0].token_ids
    stopped = replace(first, sampling=replace(first.sampling, stop_token_ids=(tokens[2],)))
    # One row and hardly any blocks: the second request takes both while the first one's last step is in flight.
    _, engine = same_both_ways([stopped, make_request("1", [3], max_tokens=6)], max_num_sequences=1, num_blocks=9)
    assert engine.stats().num_dropped_tokens == 1


def test_preemption_reads_all_tokens_first_and_so_may_not_be_needed() -> None:
    requests = [make_request(str(index), [index] * 6, max_tokens=24, seed=index) for index in range(6)]
    plain, overlapped = same_both_ways(requests, num_blocks=14)
    assert overlapped.stats().num_preemptions == plain.stats().num_preemptions > 0
    assert overlapped.stats().num_generated_tokens == plain.stats().num_generated_tokens
    assert overlapped.stats().num_dropped_tokens == 0


@pytest.mark.parametrize("overlaps", [False, True], indirect=True)
def test_what_was_generated_is_found_in_the_prefix_cache(overlaps: bool) -> None:
    engine = make_engine(folder(), block_size=4)
    answer = run(engine, [make_request("0", [1, 2, 3, 4], max_tokens=12)])["0"].samples[0].token_ids
    assert run(engine, [make_request("1", [1, 2, 3, 4, *answer])])["1"].num_cached_tokens == 12


def test_a_token_is_of_the_version_that_its_step_was_launched_with() -> None:
    request = make_request("0", [1, 2, 3], max_tokens=9)
    versions = []
    for overlaps in (False, True):
        engine = make_engine(folder(), overlap_scheduling=overlaps)
        engine.add(request)
        for _ in range(4):
            engine.step()
        engine.load_weights(3, weights_of("qwen3", 1))
        versions.append(run(engine)["0"].samples[0])
    assert versions[0].weight_spans == ((0, 0, 4), (3, 4, 9))
    assert versions[1].weight_spans == versions[0].weight_spans
    assert versions[1].token_ids == versions[0].token_ids


def test_an_engine_without_requests_has_no_step_in_flight() -> None:
    engine = make_engine(folder(), overlap_scheduling=True)
    events = watch(engine)
    engine.add(make_request("0", [1, 2, 3], max_tokens=20))
    for _ in range(3):
        engine.step()
    engine.abort(["0"])
    assert events[-2:] == ["read 2", "read 3"]
    assert engine.stats().num_dropped_tokens == 1
    engine.release_memory()
    engine.check_integrity()


_SAMPLINGS = st.fixed_dictionaries(
    {
        "n": st.integers(1, 3),
        "max_tokens": st.integers(1, 20),
        "temperature": st.sampled_from([0.0, 0.8, 1.0]),
        "seed": st.integers(0, 9),
    },
    optional={
        "top_k": st.just(5),
        "top_p": st.just(0.8),
        "min_p": st.just(0.05),
        "stop_token_ids": st.just(tuple(range(0, VOCAB_SIZE, 6))),
        "presence_penalty": st.just(0.7),
        "num_top_log_probs": st.just(2),
        "kept_support": st.just(True),
        "min_tokens": st.just(1),
        "prompt_log_probs": st.just(1),
    },
)


@settings(max_examples=25, deadline=None)
@given(
    samplings=st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=12), _SAMPLINGS), max_size=6),
    num_blocks=st.integers(10, 30),
)
def test_whatever_is_asked_for_comes_out_the_same_to_the_bit(
    samplings: list[tuple[list[int], dict[str, Any]]], num_blocks: int
) -> None:
    requests = [make_request(str(name), prompt, **sampling) for name, (prompt, sampling) in enumerate(samplings)]
    plain, overlapped = same_both_ways(requests, num_blocks=num_blocks, max_num_sequences=5, max_num_batched_tokens=9)
    assert overlapped.stats().num_generated_tokens == plain.stats().num_generated_tokens
