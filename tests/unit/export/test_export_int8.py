"""int8 weights: what becomes of each number, which weights are left, and that transformers loads what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_folders import write_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlserve.errors import UserError
from rlserve.export.int8 import quantise, quantised_weights
from rlserve.export.model_folder import export_model

TOKENS_11 = torch.arange(11)[None] % 7


@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.data())
def test_no_number_is_further_off_than_half_a_step(
    num_outputs: int, num_inputs: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    numbers = data.draw(
        st.lists(
            st.lists(st.floats(-4, 4, width=16), min_size=num_inputs, max_size=num_inputs),
            min_size=num_outputs,
            max_size=num_outputs,
        )
    )
    weight = torch.tensor(numbers).to(dtype)
    integers, scale = quantise(weight)
    assert integers.dtype == torch.int8
    assert (scale.dtype, scale.shape) == (dtype, (num_outputs, 1))
    off = (integers.double() * scale.double() - weight.double()).abs()
    # A scale that was rounded down to its type may leave the largest number of a row a little beyond 127 steps.
    beyond = (weight.double().abs() - 127 * scale.double()).clamp(min=0)
    assert (off <= torch.maximum(0.5 * scale.double(), beyond) * (1 + 1e-6)).all()
    assert (beyond <= weight.double().abs() * torch.finfo(dtype).eps + 127 * torch.finfo(dtype).tiny).all()


def test_the_head_and_what_is_no_product_are_left(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_model(tmp_path / "m"))
    weights = quantised_weights(model)
    changed = {name for name, weight in weights.items() if weight.dtype == torch.int8}
    assert changed == {name for name in model.state_dict() if name.endswith("_proj.weight")}
    assert {name.removesuffix("_scale") for name in weights if name.endswith("_scale")} == changed
    assert all(
        weights[name] is weight or weights[name].equal(weight)
        for name, weight in model.state_dict().items()
        if name not in changed
    )


def test_experts_are_refused() -> None:
    model = torch.nn.Module()
    model.gate_up_proj = torch.nn.Parameter(torch.ones(2, 3, 4))
    with pytest.raises(UserError, match="experts cannot be exported as int8, such as gate_up_proj"):
        quantised_weights(model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_loads_it_and_computes_nearly_the_same(tmp_path: Path, dtype: str) -> None:
    source = write_model(tmp_path / "m")
    whole = export_model(source, tmp_path / "whole", dtype=dtype, quantisation=None)
    small = export_model(source, tmp_path / "small", dtype=dtype, quantisation="int8")
    assert small.size_bytes < whole.size_bytes
    logits_whole, logits_small = (
        AutoModelForCausalLM.from_pretrained(each.folder)(TOKENS_11).logits.float() for each in (whole, small)
    )
    assert AutoTokenizer.from_pretrained(small.folder)("1+1").input_ids
    difference = (logits_small - logits_whole).abs().max() / logits_whole.abs().max()
    assert 0 < difference < 0.03
