"""What is believed of a type before it was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from rlserve.manager.policies.base import GangView

_SAMPLES_PER_WEIGHT_READ = 40.0
"""So many samples in a batch cost as much again as reading the weights, with contexts of a few thousand tokens."""


class Prior(Protocol):
    """Only ratios count: both times are scaled to what was measured."""

    def decode_step_s(self, type_name: str, batch: float) -> float:
        """A decoding step of a gang of this type."""

    def train_token_s(self, counts: Mapping[str, int]) -> float:
        """Time of a token in a training step on so many gangs of each type."""


class FiguresPrior:
    """From the figures of the gangs: decoding goes with memory bandwidth and training with the slowest type's FLOP/s,
    without loss for each gang more."""

    def __init__(self, gangs: Iterable[GangView]) -> None:
        by_type = {gang.type: gang for gang in gangs}
        self._bandwidths = {name: gang.figures.memory_bandwidth_gb_s * gang.num_slots for name, gang in by_type.items()}
        self._flops = {name: gang.figures.flops_tflops * gang.num_slots for name, gang in by_type.items()}

    def decode_step_s(self, type_name: str, batch: float) -> float:
        """The weights once, and each sample's part."""
        return (1.0 + batch / _SAMPLES_PER_WEIGHT_READ) / self._bandwidths[type_name]

    def train_token_s(self, counts: Mapping[str, int]) -> float:
        """An even share for each."""
        return 1.0 / (sum(counts.values()) * min(self._flops[name] for name in counts))
