"""How long a slot takes for each thing that a run does: a roofline, with efficiencies as they are seen in practice.

::

    decoding     bytes read / bandwidth:  the weights once a step, the KV cache of every sample
    a prompt     2 FLOP a parameter and token
    training     6 FLOP a parameter and token, data-parallel: the slowest type sets the pace
    moving       bytes that travel / link, and a fixed part for memory, processes and groups

Calibrated so that 8B decodes on an H100 in about 6.5 ms + 0.06 ms a sample + its KV reads, and trains 6,200 tokens a
second; an H200 decodes 1.43 times as quickly. All times are seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlserve.roofline.accelerators import SlotType
from rlserve.roofline.model_shapes import ModelShape

_BANDWIDTH_EFFICIENCY = 0.75
"""Of the memory's peak, in a step that decodes."""
_PREFILL_EFFICIENCY = 0.5
"""Of peak FLOP/s."""
_TRAIN_EFFICIENCY = 0.31
"""Of peak FLOP/s, forward and backward: the model FLOP/s utilisation that users report at this size."""
_SAMPLES_PER_WEIGHT_READ = 108.0
"""So many samples in a batch cost as much again as reading the weights: activations, sampling, scheduling."""
_SHORTEST_STEP_S = 1.5e-3
"""Of an engine, whatever the model: to launch it and to read its tokens."""
_ALL_REDUCE_S = 15e-6
"""Latency of one of the two all-reduces in each layer of a model that several GPUs share."""
_OPTIMIZER_BYTES = 12.0
"""A parameter of the trainers' sharded state: master weight and two moments of Adam, in float32."""
_TRAINED_BYTES = 2.0
"""A parameter of the copy that every trainer computes with, and of its gradient as it is exchanged."""
_MAP_GB_S = 200.0
"""Pages of GPU memory that are mapped or unmapped in a second: sleep mode of vLLM takes 0.1 to 1 s for 80 GB."""
_CALL_S = 0.1
"""Fixed part of going to sleep, waking up, or offering a version: the calls themselves."""
_FORM_GROUP_S = 0.5
"""To form the communicators of the trainers anew; published systems repair theirs in less than a second."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of one model on any type of slot.

    Tokens are those of the caller: each stands for ``tokens_scale`` of the model, so the time of a step in which every
    sample gains one is that of as many steps of the model.
    """

    shape: ModelShape
    tokens_scale: float = 1.0
    tensor_parallel_size: int = 1
    """Slots that compute one replica together."""
    num_trained_networks: int = 1
    """2 where a critic of the policy's size is trained too."""
    num_train_passes: float = 1.0
    """Forward and backward passes over each token of a batch, all networks together; a forward pass alone is a
    third."""

    def decode_step_s(self, slot_type: SlotType, num_samples: int, num_kv_tokens: int) -> float:
        """An engine's step in which ``num_samples`` gain a token each, over ``num_kv_tokens`` that they have together.
        0 without samples."""
        if not num_samples:
            return 0.0
        per_sample_s = max(
            self._read_weights_s(slot_type) / _SAMPLES_PER_WEIGHT_READ,
            2 * self._parameters_per_slot / (slot_type.flops_tflops * 1e12 * _PREFILL_EFFICIENCY),
        )
        kv_bytes = num_kv_tokens * self.tokens_scale * self.shape.kv_bytes_per_token / self.tensor_parallel_size
        step_s = (
            self._read_weights_s(slot_type)
            + num_samples * per_sample_s
            + kv_bytes / self._bandwidth(slot_type)
            + self._all_reduce_s
        )
        return self.tokens_scale * max(step_s, _SHORTEST_STEP_S)

    def prefill_s(self, slot_type: SlotType, num_tokens: int) -> float:
        """Computing ``num_tokens`` of prompts, which share a step with the samples that decode. 0 without tokens."""
        flops = 2 * self._parameters_per_slot * num_tokens * self.tokens_scale
        return flops / (slot_type.flops_tflops * 1e12 * _PREFILL_EFFICIENCY)

    def engine_step_s(
        self, slot_type: SlotType, *, num_samples: int, num_kv_tokens: int, num_prefill_tokens: int
    ) -> float:
        """A step that decodes and computes chunks of prompts; one that does the latter alone reads the weights too."""
        prefill_s = self.prefill_s(slot_type, num_prefill_tokens)
        if num_samples:
            return self.decode_step_s(slot_type, num_samples, num_kv_tokens) + prefill_s
        return max(prefill_s, self._read_weights_s(slot_type), _SHORTEST_STEP_S) if num_prefill_tokens else 0.0

    def train_step_s(self, slot_types: Sequence[SlotType], num_tokens: int) -> float:
        """A training step of ``num_tokens``, prompts included, split evenly over data-parallel slots of these types.
        Gradients are exchanged while the backward pass goes on, and only show where they take longer."""
        num_ranks = len(slot_types)
        flops = 6 * self.shape.num_parameters * self.num_train_passes * num_tokens * self.tokens_scale
        compute_s = max(
            flops / num_ranks / (slot_type.flops_tflops * 1e12 * _TRAIN_EFFICIENCY) for slot_type in slot_types
        )
        exchanged_bytes = 2 * (num_ranks - 1) / num_ranks * _TRAINED_BYTES * self._trained_parameters
        exchange_s = max(exchanged_bytes / (slot_type.link_gb_s * 1e9) for slot_type in slot_types)
        return max(compute_s, exchange_s)

    def snapshot_s(self, slot_type: SlotType) -> float:
        """Copying the policy inside a trainer's memory, which training waits for: each byte is read and written."""
        return 2 * self.shape.weight_bytes / self._bandwidth(slot_type)

    def weights_s(self, slot_type: SlotType) -> float:
        """A version of the weights, whole, from a trainer into a replica whose slots are of this type."""
        return _CALL_S + self._weight_bytes_per_slot / (slot_type.link_gb_s * 1e9)

    def swap_s(self, slot_type: SlotType) -> float:
        """The replica's pause for a version that lies beside the running one: a copy inside its memory."""
        return 2 * self._weight_bytes_per_slot / self._bandwidth(slot_type)

    def sleep_s(self, slot_type: SlotType) -> float:
        """A replica freeing its memory."""
        return _CALL_S + slot_type.memory_gb / _MAP_GB_S

    def wake_s(self, slot_type: SlotType) -> float:
        """A replica taking its memory again, without the weights, which come as ``weights_s``."""
        return _CALL_S + slot_type.memory_gb / _MAP_GB_S

    def reshard_s(self, slot_types: Sequence[SlotType], num_before: int) -> float:
        """Trainers on ``slot_types``, ``num_before`` of them until now, that form a group and bring each part of the
        optimizer's state to its new owner. A newcomer receives its part and the weights; one that stays receives what
        it owns more than before."""
        num_ranks = len(slot_types)
        if num_ranks > num_before:
            received = _TRAINED_BYTES + _OPTIMIZER_BYTES / num_ranks
        else:
            received = _OPTIMIZER_BYTES * (1 / num_ranks - 1 / max(num_before, 1))
        slowest_gb_s = min(slot_type.link_gb_s for slot_type in slot_types)
        return _FORM_GROUP_S + received * self._trained_parameters / (slowest_gb_s * 1e9)

    def num_kv_tokens(self, slot_type: SlotType, *, memory_fraction: float = 0.9) -> int:
        """Tokens that the KV cache of a replica holds beside the weights; 0 or less where these do not fit."""
        free_bytes = slot_type.memory_gb * 1e9 * memory_fraction - self._weight_bytes_per_slot
        per_token = self.shape.kv_bytes_per_token / self.tensor_parallel_size * self.tokens_scale
        return int(free_bytes / per_token)

    @property
    def _parameters_per_slot(self) -> float:
        return self.shape.num_parameters / self.tensor_parallel_size

    @property
    def _weight_bytes_per_slot(self) -> float:
        return self.shape.weight_bytes / self.tensor_parallel_size

    @property
    def _trained_parameters(self) -> float:
        return self.shape.num_parameters * self.num_trained_networks

    @property
    def _all_reduce_s(self) -> float:
        return 2 * self.shape.num_layers * _ALL_REDUCE_S if self.tensor_parallel_size > 1 else 0.0

    def _read_weights_s(self, slot_type: SlotType) -> float:
        return self._weight_bytes_per_slot / self._bandwidth(slot_type)

    def _bandwidth(self, slot_type: SlotType) -> float:
        """Bytes a second that really come."""
        return slot_type.memory_bandwidth_gb_s * 1e9 * _BANDWIDTH_EFFICIENCY
