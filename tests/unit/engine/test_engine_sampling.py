"""Drawing tokens: both implementations against the definition, written out in float64."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_builders import make_engine, make_request, run, save_model
from numpy.typing import NDArray

from rlserve.engine.kernels.base import Kernels, SampledTokens, SamplingBatch
from rlserve.engine.kernels.factory import create_kernels
from rlserve.engine.sequences.random_streams import stream_key, stream_keys, uniforms

BACKENDS = ["cpu", "torch"]


def _definition(logits: NDArray[np.float64], temperature: float, top_k: int, top_p: float) -> NDArray[np.float64]:
    """[V] the distribution to draw from."""
    scaled = logits / temperature
    kept = np.ones(len(scaled), dtype=bool)
    if top_k:
        kept &= scaled >= np.sort(scaled)[::-1][min(top_k, len(scaled)) - 1]
    weights = np.where(kept, np.exp(scaled - scaled.max()), 0.0)
    probabilities = weights / weights.sum()
    if top_p < 1:
        ordered = np.sort(probabilities)[::-1]
        num_kept = int(np.searchsorted(ordered.cumsum(), top_p)) + 1
        probabilities = np.where(probabilities >= ordered[num_kept - 1], probabilities, 0.0)
    return probabilities / probabilities.sum()


def _sample(
    kernels: Kernels, logits: torch.Tensor, uniform: NDArray[np.float64], temperature: float, top_k: int, top_p: float
) -> SampledTokens:
    """Draw once per uniform number from one row of logits."""
    num_draws = len(uniform)
    batch = SamplingBatch(
        logits_row=np.zeros(num_draws, dtype=np.int32),
        temperature=np.full(num_draws, temperature, dtype=np.float32),
        top_k=np.full(num_draws, top_k, dtype=np.int32),
        top_p=np.full(num_draws, top_p, dtype=np.float32),
        min_p=np.zeros(num_draws, dtype=np.float32),
        uniform=uniform,
    )
    return kernels.sample(logits[None], batch)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocab_size", [7, 96, 1000])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.7, 5, 1.0), (1.0, 0, 0.8), (0.8, 20, 0.5), (1.0, 1, 1.0), (1.0, 9999, 0.999)],
)
def test_draws_are_the_inverse_of_the_distribution_function(
    backend: str, vocab_size: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 3
    probabilities = _definition(logits.double().numpy(), temperature, top_k, top_p)
    edges = np.concatenate([[0.0], probabilities.cumsum()])
    kept = np.flatnonzero(probabilities > 1e-5)
    middles = (edges[kept] + edges[kept + 1]) / 2

    sampled = _sample(create_kernels(backend), logits, middles, temperature, top_k, top_p)

    assert sampled.token_ids.tolist() == kept.tolist()
    assert sampled.behaviour_log_probs == pytest.approx(np.log(probabilities[kept]), abs=1e-4)
    raw = logits.double().log_softmax(dim=0).numpy()
    assert sampled.log_probs == pytest.approx(raw[kept], abs=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frequencies_pass_a_chi_square_test(backend: str) -> None:
    num_draws, num_tokens = 20_000, 12
    logits = torch.randn(num_tokens, generator=torch.Generator().manual_seed(0))
    keys = np.array([stream_key(seed, 0) for seed in range(num_draws // 100)])
    uniform = np.concatenate([uniforms(keys, np.full(len(keys), position, np.int32)) for position in range(100)])

    sampled = _sample(create_kernels(backend), logits, uniform, 1.0, 0, 1.0)

    expected = _definition(logits.double().numpy(), 1.0, 0, 1.0) * num_draws
    counts = np.bincount(sampled.token_ids, minlength=num_tokens)
    assert ((counts - expected) ** 2 / expected).sum() < 31.3  # 11 degrees of freedom, 0.1 %


@pytest.mark.parametrize("backend", BACKENDS)
def test_temperature_zero_is_greedy_with_behaviour_log_probability_zero(backend: str) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    sampled = _sample(create_kernels(backend), logits, np.array([0.01, 0.99]), 0.0, 3, 0.5)
    assert sampled.token_ids.tolist() == [int(logits.argmax())] * 2
    assert sampled.behaviour_log_probs.tolist() == [0.0, 0.0]
    assert sampled.log_probs == pytest.approx([float(logits.log_softmax(0).max())] * 2, abs=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_uniforms_and_logits_stay_inside_the_kept_tokens(backend: str) -> None:
    logits = torch.full((300,), -200.0)
    logits[[3, 290]] = 0.0
    uniform = np.array([2.0**-54, 0.25, 0.75, 1 - 2.0**-53])
    sampled = _sample(create_kernels(backend), logits, uniform, 1.0, 0, 1.0)
    assert sampled.token_ids.tolist() == [3, 3, 290, 290]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_show_in_the_log_probability(backend: str, value: float) -> None:
    logits = torch.zeros(40)
    logits[17] = value
    sampled = _sample(create_kernels(backend), logits, np.array([0.3, 0.9]), 0.7, 0, 0.9)
    assert not np.isfinite(sampled.log_probs).any()
    assert ((sampled.token_ids >= 0) & (sampled.token_ids < 40)).all()


def test_both_backends_draw_the_same_tokens_from_bfloat16_logits() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = (torch.randn(8, 501, generator=generator) * 2).bfloat16()
    rng = np.random.default_rng(0)
    batch = SamplingBatch(
        logits_row=rng.integers(0, 8, 64).astype(np.int32),
        temperature=rng.choice([0.0, 0.5, 1.0], 64).astype(np.float32),
        top_k=rng.choice([0, 3, 40], 64).astype(np.int32),
        top_p=rng.choice([0.3, 0.9, 1.0], 64).astype(np.float32),
        min_p=rng.choice([0.0, 0.02, 0.2], 64).astype(np.float32),
        uniform=rng.random(64),
        wants_kept=True,
    )
    compiled, plain = (create_kernels(backend).sample(logits, batch) for backend in BACKENDS)
    assert compiled.token_ids.tolist() == plain.token_ids.tolist()
    assert compiled.log_probs == pytest.approx(plain.log_probs, abs=1e-4)
    assert compiled.behaviour_log_probs == pytest.approx(plain.behaviour_log_probs, abs=1e-4)
    assert compiled.kept is not None
    assert plain.kept is not None
    assert (compiled.kept == plain.kept).all()
    assert compiled.kept[np.arange(64), compiled.token_ids].all()


def test_a_seed_gives_the_same_numbers_in_every_version() -> None:
    keys = {(seed, index): int(stream_key(seed, index)) for seed, index in ((0, 0), (7, 3), (-1, 1))}
    assert keys == {(0, 0): 3672190876009200162, (7, 3): 14748973178874530527, (-1, 1): 948169376381685950}


def test_random_numbers_depend_on_seed_sample_and_position_and_on_nothing_else() -> None:
    keys = [stream_key(seed, index) for seed in (0, 1, -1, 2**64 - 2) for index in range(4)]
    assert len(set(map(int, keys))) == len(keys)
    seeds = np.repeat(np.array([0, 1, 2**64 - 1, 2**64 - 2], dtype=np.uint64), 4)
    assert stream_keys(seeds, np.tile(np.arange(4, dtype=np.uint64), 4)).tolist() == keys
    alone = uniforms(np.array(keys[5:6]), np.array([9], dtype=np.int32))
    together = uniforms(np.array(keys), np.full(len(keys), 9, dtype=np.int32))
    assert together[5] == alone[0]
    assert all(first != second for first, second in pairwise(together))
    assert ((together > 0) & (together < 1)).all()


def test_requests_differ_unless_they_share_a_seed(tmp_path: Path) -> None:
    save_model(tmp_path)

    def tokens(request_id: str, **sampling: Any) -> list[tuple[int, ...]]:
        request = make_request(request_id, [1, 2, 3], max_tokens=12, n=2, **sampling)
        return [sample.token_ids for sample in run(make_engine(tmp_path), [request])[request_id].samples]

    first = tokens("a")
    assert first[0] != first[1]
    assert tokens("a") == first
    assert tokens("b") != first
    assert tokens("a", seed=5) == tokens("b", seed=5) != first
    assert tokens("\ud800"), "half of a surrogate pair"


def test_a_top_k_of_minus_one_keeps_all(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path))
    requests = [make_request(str(k), [1, 2, 3], max_tokens=12, seed=1, top_k=k) for k in (-1, 0, 3)]
    outputs = run(engine, requests)
    assert outputs["-1"].samples == outputs["0"].samples != outputs["3"].samples


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(1, 1.0), (30, 1.0), (9000, 1.0), (39_999, 1.0), (0, 0.5), (0, 0.999), (40, 0.9), (9000, 0.7)]
)
def test_the_kept_tokens_of_a_large_vocabulary_are_those_of_the_definition(
    top_k: int, top_p: float, rounded: bool, spread: float
) -> None:
    """``rounded``: to halves, so that many tokens tie with the last that is kept."""
    logits = torch.randn(40_000, generator=torch.Generator().manual_seed(7)) * spread
    logits = (2 * logits).round() / 2 if rounded else logits
    logits[5] = -torch.inf
    expected = _definition(logits.double().numpy(), 1.0, top_k, top_p) > 0
    batch = SamplingBatch(
        logits_row=np.zeros(1, dtype=np.int32),
        temperature=np.ones(1, dtype=np.float32),
        top_k=np.full(1, top_k, dtype=np.int32),
        top_p=np.full(1, top_p, dtype=np.float32),
        min_p=np.zeros(1, dtype=np.float32),
        uniform=np.array([0.5]),
        wants_kept=True,
    )
    sampled = create_kernels("cpu").sample(logits[None], batch)
    assert sampled.kept is not None
    # Where sums are as good as equal, rounding decides on the last token; and weights below e^-87 are 0.
    visible = (logits > logits.max() - 80).numpy()
    num_allowed = 0 if top_p == 1 or rounded else 2
    assert ((sampled.kept[0] != expected) & visible).sum() <= num_allowed


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("vocab_size", "num_allowed"), [(7, 1), (7, 3), (96, 95), (1000, 2), (1000, 400)])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 0.8), (1.5, 3, 1.0), (0.0, 0, 1.0)]
)
def test_tokens_that_are_not_allowed_are_left_out_of_the_draw_and_stay_in_the_raw_log_probability(
    backend: str, vocab_size: int, num_allowed: int, temperature: float, top_k: int, top_p: float
) -> None:
    generator = torch.Generator().manual_seed(vocab_size + num_allowed)
    logits = torch.randn(vocab_size, generator=generator) * 3
    # The others are so much likelier that nothing would be left of what is allowed next to them.
    is_allowed = np.isin(np.arange(vocab_size), torch.randperm(vocab_size, generator=generator)[:num_allowed].numpy())
    logits[torch.from_numpy(~is_allowed)] += 200
    masked = np.where(is_allowed, logits.double().numpy(), -np.inf)
    bits = np.zeros(64 * -(-vocab_size // 64), dtype=np.bool_)
    bits[:vocab_size] = is_allowed
    num_draws = 20
    batch = SamplingBatch(
        logits_row=np.zeros(num_draws, dtype=np.int32),
        temperature=np.full(num_draws, temperature, dtype=np.float32),
        top_k=np.full(num_draws, top_k, dtype=np.int32),
        top_p=np.full(num_draws, top_p, dtype=np.float32),
        min_p=np.zeros(num_draws, dtype=np.float32),
        uniform=(np.arange(num_draws) + 0.5) / num_draws,
        allowed=np.tile(np.packbits(bits, bitorder="little").view(np.int32), (num_draws, 1)),
        wants_kept=True,
    )

    sampled = create_kernels(backend).sample(logits[None], batch)

    assert is_allowed[sampled.token_ids].all()
    raw = logits.double().log_softmax(dim=0).numpy()
    assert sampled.log_probs == pytest.approx(raw[sampled.token_ids], rel=1e-5)
    assert sampled.kept is not None
    assert not sampled.kept[:, ~is_allowed].any()
    if temperature == 0:
        assert set(sampled.token_ids.tolist()) == {int(masked.argmax())}
    else:
        probabilities = _definition(masked, temperature, top_k, top_p)
        assert sampled.behaviour_log_probs == pytest.approx(np.log(probabilities[sampled.token_ids]), abs=1e-4)
        assert (sampled.kept == (probabilities > 0)).all()
