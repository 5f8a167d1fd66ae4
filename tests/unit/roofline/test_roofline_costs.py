"""Costs against values worked out by hand, and against the figures that they are calibrated to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlserve.roofline.accelerators import GPU_TYPES, slot_type
from rlserve.roofline.costs import Costs
from rlserve.roofline.model_shapes import ModelShape, model_shape

H100, H200 = GPU_TYPES["H100"], GPU_TYPES["H200"]
EIGHT = Costs(shape=model_shape("8B"))
ROUND = Costs(
    shape=ModelShape(name="round", num_parameters=1e9, num_layers=10, num_kv_heads=4, head_dim=125),
)
"""2 GB of weights and 20 kB of KV a token."""
DEVICE = replace(H100, name="round", memory_bandwidth_gb_s=2000 / 0.75, flops_tflops=200, memory_gb=100, link_gb_s=10)
"""Reads 2,000 GB a second; 100 TFLOP/s of prompts, 62 of training."""


def test_8b_on_an_h100_has_the_published_figures() -> None:
    assert EIGHT.decode_step_s(H100, 1, 0) == pytest.approx(6.5e-3, rel=0.02)
    more_s = EIGHT.decode_step_s(H100, 65, 0) - EIGHT.decode_step_s(H100, 1, 0)
    assert more_s / 64 == pytest.approx(0.06e-3, rel=0.02)
    assert 1 / EIGHT.train_step_s([H100], 1) == pytest.approx(6200, rel=0.02)


def test_an_h200_decodes_by_its_bandwidth_and_trains_no_faster() -> None:
    ratio = EIGHT.decode_step_s(H100, 64, 100_000) / EIGHT.decode_step_s(H200, 64, 100_000)
    assert ratio == pytest.approx(1.43, abs=0.005)
    assert EIGHT.train_step_s([H200], 1000) == EIGHT.train_step_s([H100], 1000)


def test_a_decoding_step_reads_weights_and_kv() -> None:
    # 2 GB / 2,000 GB/s = 1 ms raised to the shortest step; 10^6 tokens of 20 kB are 20 GB, 10 ms more.
    assert ROUND.decode_step_s(DEVICE, 1, 0) == pytest.approx(1.5e-3)
    # Two FLOP of 10^9 parameters at 100 TFLOP/s: 20 µs a sample, above the 1 ms / 108 of a sample by bandwidth.
    assert ROUND.decode_step_s(DEVICE, 100, 1_000_000) == pytest.approx(1e-3 + 100 * 20e-6 + 10e-3)
    assert ROUND.decode_step_s(DEVICE, 0, 0) == 0


def test_prompts_are_computed_beside_decoding_or_alone() -> None:
    assert ROUND.prefill_s(DEVICE, 1000) == pytest.approx(20e-3)
    both_s = ROUND.engine_step_s(DEVICE, num_samples=100, num_kv_tokens=0, num_prefill_tokens=1000)
    assert both_s == pytest.approx(3e-3 + 20e-3)
    assert ROUND.engine_step_s(DEVICE, num_samples=0, num_kv_tokens=0, num_prefill_tokens=1000) == pytest.approx(20e-3)
    assert ROUND.engine_step_s(DEVICE, num_samples=0, num_kv_tokens=0, num_prefill_tokens=1) == pytest.approx(1.5e-3)
    assert ROUND.engine_step_s(DEVICE, num_samples=0, num_kv_tokens=0, num_prefill_tokens=0) == 0


def test_a_token_that_stands_for_many_takes_as_long_as_they_do() -> None:
    scaled = replace(ROUND, tokens_scale=50.0)
    assert scaled.decode_step_s(DEVICE, 8, 10) == pytest.approx(50 * ROUND.decode_step_s(DEVICE, 8, 500))
    assert scaled.prefill_s(DEVICE, 10) == pytest.approx(ROUND.prefill_s(DEVICE, 500))
    assert scaled.train_step_s([DEVICE], 10) == pytest.approx(ROUND.train_step_s([DEVICE], 500))
    assert scaled.num_kv_tokens(DEVICE) == ROUND.num_kv_tokens(DEVICE) // 50


def test_training_is_split_evenly_and_waits_for_the_slowest() -> None:
    # 6 FLOP x 10^9 x 62,000 tokens = 372 TFLOP at 62 TFLOP/s.
    assert ROUND.train_step_s([DEVICE], 62_000) == pytest.approx(6.0)
    assert ROUND.train_step_s([DEVICE] * 4, 62_000) == pytest.approx(1.5)
    slow = replace(DEVICE, flops_tflops=100)
    assert ROUND.train_step_s([DEVICE, DEVICE, slow, DEVICE], 62_000) == pytest.approx(3.0)
    assert replace(ROUND, num_train_passes=2.0).train_step_s([DEVICE], 62_000) == pytest.approx(12.0)


def test_gradients_show_where_they_take_longer_than_computing() -> None:
    # A ring sends 2 x 3/4 of 2 GB at 10 GB/s.
    assert ROUND.train_step_s([DEVICE] * 4, 1) == pytest.approx(0.3)
    assert replace(ROUND, num_trained_networks=2).train_step_s([DEVICE] * 4, 1) == pytest.approx(0.6)


def test_moves_cost_memory_and_what_travels() -> None:
    assert ROUND.sleep_s(DEVICE) == pytest.approx(0.1 + 0.5)
    assert ROUND.wake_s(DEVICE) == pytest.approx(0.1 + 0.5)
    assert ROUND.weights_s(DEVICE) == pytest.approx(0.1 + 0.2)
    assert ROUND.swap_s(DEVICE) == pytest.approx(2e-3)
    assert ROUND.snapshot_s(DEVICE) == pytest.approx(2e-3)


def test_resharding_brings_a_newcomer_its_part_and_those_that_stay_what_they_own_more() -> None:
    # A fifth of 12 GB, and 2 GB of weights, at 10 GB/s.
    assert ROUND.reshard_s([DEVICE] * 5, 4) == pytest.approx(0.5 + 0.24 + 0.2)
    # From a fifth to a quarter of 12 GB.
    assert ROUND.reshard_s([DEVICE] * 4, 5) == pytest.approx(0.5 + 0.06)
    assert replace(ROUND, num_trained_networks=2).reshard_s([DEVICE] * 4, 5) == pytest.approx(0.5 + 0.12)


def test_slots_of_a_gang_share_weights_and_cache() -> None:
    pair = replace(ROUND, tensor_parallel_size=2)
    assert pair.weights_s(DEVICE) == pytest.approx(0.1 + 0.1)
    # 0.5 ms of weights, 10 µs a sample, 5 ms of KV, and two all-reduces in each of 10 layers.
    assert pair.decode_step_s(DEVICE, 100, 1_000_000) == pytest.approx(0.5e-3 + 1e-3 + 5e-3 + 20 * 15e-6)


def test_the_cache_is_what_the_weights_leave() -> None:
    # 90 GB less 2 GB, at 20 kB a token.
    assert ROUND.num_kv_tokens(DEVICE) == 4_400_000
    assert Costs(shape=model_shape("70B")).num_kv_tokens(H100) < 0


@pytest.mark.parametrize("name", [*GPU_TYPES, "cpu", "XYZ-9000"])
def test_every_type_has_figures(name: str) -> None:
    found = slot_type(name)
    assert min(found.memory_gb, found.link_gb_s, found.memory_bandwidth_gb_s) > 0
