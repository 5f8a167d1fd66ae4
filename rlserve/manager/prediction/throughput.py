"""The rate at which a run with a given split trains prompt groups, once it has settled.

A closed loop: ``L`` groups are live at most, the trainer takes ``P`` at a time. At ``X`` groups a second, with steps of
``T`` seconds, ``X T`` are in training in the mean and about ``P / 2`` wait for their batch to be full, so there are
left to generate (Little's law)

    C(X) = L - X T - P / 2        groups

and X is the largest rate that both sides can bear:

    X <= P / T                    the trainer never waits
    X <= k g(C(X)) / n            k: share of groups kept, n: tokens generated for a group
    g(C) = Σ b / t(b)             over the replicas; b: samples of each, as C gives, at most the engine's limit

So a replica more helps in two ways that both flatten out: more room while groups queue, and quicker steps with a
smaller batch once none do. Of the samples of a group that is under way only a part still runs, since it ends with its
longest: ``running_share``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rlserve.manager.policies.base import Admission
from rlserve.manager.prediction.curves import Counts, StepLine, TrainingCurve

Array: TypeAlias = NDArray[np.float64]

_LEAST_S = 1e-9
"""Of a decoding step."""
_NUM_HALVINGS = 5
"""Before the straight line between the two ends is as good as the curve."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a prompt group takes."""

    admission: Admission
    kept_share: float
    tokens_per_group: float
    """Generated."""
    trained_tokens_per_group: float
    """Of a kept one, prompt included."""
    weights_s: float
    """That a training step takes besides computing."""
    running_share: float
    """Of the samples of groups under way, those that an engine computes."""
    max_batch: float
    """Samples that a replica computes at once."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Prompt groups trained in a second."""

    rate: float
    trainer: float
    """If it never waited."""
    batch: float
    """Samples that a replica computes at once, at that rate."""
    decode_step_s: float
    """Of the slowest replicas, with that batch."""
    train_step_s: float

    @property
    def trainer_waits(self) -> bool:
        """Rollout sets the pace."""
        return self.rate < self.trainer


def groups_to_generate(rate: float, *, trainer: float, train_step_s: float, admission: Admission) -> float:
    """C: those left for rollout while ``rate`` groups a second are trained by trainers that could do ``trainer``."""
    num_prompts, num_live = admission.prompts_per_step, admission.max_live_groups
    is_synchronous = num_live <= num_prompts
    num_buffered = 0.5 * num_prompts * ((1.0 - rate / trainer) if is_synchronous else 1.0)
    return max(0.0, num_live - rate * train_step_s - num_buffered)


def steady_rates(
    rollout: Counts, train: Counts, *, work: Work, lines: Mapping[str, StepLine], training: TrainingCurve
) -> Rates:
    """The rates of a split with at least one gang on each side."""
    num_prompts = work.admission.prompts_per_step
    step_s = num_prompts * work.trained_tokens_per_group * training.token_s(train) + work.weights_s
    trainer = num_prompts / step_s
    present = [(count, lines[name]) for name, count in rollout.items() if count]
    num_replicas = sum(count for count, _ in present)

    def batch_at(rate: float) -> float:
        """Samples of a replica with what is left to generate at ``rate``."""
        num_groups = groups_to_generate(rate, trainer=trainer, train_step_s=step_s, admission=work.admission)
        samples = num_groups * work.admission.samples_per_prompt * work.running_share
        return min(work.max_batch, samples / num_replicas)

    def generated(rate: float) -> float:
        """Groups kept a second with what is left to generate at ``rate``."""
        batch = batch_at(rate)
        tokens_per_s = sum(count * batch / line.step_s(batch) for count, line in present) if batch else 0.0
        return work.kept_share * tokens_per_s / work.tokens_per_group

    def rates(rate: float) -> Rates:
        batch = batch_at(rate)
        slowest_s = max(line.step_s(batch) for _, line in present)
        return Rates(rate=rate, trainer=trainer, batch=batch, decode_step_s=slowest_s, train_step_s=step_s)

    low, high, missing = 0.0, trainer, generated(trainer) - trainer
    if missing >= 0.0:
        return rates(trainer)
    spare = generated(0.0)
    for _ in range(_NUM_HALVINGS):
        middle = 0.5 * (low + high)
        difference = generated(middle) - middle
        if difference >= 0.0:
            low, spare = middle, difference
        else:
            high, missing = middle, difference
    return rates(low + (high - low) * spare / (spare - missing))


def generation_rates(rollout: Counts, num_groups: Array, *, work: Work, lines: Mapping[str, StepLine]) -> Array:
    """Groups a second that training can use, for each number of groups to generate."""
    present = [(count, lines[name]) for name, count in rollout.items() if count]
    samples = np.maximum(num_groups, 0.0) * work.admission.samples_per_prompt * work.running_share
    batch = np.minimum(work.max_batch, samples / sum(count for count, _ in present))
    tokens_per_s = np.zeros_like(batch)
    for count, line in present:
        tokens_per_s += count * batch / np.maximum(line.base_s + line.per_sample_s * batch, _LEAST_S)
    return work.kept_share * tokens_per_s / work.tokens_per_group
