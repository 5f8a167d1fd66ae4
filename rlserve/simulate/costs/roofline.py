"""Costs by the roofline of a named model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlserve.roofline.accelerators import SlotType, slot_type
from rlserve.roofline.costs import Costs as Roofline


@dataclass(frozen=True, kw_only=True)
class RooflineCosts:
    """A gang is as many slots as a replica has (``tensor_parallel_size``)."""

    roofline: Roofline
    memory_fraction: float = 0.9
    """Of a slot's memory, for weights and KV cache."""
    block_size: int = 16
    num_blocks: int | None = None
    """Of a replica's cache; None: as many as the memory holds."""

    def decode_step_s(self, type_name: str, num_samples: int, num_kv_tokens: int) -> float:
        """See the contract, as everywhere here."""
        return self.roofline.decode_step_s(slot_type(type_name), num_samples, num_kv_tokens)

    def prefill_step_s(self, type_name: str, num_samples: int, num_kv_tokens: int, num_prefill_tokens: int) -> float:
        """Prompts come on top of the time of decoding."""
        return self.roofline.engine_step_s(
            slot_type(type_name),
            num_samples=num_samples,
            num_kv_tokens=num_kv_tokens,
            num_prefill_tokens=num_prefill_tokens,
        )

    def num_kv_tokens(self, type_name: str) -> int:
        """Beside the weights, or what ``num_blocks`` says."""
        if self.num_blocks is not None:
            return self.num_blocks * self.block_size
        return self.roofline.num_kv_tokens(slot_type(type_name), memory_fraction=self.memory_fraction)

    def train_step_s(self, type_names: Sequence[str], num_tokens: int) -> float:
        """The slowest type sets the pace."""
        return self.roofline.train_step_s(self._slots(type_names), num_tokens)

    def snapshot_s(self, type_name: str) -> float:
        """A copy inside a trainer's memory."""
        return self.roofline.snapshot_s(slot_type(type_name))

    def weights_s(self, type_name: str) -> float:
        """Over the replica's link."""
        return self.roofline.weights_s(slot_type(type_name))

    def swap_s(self, type_name: str) -> float:
        """A copy inside the replica's memory."""
        return self.roofline.swap_s(slot_type(type_name))

    def sleep_s(self, type_name: str) -> float:
        """Pages are unmapped."""
        return self.roofline.sleep_s(slot_type(type_name))

    def wake_s(self, type_name: str) -> float:
        """Pages are mapped."""
        return self.roofline.wake_s(slot_type(type_name))

    def reshard_s(self, type_names: Sequence[str], num_before: int) -> float:
        """Each part of the optimizer's state goes to its new owner."""
        return self.roofline.reshard_s(self._slots(type_names), num_before * self.roofline.tensor_parallel_size)

    def _slots(self, type_names: Sequence[str]) -> list[SlotType]:
        size = self.roofline.tensor_parallel_size
        return [slot_type(name) for name in type_names for _ in range(size)]
