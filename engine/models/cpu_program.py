"""The engine's decoder on a CPU as one program: see ``rlserve/native/decoder.py``, which the trainer uses too."""

from __future__ import annotations

import torch

from rlserve.engine.attention.cpu_kernel import CpuKernelAttention, Int8CpuKernelAttention
from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.layer_parameters import LayerParameters
from rlserve.engine.models.parameters import Parameters
from rlserve.native.decoder import DecoderLayer, DecoderProgram
from rlserve.native.program import PackedWeight


def can_run(spec: ModelSpec, dtype: torch.dtype) -> bool:
    """Whether the model can be run as a program: it has no experts, and no odd sizes where numbers go in pairs."""
    inputs = (spec.hidden_size, spec.query_size, spec.intermediate_size)
    return spec.experts is None and (dtype is torch.float32 or all(size % 2 == 0 for size in inputs))


class CpuProgram(DecoderProgram):
    """Runs the model of ``parameters``, a plain decoder without experts, on the step that ``attention`` has begun."""

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
        """``int8_weights``: compute all products but the head with weights rounded to int8."""
        assert spec.experts is None
        layers = (
            _layer(weights, *attention.pointers(index), is_int8=int8_weights)
            for index, weights in enumerate(parameters.layers)
        )
        super().__init__(
            spec,
            embedding=parameters.embedding,
            layers=list(layers),
            final_norm=parameters.final_norm,
            head=PackedWeight(parameters.head, None),
            max_num_tokens=max_num_tokens,
            max_num_rows=max_num_rows,
            is_int8_cache=isinstance(attention, Int8CpuKernelAttention),
        )


def _layer(weights: LayerParameters, step: int, cache: int, *, is_int8: bool) -> DecoderLayer:
    return DecoderLayer(
        input_norm=weights.input_norm,
        qkv=PackedWeight(weights.qkv, weights.qkv_bias, is_int8=is_int8),
        query_norm=weights.query_norm,
        key_norm=weights.key_norm,
        output=PackedWeight(weights.output, weights.output_bias, is_int8=is_int8),
        attention_update_norm=weights.attention_update_norm,
        mlp_norm=weights.mlp_norm,
        gate_up=PackedWeight(weights.mlp.gate_up, weights.mlp.gate_up_bias, is_int8=is_int8),
        down=PackedWeight(weights.mlp.down, weights.mlp.down_bias, is_int8=is_int8),
        mlp_update_norm=weights.mlp_update_norm,
        step=step,
        cache=cache,
    )
