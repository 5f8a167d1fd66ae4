"""A decoder of transformers over packed samples, with gradients: its modules stay as they are, and only lend their
weights.

    embedding ──► layer ──► … ──► last layer, of its states those alone that predict something ──► norm ──► states

Legend: T rows of a pass, U rows whose states are wanted, a response tokens of the pass, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlserve.native.packed import PackedStep
from rlserve.native.rotation import table_of_frequencies
from rlserve.trainers.backends.config import TorchTrainerConfig
from rlserve.trainers.backends.pytorch.fused.linear import RoundedProduct
from rlserve.trainers.backends.pytorch.native_shape import NativeShape
from rlserve.trainers.backends.pytorch.packed.functions import LayerParts, Norm, final_norm, layer, rows_at
from rlserve.trainers.backends.pytorch.packed.prefixes import PackedInputs


def pack_layers(networks: Sequence[Any], shape: NativeShape, config: TorchTrainerConfig) -> None:
    """Give each policy, reference or critic's backbone its ``packed_decoder``."""
    for network in networks:
        network.base_model.packed_decoder = PackedDecoder(network.base_model, shape, config)


class PackedDecoder:
    """Of one network, whose parameters may change between two calls."""

    def __init__(self, backbone: Any, shape: NativeShape, config: TorchTrainerConfig) -> None:
        self._shape = shape
        self._dtype: torch.dtype = getattr(torch, config.dtype)
        self._recomputes = config.activation_checkpointing
        self._embedding: Tensor = backbone.embed_tokens.weight
        self._padding_id: int | None = backbone.embed_tokens.padding_idx
        self._layers = [self._parts(each) for each in backbone.layers]
        self._final_norm = self._norm(backbone.norm)
        self._rotations: dict[str, Tensor] = {}

    def states(self, inputs: PackedInputs) -> Tensor:
        """[a, H] the last hidden states that predict response tokens, or follow them."""
        is_wanted = torch.zeros(len(inputs.input_ids), dtype=torch.bool)
        is_wanted[inputs.states] = True
        wanted_U = is_wanted.nonzero().squeeze(1)
        hidden = rows_at(self._embedding, inputs.input_ids, fixed=self._padding_id)
        if self._shape.embedding_scale != 1.0:
            hidden = hidden * self._shape.embedding_scale
        for index, (parts, kind) in enumerate(zip(self._layers, self._shape.layers, strict=True)):
            is_last = index == len(self._layers) - 1
            step = self._step(inputs, parts, *kind, is_wanted=is_wanted if is_last else None)
            arguments = (hidden, parts, step, wanted_U if is_last else None)
            if self._recomputes and torch.is_grad_enabled():
                hidden = checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = layer(*arguments)
        states_UH = final_norm(hidden, self._final_norm)
        number_of_row = is_wanted.cumsum(0) - 1
        return rows_at(states_UH, number_of_row.index_select(0, inputs.states))

    def _step(
        self, inputs: PackedInputs, parts: LayerParts, window: int, rotation: str, *, is_wanted: Tensor | None
    ) -> PackedStep:
        """What attention of a layer must know. It keeps alive what it points to."""
        shape = self._shape
        tensors = {
            "positions": inputs.positions,
            "segments": inputs.segments,
            "parents": inputs.parents,
            "trees": inputs.trees,
            "wanted": is_wanted,
            "rotation": self._rotation(rotation, inputs.longest),
            **dict(zip(("query_norm", "key_norm"), parts.head_norms, strict=False)),
        }
        step = PackedStep(
            num_trees=len(inputs.trees) - 1,
            longest=inputs.longest,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            window=window,
            eps=shape.rms_norm_eps,
            scale=shape.score_scale,
            softcap=shape.attention_softcap,
            norm_offset=shape.norm_offset,
            **{name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()},
        )
        step.tensors = tensors
        return step

    def _rotation(self, kind: str, num_positions: int) -> Tensor:
        """Cosines and sines of at least so many positions."""
        table = self._rotations.get(kind)
        if table is None or len(table) < num_positions:
            frequencies_F, factor = self._shape.rotations[kind]
            table = table_of_frequencies(frequencies_F, 2 * num_positions, factor).contiguous()
            self._rotations[kind] = table
        return table

    def _parts(self, module: Any) -> LayerParts:
        attention, mlp, has_update_norms = module.self_attn, module.mlp, self._shape.update_norms
        mlp_norm = module.pre_feedforward_layernorm if has_update_norms else module.post_attention_layernorm
        head_norms = (attention.q_norm.weight, attention.k_norm.weight) if self._shape.query_key_norm else ()
        return LayerParts(
            input_norm=self._norm(module.input_layernorm),
            qkv=self._product(attention, attention.q_proj, attention.k_proj, attention.v_proj),
            head_norms=head_norms,
            output=self._product(attention.o_proj, attention.o_proj),
            attention_update_norm=self._norm(module.post_attention_layernorm) if has_update_norms else None,
            mlp_norm=self._norm(mlp_norm),
            gate_up=self._product(mlp, mlp.gate_proj, mlp.up_proj),
            is_gelu=self._shape.activation == "gelu_tanh",
            down=self._product(mlp.down_proj, mlp.down_proj),
            mlp_update_norm=self._norm(module.post_feedforward_layernorm) if has_update_norms else None,
            dtype=self._dtype,
        )

    def _norm(self, module: Any) -> Norm:
        return Norm(weight=module.weight, eps=self._shape.rms_norm_eps, offset=self._shape.norm_offset)

    def _product(self, owner: Any, *layers: nn.Linear) -> RoundedProduct:
        """Of these layers side by side; ``rounding_once`` finds it at its owner."""
        owner.product = RoundedProduct(layers, self._dtype)
        product: RoundedProduct = owner.product
        return product
