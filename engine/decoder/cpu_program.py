"""The engine's decoder on a CPU as one program: ``rlserve/native/decoder_program.py``, which the trainer uses too."""

from __future__ import annotations

import torch

from rlserve.engine.adapters.adapter import Adapter, StepAdapters
from rlserve.engine.attention.base import AttentionBackend
from rlserve.engine.attention.cpu_kernel import CpuKernelAttention, Int8CpuKernelAttention
from rlserve.engine.config import EngineConfig
from rlserve.engine.decoder.layer_parameters import LayerParameters
from rlserve.engine.decoder.parameters import Parameters
from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.shard import Shard
from rlserve.native.decoder_program import DecoderLayer, DecoderProgram
from rlserve.native.low_rank import LowRankTable, StepLowRanks
from rlserve.native.program import Projection, has_fast_products


def is_chosen(shard: Shard, config: EngineConfig, dtype: torch.dtype, attention: type[AttentionBackend]) -> bool:
    """Whether the model is run as a program: the attention is compiled, the model is whole, without experts and
    without GELU by the error function, without odd sizes where numbers go in pairs, and nothing here makes faster
    products of this type."""
    spec = shard.own
    inputs = (spec.hidden_size, spec.query_size, spec.intermediate_size)
    return (
        issubclass(attention, CpuKernelAttention)
        and shard.num_ranks == 1
        and spec.experts is None
        and spec.activation != "gelu"
        and (dtype is torch.float32 or all(size % 2 == 0 for size in inputs))
        and (config.deterministic or config.weight_dtype == "int8" or has_fast_products(dtype))
    )


class CpuProgram(DecoderProgram):
    """Runs the model of ``parameters``, a plain decoder without experts, on the step that ``attention`` has begun."""

    linear = None
    """Products are made from panels."""

    def __init__(
        self,
        spec: ModelSpec,
        parameters: Parameters,
        attention: CpuKernelAttention,
        *,
        max_num_tokens: int,
        max_num_rows: int,
        int8_weights: bool,
    ) -> None:
        """``parameters`` are in panels. ``int8_weights``: compute all products but the head with weights rounded to
        int8."""
        assert spec.experts is None
        layers = (
            _layer(spec, weights, *attention.pointers(index), is_int8=int8_weights)
            for index, weights in enumerate(parameters.layers)
        )
        super().__init__(
            spec,
            embedding=parameters.embedding,
            layers=list(layers),
            final_norm=parameters.final_norm,
            head=Projection(parameters.head, spec.vocab_size),
            max_num_tokens=max_num_tokens,
            max_num_rows=max_num_rows,
            is_int8_cache=isinstance(attention, Int8CpuKernelAttention),
        )

    def forward(
        self,
        token_ids_T: torch.Tensor,
        last_rows_R: torch.Tensor,
        low_ranks: StepLowRanks | StepAdapters | None = None,
    ) -> torch.Tensor:
        """As of :class:`DecoderProgram`, or with the adapters of a step."""
        if isinstance(low_ranks, StepAdapters):
            low_ranks = StepLowRanks([(_table(group.adapter), group.tokens_n) for group in low_ranks.groups])
        return super().forward(token_ids_T, last_rows_R, low_ranks)


def _table(adapter: Adapter) -> LowRankTable:
    assert isinstance(adapter.layers, LowRankTable)
    return adapter.layers


def _layer(spec: ModelSpec, weights: LayerParameters, step: int, cache: int, *, is_int8: bool) -> DecoderLayer:
    def projection(panels: torch.Tensor, num_outputs: int, bias_N: torch.Tensor | None) -> Projection:
        return Projection(panels, num_outputs, bias_N, is_int8=is_int8)

    mlp = weights.mlp
    return DecoderLayer(
        input_norm=weights.input_norm,
        qkv=projection(weights.qkv, spec.query_size + 2 * spec.kv_size, weights.qkv_bias),
        query_norm=weights.query_norm,
        key_norm=weights.key_norm,
        output=projection(weights.output, spec.hidden_size, weights.output_bias),
        attention_update_norm=weights.attention_update_norm,
        mlp_norm=weights.mlp_norm,
        gate_up=projection(mlp.gate_up, 2 * spec.intermediate_size, mlp.gate_up_bias),
        down=projection(mlp.down, spec.hidden_size, mlp.down_bias),
        mlp_update_norm=weights.mlp_update_norm,
        step=step,
        cache=cache,
    )
