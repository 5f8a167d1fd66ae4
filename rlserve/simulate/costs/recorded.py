"""Costs as a run recorded them: what its own slots took.

::

    decoding     t0 + t1 · samples  seconds a step, by type: least squares over all stretches of replicas, prompts and
                 the cache that was read in the mean included. A type that never rolled out: by its bandwidth
    training     (a + b / trainers) seconds a token: least squares over all steps
    the rest     means of what weights took on their way and in, of their copies, and of moves and their pauses
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from rlserve.errors import DataError
from rlserve.roofline.accelerators import slot_type

_PLENTY = 10**12
"""Tokens of a cache that nothing is known of."""
_MOVE_S = 1.0
"""Of a run in which nothing has moved: half for the old role, half for the new one."""

Line = tuple[float, float]
"""Constant and slope."""


@dataclass(frozen=True, kw_only=True)
class RecordedCosts:
    """Seconds, and tokens, of the run that they are from. Types change the decoding alone."""

    decoding: Mapping[str, Line]
    """By type: seconds of a step, and how they grow with each sample."""
    training: Line
    """Seconds a token with trainers without number, and what one alone takes more."""
    weights_mean_s: float
    swap_mean_s: float
    snapshot_mean_s: float
    role_s: float
    """For giving a role up, or taking one."""
    pause_s: float
    """Training stands still for a change of its group."""
    block_size: int
    num_blocks: int | None = None
    """Of a replica's cache; None: unknown, and never full."""

    def decode_step_s(self, type_name: str, num_samples: int, num_kv_tokens: int) -> float:
        """See the contract, as everywhere here."""
        fixed_s, sample_s = self._decoding(type_name)
        return fixed_s + sample_s * num_samples

    def prefill_step_s(self, type_name: str, num_samples: int, num_kv_tokens: int, num_prefill_tokens: int) -> float:
        """Prompts are part of the mean."""
        return self.decode_step_s(type_name, num_samples, num_kv_tokens)

    def num_kv_tokens(self, type_name: str) -> int:
        """As configured."""
        return _PLENTY if self.num_blocks is None else self.num_blocks * self.block_size

    def train_step_s(self, type_names: Sequence[str], num_tokens: int) -> float:
        """By the number of trainers."""
        least_s, alone_s = self.training
        return num_tokens * (least_s + alone_s / len(type_names))

    def snapshot_s(self, type_name: str) -> float:
        """In the mean."""
        return self.snapshot_mean_s

    def weights_s(self, type_name: str) -> float:
        """In the mean, but for the pause."""
        return self.weights_mean_s

    def swap_s(self, type_name: str) -> float:
        """In the mean."""
        return self.swap_mean_s

    def sleep_s(self, type_name: str) -> float:
        """In the mean."""
        return self.role_s

    def wake_s(self, type_name: str) -> float:
        """In the mean."""
        return self.role_s

    def reshard_s(self, type_names: Sequence[str], num_before: int) -> float:
        """In the mean."""
        return self.pause_s

    def _decoding(self, type_name: str) -> Line:
        if type_name in self.decoding:
            return self.decoding[type_name]
        known = next(iter(self.decoding))
        factor = slot_type(known).memory_bandwidth_gb_s / slot_type(type_name).memory_bandwidth_gb_s
        return self.decoding[known][0] * factor, self.decoding[known][1] * factor


def recorded_costs(
    events: Sequence[Mapping[str, Any]],
    metrics: Sequence[Mapping[str, Any]],
    *,
    block_size: int,
    num_blocks: int | None,
    gang_size: int = 1,
) -> RecordedCosts:
    """From the lines of ``events.jsonl`` and ``metrics.jsonl`` of a run whose gangs have ``gang_size`` slots.

    Raises:
        DataError: it has not trained, or not rolled out.
    """
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        by_kind.setdefault(event["event"], []).append(event)
    steps, taken = by_kind.get("step", []), [each for each in by_kind.get("weights", []) if each["slot_id"]]
    stretches = [each for each in by_kind.get("replica", []) if each["num_tokens"] and each["busy_s"]]
    if not steps or not stretches:
        raise DataError("costs can only be taken from a run that has generated and trained: it has recorded no step")
    types = {each["slot_id"]: each["slot_type"] for each in by_kind["slot"]}
    moves, pause_s = by_kind.get("outcome", []), _mean(taken, "pause_s")
    weights_s = max(_mean(taken, "duration_s") - pause_s, 0.0)
    stands_s = _mean(moves, "trainer_pause_s")
    return RecordedCosts(
        decoding={name: _decoding(stretches, types, name) for name in {types[each["slot_id"]] for each in stretches}},
        training=_line(
            [gang_size / len(step["slot_ids"]) for step in steps],
            [(step["work_end_s"] - step["work_begin_s"]) / step["num_tokens"] for step in steps],
            [step["num_tokens"] for step in steps],
            at_0=0.0,
        ),
        weights_mean_s=weights_s,
        swap_mean_s=pause_s,
        snapshot_mean_s=_mean(metrics, "weights/snapshot_s"),
        role_s=max((_mean(moves, "duration_s") - stands_s) / 2, 0.0) if moves else _MOVE_S / 2,
        pause_s=stands_s if moves else _MOVE_S,
        block_size=block_size,
        num_blocks=num_blocks,
    )


def _decoding(stretches: Iterable[Mapping[str, Any]], types: Mapping[str, str], name: str) -> Line:
    own = [each for each in stretches if types[each["slot_id"]] == name]
    batches = [each["running_s"] / each["busy_s"] for each in own]
    steps_s = [each["running_s"] / each["num_tokens"] for each in own]
    return _line(batches, steps_s, [each["busy_s"] for each in own], at_0=1.0)


def _line(x: Sequence[float], y: Sequence[float], weights: Sequence[float], *, at_0: float) -> Line:
    """Weighted least squares, nothing below 0. Where all ``x`` are alike, the share ``at_0`` is the constant."""
    total = np.asarray(weights) / np.sum(weights)
    mean_x, mean_y = float(total @ x), float(total @ y)
    spread = float(total @ (np.asarray(x) - mean_x) ** 2)
    slope = (1 - at_0) * mean_y / mean_x
    if spread > 1e-9 * mean_x**2:
        slope = float(total @ ((np.asarray(x) - mean_x) * (np.asarray(y) - mean_y))) / spread
    slope = min(max(slope, 0.0), mean_y / mean_x)
    return mean_y - slope * mean_x, slope


def _mean(lines: Sequence[Mapping[str, Any]], key: str) -> float:
    values = [float(line[key]) for line in lines if line.get(key) is not None]
    return fmean(values) if values else 0.0
