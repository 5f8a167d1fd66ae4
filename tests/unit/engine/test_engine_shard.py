"""How weights are cut for ranks and joined again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_builders import FAMILIES, save_model, weights_of
from hypothesis import given
from hypothesis import strategies as st

from rlserve.engine.decoder.parameters import Parameters
from rlserve.engine.models.base import ExpertsSpec, ModelSpec
from rlserve.engine.models.checkpoint import Checkpoint
from rlserve.engine.models.factory import read_model_spec
from rlserve.engine.models.shard import Shard
from rlserve.errors import UserError

SPEC = ModelSpec(
    architecture="",
    vocab_size=96,
    hidden_size=48,
    intermediate_size=72,
    num_layers=2,
    num_heads=12,
    num_kv_heads=6,
    head_dim=4,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    rope_scaling=None,
    max_position=64,
    tied_embeddings=False,
    eos_token_ids=(),
)
_LAYER = "model.layers.0."
SHAPES = {
    "model.embed_tokens.weight": (96, 8),
    "lm_head.weight": (96, 8),
    "model.norm.weight": (8,),
    f"{_LAYER}input_layernorm.weight": (8,),
    f"{_LAYER}self_attn.q_proj.weight": (48, 8),
    f"{_LAYER}self_attn.q_proj.bias": (48,),
    f"{_LAYER}self_attn.k_proj.weight": (24, 8),
    f"{_LAYER}self_attn.v_proj.bias": (24,),
    f"{_LAYER}self_attn.k_norm.weight": (4,),
    f"{_LAYER}self_attn.o_proj.weight": (8, 48),
    f"{_LAYER}self_attn.o_proj.bias": (8,),
    f"{_LAYER}mlp.up_proj.weight": (72, 8),
    f"{_LAYER}mlp.down_proj.weight": (8, 72),
    f"{_LAYER}mlp.gate.weight": (6, 8),
    f"{_LAYER}mlp.experts.3.gate_proj.weight": (12, 8),
    f"{_LAYER}mlp.experts.3.down_proj.weight": (8, 12),
}


def _numbered(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape) + 1


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 6, 12])
@pytest.mark.parametrize("name", SHAPES)
def test_the_parts_of_all_ranks_joined_are_the_whole(name: str, num_ranks: int) -> None:
    whole = _numbered(SHAPES[name])
    shards = [Shard.of(SPEC, rank, num_ranks) for rank in range(num_ranks)]
    parts = [shard.cut(name, whole) for shard in shards]
    assert torch.equal(shards[0].join(name, parts), whole)
    for shard, part in zip(shards, parts, strict=True):
        assert shard.whole_shape(name, part.shape) == SHAPES[name]
        assert not shard.is_split(name) or part.numel() < whole.numel()
        if "norm" in name or "mlp.gate." in name or num_ranks == 1:
            assert part is whole


def test_the_bias_of_a_sum_over_ranks_is_in_it_once() -> None:
    bias = _numbered((8,))
    parts = [Shard.of(SPEC, rank, 3).cut(f"{_LAYER}self_attn.o_proj.bias", bias) for rank in range(3)]
    assert torch.equal(torch.stack(parts).sum(dim=0), bias)


def test_ranks_that_share_queries_of_one_group_hold_the_same_keys_and_values() -> None:
    name, whole = f"{_LAYER}self_attn.k_proj.weight", _numbered((24, 8))
    shards = [Shard.of(SPEC, rank, 12) for rank in range(12)]
    assert {(shard.own.num_heads, shard.own.num_kv_heads) for shard in shards} == {(1, 1)}
    for query_head, shard in enumerate(shards):
        key_head = query_head // (SPEC.num_heads // SPEC.num_kv_heads)
        assert torch.equal(shard.cut(name, whole), whole[4 * key_head : 4 * key_head + 4])


@given(
    name=st.sampled_from(sorted(SHAPES)),
    num_ranks=st.sampled_from([1, 2, 3, 6, 12]),
    data=st.data(),
)
def test_changed_elements_reach_just_the_ranks_that_hold_them(name: str, num_ranks: int, data: st.DataObject) -> None:
    whole = _numbered(SHAPES[name])
    indices = torch.tensor(data.draw(st.lists(st.integers(0, whole.numel() - 1), unique=True)), dtype=torch.int64)
    values = -_numbered((len(indices),))
    changed = whole.clone()
    changed.view(-1)[indices] = values
    for rank in range(num_ranks):
        shard = Shard.of(SPEC, rank, num_ranks)
        part = shard.cut(name, whole).clone()
        is_own, own_indices = shard.own_elements(name, part.shape, indices)
        part.view(-1)[own_indices] = values[is_own]
        assert torch.equal(part, shard.cut(name, changed))


@pytest.mark.parametrize(
    ("changes", "num_ranks", "message"),
    [
        ({}, 5, "12 attention heads, 96 tokens in the vocabulary, 72 columns in the MLP, 6 key-value heads"),
        ({}, 4, r"=4: the model has 6 key-value heads \(nor the other way round\), which does not divide by 4"),
        ({"vocab_size": 97}, 2, "has 97 tokens in the vocabulary, which does not divide by 2"),
        ({"intermediate_size": 71}, 2, "has 71 columns in the MLP, which"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_by_their_numbers(
    changes: dict[str, int], num_ranks: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Shard.of(replace(SPEC, **changes), 0, num_ranks)


def test_only_the_mlps_that_a_model_has_must_divide() -> None:
    experts = ExpertsSpec(
        num_experts=4, num_experts_per_token=2, intermediate_size=12, normalise=True, layers=frozenset({0, 1})
    )
    spec = replace(SPEC, intermediate_size=71, experts=experts)
    own = Shard.of(spec, 1, 2).own
    assert own.experts is not None
    assert own.experts.intermediate_size == 6
    with pytest.raises(UserError, match="71 columns in the MLP"):
        Shard.of(replace(spec, experts=replace(experts, layers=frozenset({1}))), 0, 2)
    with pytest.raises(UserError, match="13 columns in an expert"):
        Shard.of(replace(spec, experts=replace(experts, intermediate_size=13)), 0, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_hold_a_model_between_them(family: str, tmp_path: Path) -> None:
    spec = read_model_spec(save_model(tmp_path, family))
    shards = [Shard.of(spec, rank, 2) for rank in range(2)]
    ranks = [Parameters(shard, torch.float32, torch.device("cpu"), in_panels=False) for shard in shards]
    for rank in ranks:
        rank.load(Checkpoint(tmp_path))
    parts = [dict(rank.named()) for rank in ranks]
    assert sum(part.numel() for part in parts[1].values()) < 0.6 * sum(
        torch.Size(shards[1].whole_shape(name, part.shape)).numel() for name, part in parts[1].items()
    )
    expected = ranks[0].checked(weights_of(family, 0))
    assert list(expected) == list(parts[0]) == list(parts[1])
    for name, whole in expected.items():
        assert torch.equal(shards[0].join(name, [part[name] for part in parts]), whole)
