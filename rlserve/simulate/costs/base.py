"""The contract of costs: seconds that each thing takes on a gang of a type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Costs(Protocol):
    """Times in seconds, by the type of the gang. Tokens are those of the workload."""

    def decode_step_s(self, type_name: str, num_samples: int, num_kv_tokens: int) -> float:
        """A step in which ``num_samples`` gain a token each, over ``num_kv_tokens`` that they have together."""

    def prefill_step_s(self, type_name: str, num_samples: int, num_kv_tokens: int, num_prefill_tokens: int) -> float:
        """A step that also computes the keys and values of ``num_prefill_tokens``; it may decode no sample."""

    @property
    def block_size(self) -> int:
        """Tokens of the blocks that a replica's cache is given out in."""

    def num_kv_tokens(self, type_name: str) -> int:
        """That a replica's cache holds."""

    def train_step_s(self, type_names: Sequence[str], num_tokens: int) -> float:
        """A training step of ``num_tokens``, prompts included, on gangs of these types."""

    def snapshot_s(self, type_name: str) -> float:
        """Training waits so long after a step, until its weights are copied."""

    def weights_s(self, type_name: str) -> float:
        """A version of the weights on its way to a replica, which generates meanwhile."""

    def swap_s(self, type_name: str) -> float:
        """The pause in which a replica takes the version that has come."""

    def sleep_s(self, type_name: str) -> float:
        """A replica frees its memory."""

    def wake_s(self, type_name: str) -> float:
        """A gang takes memory for an engine, without weights."""

    def reshard_s(self, type_names: Sequence[str], num_before: int) -> float:
        """Trainers on ``type_names``, of which there were ``num_before``, form anew; training stands still."""
