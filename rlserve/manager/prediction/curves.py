"""Scaling curves: measured points, and lines through them where nothing was measured.

    decoding    a step with b samples takes  t0 + t1 b    for each type
    training    a token takes                a x + c      x: what the prior says; c: what more gangs do not speed up

Both begin as the prior scaled to what was measured, and give way to the measured slope as points spread (ridge
regression). With c the second is Amdahl's law: a size that adds nothing is found out by the first steps on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rlserve.manager.measurement.figures import DecodeCurve, TrainRate
from rlserve.manager.prediction.prior import Prior

_SPREAD = 0.15
"""Of batches or of sizes around their mean, relative: with so much, measured slope and prior count alike."""
_TRUSTED_STEPS = 2
"""After so many steps at a size, the size counts as measured."""

Counts = Mapping[str, int]
"""Gangs of each type."""


@dataclass(frozen=True, kw_only=True)
class StepLine:
    """Time of a decoding step over its batch."""

    base_s: float
    per_sample_s: float

    def step_s(self, batch: float) -> float:
        """With ``batch`` samples."""
        return self.base_s + self.per_sample_s * batch


def step_lines(type_names: Collection[str], curves: Sequence[DecodeCurve], prior: Prior) -> dict[str, StepLine]:
    """The line of each type. Those that were never seen decoding are scaled as the others; of these there must be
    one."""
    seen = {curve.type: curve for curve in curves if curve.type in type_names}
    scales = [curve.mean_step_s / prior.decode_step_s(name, curve.mean_batch) for name, curve in seen.items()]
    mean_scale = sum(scales) / len(scales)
    return {
        name: _seen_line(seen[name], prior) if name in seen else _prior_line(name, prior, mean_scale)
        for name in type_names
    }


def _prior_line(name: str, prior: Prior, scale: float) -> StepLine:
    base_s = prior.decode_step_s(name, 0.0)
    return StepLine(base_s=scale * base_s, per_sample_s=scale * (prior.decode_step_s(name, 1.0) - base_s))


def _seen_line(curve: DecodeCurve, prior: Prior) -> StepLine:
    scale = curve.mean_step_s / prior.decode_step_s(curve.type, curve.mean_batch)
    ridge = (_SPREAD * curve.mean_batch) ** 2
    believed = _prior_line(curve.type, prior, scale).per_sample_s
    slope = (curve.covariance + ridge * believed) / (curve.batch_variance + ridge)
    slope = min(max(slope, 0.0), curve.mean_step_s / curve.mean_batch)
    return StepLine(base_s=curve.mean_step_s - slope * curve.mean_batch, per_sample_s=slope)


class TrainingCurve:
    """Time of a trained token by the gangs that train."""

    def __init__(self, rates: Sequence[TrainRate], prior: Prior) -> None:
        """``rates`` is not empty."""
        self._prior = prior
        self._measured = {
            _key(Counter(rate.types)): 1.0 / rate.tokens_per_s for rate in rates if rate.num_steps >= _TRUSTED_STEPS
        }
        self._slope, self._constant_s = self._fit([rate for rate in rates if rate.num_steps] or list(rates))

    def token_s(self, counts: Counts) -> float:
        """Measured where it was, else on the line."""
        measured_s = self._measured.get(_key(counts))
        return (
            measured_s if measured_s is not None else self._slope * self._prior.train_token_s(counts) + self._constant_s
        )

    def gang_token_s(self, type_name: str, counts: Counts) -> float:
        """By one gang of a type, if each of ``counts`` does its part and this one as much more as the prior says."""
        of_one_s = self.token_s(counts) * sum(counts.values())
        slowest_s = max(self._prior.train_token_s({name: 1}) for name in counts)
        return of_one_s * self._prior.train_token_s({type_name: 1}) / slowest_s

    def _fit(self, rates: Sequence[TrainRate]) -> tuple[float, float]:
        points = [(self._prior.train_token_s(Counter(rate.types)), 1.0 / rate.tokens_per_s) for rate in rates]
        mean_x = sum(x for x, _ in points) / len(points)
        mean_y = sum(y for _, y in points) / len(points)
        variance = sum((x - mean_x) ** 2 for x, _ in points) / len(points)
        covariance = sum((x - mean_x) * (y - mean_y) for x, y in points) / len(points)
        ridge, proportional = (_SPREAD * mean_x) ** 2, mean_y / mean_x
        slope = (covariance + ridge * proportional) / (variance + ridge)
        slope = min(max(slope, 0.0), proportional)
        return slope, mean_y - slope * mean_x


def _key(counts: Counts) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((name, count) for name, count in counts.items() if count))
