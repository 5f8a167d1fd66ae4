"""What changed, coded and applied: any bytes come back, and few changes are few bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlserve.errors import WeightsRefusedError
from rlserve.weights.delta.byte_coding import decode_numbers, encode_numbers
from rlserve.weights.delta.codec import apply_delta, encode_delta
from rlserve.weights.delta.worth import MAX_CHANGED_SHARE, changed_share, is_worth_coding, is_worth_sending

SIZES = st.sampled_from([1, 2, 4, 8])


def of_bytes(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(content, dtype=np.uint8).copy()


@given(data=st.data(), size=SIZES, num_elements=st.integers(0, 200))
@settings(max_examples=150, deadline=None)
def test_any_bytes_come_back(data: st.DataObject, size: int, num_elements: int) -> None:
    num_bytes = size * num_elements
    base = of_bytes(data.draw(st.binary(min_size=num_bytes, max_size=num_bytes)))
    new = base.copy()
    for position in data.draw(st.lists(st.integers(0, max(num_bytes - 1, 0)), max_size=num_bytes)):
        new[position] = data.draw(st.integers(0, 255))
    before, held = base.copy(), base.copy()
    delta = encode_delta(base, new, size)
    apply_delta(delta.coded, held)
    assert held.tobytes() == new.tobytes()
    assert base.tobytes() == before.tobytes(), "the base is only read"
    assert delta.num_changed == np.count_nonzero(base.view(f"<u{size}") != new.view(f"<u{size}"))
    assert changed_share(base, new, size) == (delta.num_changed / num_elements if num_elements else 0.0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bits_are_compared_and_not_numbers(dtype: type) -> None:
    base = np.array([0.0, np.nan, np.inf, 1.0, -1.0, np.nan], dtype=dtype).view(np.uint8)
    new = np.array([-0.0, np.nan, -np.inf, np.nan, -1.0, -np.nan], dtype=dtype).view(np.uint8)
    held = base.copy()
    apply_delta(encode_delta(base, new, np.dtype(dtype).itemsize).coded, held)
    assert held.tobytes() == new.tobytes()


def test_changes_far_apart_and_over_several_blocks_come_back() -> None:
    base = np.zeros(3 * 2**19 + 7, dtype=np.uint16)
    new = base.copy()
    new[[0, 254, 255, 256, 511, 2**19 - 1, 2**19, 2**20 + 70_000, len(new) - 1]] = [1, 2, 254, 255, 256, 9, 65535, 7, 3]
    held = base.copy().view(np.uint8)
    delta = encode_delta(base.view(np.uint8), new.view(np.uint8), 2)
    apply_delta(delta.coded, held)
    assert delta.num_changed == 9
    assert held.tobytes() == new.tobytes()


@given(numbers=st.lists(st.integers(0, 2**64 - 1) | st.integers(253, 257) | st.integers(0, 3)), size=SIZES)
@settings(max_examples=100, deadline=None)
def test_numbers_of_any_size_are_coded(numbers: list[int], size: int) -> None:
    held = np.array([number % 2 ** (8 * size) for number in numbers], dtype=f"<u{size}")
    assert decode_numbers(memoryview(encode_numbers(held)), held.dtype).tolist() == held.tolist()


def test_a_payload_of_another_size_is_refused_unchanged() -> None:
    delta = encode_delta(np.zeros(64, dtype=np.uint8), np.ones(64, dtype=np.uint8), 2)
    held = np.zeros(32, dtype=np.uint8)
    with pytest.raises(WeightsRefusedError, match="changes to 64 bytes, where 32 are held"):
        apply_delta(delta.coded, held)
    assert not held.any()


def stepped(share: float, *, num_elements: int = 400_000) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Weights in bfloat16, and what a step makes of a share of them: one or two units in the last place more or
    less."""
    chance = np.random.default_rng(0)
    base = (chance.normal(0, 0.02, num_elements).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    new = base.copy()
    changed = chance.random(num_elements) < share
    new[changed] += chance.choice(np.array([-2, -1, -1, -1, 1, 1, 1, 2], dtype=np.int16), changed.sum()).view(np.uint16)
    return base.view(np.uint8), new.view(np.uint8)


def test_of_weights_of_which_one_in_a_hundred_changed_a_hundredth_travels() -> None:
    base, new = stepped(0.01)
    delta = encode_delta(base, new, 2)
    assert base.nbytes / delta.coded.nbytes > 100
    plain_bytes = delta.num_changed * (4 + 2)  # an index and a value each
    assert base.nbytes / plain_bytes > 30


def test_what_is_worth_it_follows_from_share_and_size() -> None:
    assert is_worth_coding(MAX_CHANGED_SHARE)
    assert not is_worth_coding(MAX_CHANGED_SHARE * 1.01)
    assert is_worth_sending(100, 800)
    assert not is_worth_sending(101, 800)


def test_of_a_large_payload_a_sample_tells_the_share() -> None:
    base, new = stepped(0.05, num_elements=3_000_000)
    assert changed_share(base, new, 2) == pytest.approx(0.05, rel=0.02)
    assert changed_share(base, base, 2) == 0.0
