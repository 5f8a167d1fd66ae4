"""The flash-attn backend, against stand-ins for flash-attn's two functions that follow its documentation."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from test_engine_triton_attention import attend, make_layout, make_spec
from torch.nn import functional as F
from triton_device import DEVICE

from rlserve.engine.attention.base import AttentionBackend
from rlserve.engine.attention.flash import FlashAttention
from rlserve.engine.attention.torch_paged import TorchPagedAttention
from rlserve.engine.device.backend import resolve_backend
from rlserve.engine.models.rope import rotation_table
from rlserve.errors import UserError


def _attend(
    query_TND: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor], table: torch.Tensor, context: int, **options: Any
) -> torch.Tensor:
    """Attention of the last T of ``context`` tokens; ``table`` holds pages."""
    key, value = (part[table.long()].flatten(0, 1)[:context].transpose(0, 1).float() for part in cache)
    left, right = options["window_size"]
    distance = (context - len(query_TND) + torch.arange(len(query_TND)))[:, None] - torch.arange(context)
    assert options["causal"]
    assert right == (-1 if left == -1 else 0)
    assert options["softcap"] == 0.0
    visible = (distance >= 0) & ((distance <= left) if left >= 0 else True)
    out = F.scaled_dot_product_attention(
        query_TND.transpose(0, 1).float(),
        key,
        value,
        attn_mask=visible.to(DEVICE),
        scale=options["softmax_scale"],
        enable_gqa=True,
    )
    return out.transpose(0, 1).to(query_TND.dtype)


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    cache_seqlens: torch.Tensor,
    block_table: torch.Tensor,
    **options: Any,
) -> torch.Tensor:
    rows = zip(q, block_table, cache_seqlens.tolist(), strict=True)
    return torch.stack(
        [_attend(query, (k_cache, v_cache), table, context, **options) for query, table, context in rows]
    )


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    block_table: torch.Tensor,
    **options: Any,
) -> torch.Tensor:
    lengths, contexts = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    assert (max_seqlen_q, max_seqlen_k) == (max(lengths), max(contexts))
    rows = zip(q.split(lengths), block_table, contexts, strict=True)
    return torch.cat([_attend(query, (k, v), table, context, **options) for query, table, context in rows])


@pytest.fixture
def flash_class(monkeypatch: pytest.MonkeyPatch) -> type[AttentionBackend]:
    module = ModuleType("flash_attn")
    module.flash_attn_with_kvcache = flash_attn_with_kvcache  # type: ignore[attr-defined]
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return FlashAttention


@pytest.mark.parametrize(
    "spans", [[(5, 6), (299, 300)], [(0, 3), (7, 9)], [(5, 6), (0, 1), (256, 259), (0, 4)]], ids=str
)
def test_answers_equal_those_of_pytorch(flash_class: type[AttentionBackend], spans: list[tuple[int, int]]) -> None:
    spec = make_spec(num_layers=2, layer_windows=(0, 4))
    layout = make_layout(spans, 256)
    table = rotation_table(spec, 512).to(DEVICE)
    found, expected = (
        attend(backend(spec, table, num_blocks=24, block_size=256, dtype=torch.float16), spec, layout)
        for backend in (flash_class, TorchPagedAttention)
    )
    np.testing.assert_allclose(found, expected, atol=4e-3)


@pytest.mark.parametrize(
    ("head_dim", "block_size", "dtype", "remedy"),
    [
        (16, 16, torch.bfloat16, "got 16: set block_size=256"),
        (16, 256, torch.float32, "set dtype=bfloat16"),
        (288, 256, torch.bfloat16, "the model has 288: use attention_backend=triton"),
    ],
)
def test_what_flash_attention_does_not_take_is_refused(
    flash_class: type[AttentionBackend], head_dim: int, block_size: int, dtype: torch.dtype, remedy: str
) -> None:
    spec = make_spec(head_dim)
    with pytest.raises(UserError, match=remedy):
        flash_class(spec, rotation_table(spec, 8), num_blocks=1, block_size=block_size, dtype=dtype)


def test_where_it_is_not_installed_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "rlserve.engine.device.backend.find_spec", lambda name: None if name == "flash_attn" else object()
    )
    with pytest.raises(UserError, match=r"attention_backend=flash needs flash-attn: pip install 'rlserve\[flash\]'"):
        resolve_backend("flash", torch.device("cuda"))
