"""The policy as the engine computes it on a CPU, to the bit: the same compiled program, run over whole samples.

    transformers model ──► shape, weights in panels ──► program ──► logits ──► log-probabilities
                                                       ▲
                  samples of a shard, some at a time, each in KV blocks of its own

What a row gets does not depend on the rows beside it, so it does not matter that the engine computed the same tokens
in other company, in chunks, or one by one. There are no gradients here: see ``policy_backward``.

Legend: S samples, L longest input of a shard, a response tokens of the shard; C samples computed together, T = C * L.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.native.attention import LayerCache, StepArguments, cache_elements
from rlserve.native.decoder_program import DecoderLayer, DecoderProgram
from rlserve.native.panels import empty_panels, panels_of, put_rows
from rlserve.native.program import Projection
from rlserve.native.rotation import table_of_frequencies
from rlserve.native.target_log_probs import target_log_probs
from rlserve.trainers.backends.pytorch.native_shape import NativeShape, read_shape
from rlserve.trainers.backends.pytorch.shards import ShardInputs

_BLOCK_SIZE = 16
"""Of the KV cache; one of ``SAME_BITS_BLOCK_SIZES``."""
_NUM_TOKENS = 1024
"""Computed together, if samples are not longer than that."""
_NUM_LOGITS = 2**22
"""Computed together, if the vocabulary is not larger than that: 16 MiB."""


class NativePolicy:
    """A policy with the weights that it had when this was made. For samples of up to ``longest`` input tokens."""

    def __init__(self, policy: Any, *, longest: int) -> None:
        shape = read_shape(policy)
        self._longest = longest
        self._num_rows = max(1, _NUM_LOGITS // shape.vocab_size)
        self._num_blocks = _num_blocks(max(longest, _NUM_TOKENS))
        num_tokens = self._num_blocks * _BLOCK_SIZE
        elements = cache_elements(shape.num_kv_heads, shape.head_dim, _BLOCK_SIZE, torch.float32)
        # All tokens go through a layer before the next one begins, so one cache does for all layers.
        self._cached = [torch.empty(self._num_blocks, size) for size in elements]
        self._cache = LayerCache(*(tensor.data_ptr() for tensor in self._cached))
        self._steps: dict[tuple[int, str], StepArguments] = {}
        self._described: tuple[NDArray[Any], ...] = ()
        """What the steps point to: it is read again for the logits."""
        self._rotations = {
            kind: table_of_frequencies(frequencies_F, longest, factor).contiguous()
            for kind, (frequencies_F, factor) in shape.rotations.items()
        }
        embedding, head = (each.weight for each in (policy.get_input_embeddings(), policy.get_output_embeddings()))
        with torch.no_grad():
            head_panels = panels_of(head)
            self._program = DecoderProgram(
                shape,
                embedding=head_panels if embedding is head else panels_of(embedding),
                layers=list(self._layers(policy, shape)),
                final_norm=policy.base_model.norm.weight,
                head=Projection(head_panels, len(head)),
                max_num_tokens=num_tokens,
                max_num_rows=1,
            )
            self._program.weights_changed()

    def log_probs(self, inputs: ShardInputs, temperature: float) -> tuple[Tensor, Tensor]:
        """Of the response tokens of a shard, each [a] float32 and without gradient: under softmax(logits /
        temperature), which is the behaviour log-probability of an engine that draws from all tokens; and under
        softmax(logits)."""
        num_samples, longest = inputs.input_ids.shape
        assert longest <= self._longest
        num_together = self._num_blocks // _num_blocks(longest)
        states, num_found = inputs.states.numpy(), 0
        found = torch.empty(2, len(states))
        with torch.no_grad():
            for first in range(0, num_samples, num_together):
                token_ids_CL = inputs.input_ids[first : first + num_together].contiguous()
                begin, end = first * longest, first * longest + token_ids_CL.numel()
                self._forward(token_ids_CL)
                # Samples stand in the shard in the order of their response tokens, so the parts do too.
                rows_begin, rows_end = np.searchsorted(states, [begin, end])
                for part in _runs(states[rows_begin:rows_end] - begin, self._num_rows):
                    logits = self._program.logits_of(part.start, part.stop)
                    targets = inputs.targets[num_found : num_found + len(part)]
                    log_probs = target_log_probs(logits, targets, temperature)
                    raw = log_probs if temperature == 1.0 else target_log_probs(logits, targets, 1.0)
                    found[:, num_found : num_found + len(part)] = torch.stack([log_probs, raw])
                    num_found += len(part)
        assert num_found == len(states)
        return found[0], found[1]

    def _forward(self, token_ids_CL: Tensor) -> None:
        """Compute all layers for T tokens."""
        num_samples, length = token_ids_CL.shape
        num_blocks = _num_blocks(length)
        positions_CL = np.tile(np.arange(length, dtype=np.int32), (num_samples, 1))
        samples = np.arange(num_samples, dtype=np.int32)
        tables_CB = np.arange(num_samples * num_blocks, dtype=np.int32).reshape(num_samples, num_blocks)
        slots_CL = positions_CL + samples[:, None].astype(np.int64) * num_blocks * _BLOCK_SIZE
        query_starts = np.arange(num_samples + 1, dtype=np.int32) * length
        self._described = (positions_CL, slots_CL, query_starts, samples, tables_CB)
        for step in self._steps.values():
            step.num_tokens, step.num_sequences, step.table_width = num_samples * length, num_samples, num_blocks
            step.positions, step.cache_slots = positions_CL.ctypes.data, slots_CL.ctypes.data
            step.query_starts, step.table_rows = query_starts.ctypes.data, samples.ctypes.data
            step.block_tables = tables_CB.ctypes.data
        self._program.forward(token_ids_CL.flatten(), torch.zeros(1, dtype=torch.int64))

    def _layers(self, policy: Any, shape: NativeShape) -> Iterator[DecoderLayer]:
        for index, layer in enumerate(policy.base_model.layers):
            attention, mlp = layer.self_attn, layer.mlp
            update_norm = layer.post_attention_layernorm.weight if shape.update_norms else None
            mlp_norm = layer.pre_feedforward_layernorm if shape.update_norms else layer.post_attention_layernorm
            yield DecoderLayer(
                input_norm=layer.input_layernorm.weight,
                qkv=_projection(attention.q_proj, attention.k_proj, attention.v_proj),
                query_norm=attention.q_norm.weight if shape.query_key_norm else None,
                key_norm=attention.k_norm.weight if shape.query_key_norm else None,
                output=_projection(attention.o_proj),
                attention_update_norm=update_norm,
                mlp_norm=mlp_norm.weight,
                gate_up=_projection(mlp.gate_proj, mlp.up_proj),
                down=_projection(mlp.down_proj),
                mlp_update_norm=layer.post_feedforward_layernorm.weight if shape.update_norms else None,
                step=ctypes.addressof(self._step(shape, *shape.layers[index])),
                cache=ctypes.addressof(self._cache),
            )

    def _step(self, shape: NativeShape, window: int, rotation: str) -> StepArguments:
        """What layers with this window and this rotation are told of a step."""
        if (window, rotation) not in self._steps:
            self._steps[window, rotation] = StepArguments(
                num_heads=shape.num_heads,
                num_kv_heads=shape.num_kv_heads,
                head_dim=shape.head_dim,
                block_size=_BLOCK_SIZE,
                window=window,
                eps=shape.rms_norm_eps,
                scale=shape.score_scale,
                softcap=shape.attention_softcap,
                norm_offset=shape.norm_offset,
                rotation=self._rotations[rotation].data_ptr(),
            )
        return self._steps[window, rotation]


def _projection(*projections: Any) -> Projection:
    """Projections of the same input as one."""
    weights, biases = ([getattr(each, name) for each in projections] for name in ("weight", "bias"))
    num_outputs = sum(map(len, weights))
    panels, first = empty_panels(num_outputs, weights[0].shape[1], weights[0].dtype), 0
    for weight in weights:
        put_rows(panels, first, weight)
        first += len(weight)
    return Projection(panels, num_outputs, None if biases[0] is None else torch.cat(biases))


def _runs(rows: NDArray[np.int64], longest: int) -> Iterator[range]:
    """Rising numbers as runs of neighbours, none longer than ``longest``."""
    for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        for first in range(0, len(run), longest):
            part = run[first : first + longest]
            yield range(int(part[0]), int(part[-1]) + 1)


def _num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // _BLOCK_SIZE)
