"""The engine's decoder on a CPU as one program: see ``rlserve/native/decoder.py``, which the trainer uses too."""

from __future__ import annotations

import torch

from rlserve.engine.attention.cpu_kernel import CpuKernelAttention, Int8CpuKernelAttention
from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.layer_parameters import LayerParameters
from rlserve.engine.models.parameters import Parameters
from rlserve.native.decoder import DecoderLayer, DecoderProgram
from rlserve.native.program import PackedWeight, has_fast_products


def can_run(spec: ModelSpec, dtype: torch.dtype, *, deterministic: bool) -> bool:
    """Whether the model is better run as a program than operation by operation, with its products made by oneDNN:
    always in deterministic mode, else where this machine's products are fast enough. Experts are not."""
    inputs = (spec.hidden_size, spec.query_size, spec.intermediate_size)
    is_even = dtype is torch.float32 or all(size % 2 == 0 for size in inputs)
    return spec.experts is None and is_even and (deterministic or has_fast_products(dtype))


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
    ) -> None:
        assert spec.experts is None
        super().__init__(
            spec,
            embedding=parameters.embedding,
            layers=[_layer(weights, *attention.pointers(i)) for i, weights in enumerate(parameters.layers)],
            final_norm=parameters.final_norm,
            head=PackedWeight(parameters.head, None),
            max_num_tokens=max_num_tokens,
            max_num_rows=max_num_rows,
            is_int8_cache=isinstance(attention, Int8CpuKernelAttention),
        )


def _layer(weights: LayerParameters, step: int, cache: int) -> DecoderLayer:
    return DecoderLayer(
        input_norm=weights.input_norm,
        qkv=PackedWeight(weights.qkv, weights.qkv_bias),
        query_norm=weights.query_norm,
        key_norm=weights.key_norm,
        output=PackedWeight(weights.output, weights.output_bias),
        attention_update_norm=weights.attention_update_norm,
        mlp_norm=weights.mlp_norm,
        gate_up=PackedWeight(weights.mlp.gate_up, weights.mlp.gate_up_bias),
        down=PackedWeight(weights.mlp.down, weights.mlp.down_bias),
        mlp_update_norm=weights.mlp_update_norm,
        step=step,
        cache=cache,
    )
