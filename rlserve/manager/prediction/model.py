"""The model of a run that a decision is made with: from one observation, what any split would come to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlserve.manager.policies.base import Observation
from rlserve.manager.prediction.curves import StepLine, TrainingCurve, step_lines
from rlserve.manager.prediction.fluid import Flows
from rlserve.manager.prediction.prior import FiguresPrior
from rlserve.manager.prediction.splits import Split, split_now
from rlserve.manager.prediction.throughput import Rates, Work, generation_rates, steady_rates
from rlserve.manager.roles import Role

_NUM_STOCKS = 17
_MIN_GROUPS = 16
"""Scored before the kept share is worth a decision."""


@dataclass(frozen=True, kw_only=True)
class SplitModel:
    """Predicts rates of splits."""

    work: Work
    kept_error: float
    """Standard error of the kept share."""
    lines: Mapping[str, StepLine]
    training: TrainingCurve
    correct: Callable[[Split], float] = lambda split: 1.0
    """Measured over predicted rate, as far as it is known."""

    def rates(self, split: Split, *, kept_share: float | None = None) -> Rates:
        """Of a split; ``kept_share`` in place of the measured one."""
        rates, factor = self.uncorrected(split, kept_share=kept_share), self.correct(split)
        return replace(rates, rate=rates.rate * factor, trainer=rates.trainer * factor)

    def uncorrected(self, split: Split, *, kept_share: float | None = None) -> Rates:
        """Of a split, by the curves alone."""
        work = self.work if kept_share is None else replace(self.work, kept_share=kept_share)
        return steady_rates(split.rollout, split.train, work=work, lines=self.lines, training=self.training)

    def stock(self, observation: Observation) -> float:
        """Finished groups beyond what training needs to go on without a pause when its step ends."""
        num_prompts = self.work.admission.prompts_per_step
        left = 0.0
        if not observation.trainer_waiting and observation.measured.last_step_end_s is not None:
            step_s = num_prompts / self.rates(split_now(observation)).trainer
            since_s = observation.time_s - observation.measured.last_step_end_s
            left = min(max(1.0 - since_s / step_s, 0.0), 1.0)
        return max(0.0, observation.num_buffered + left * num_prompts - num_prompts)

    def flows(self, splits: Sequence[Split]) -> Flows:
        """Of these splits, by the stock of finished groups."""
        admission = self.work.admission
        num_prompts = admission.prompts_per_step
        most = max(1.0, admission.max_live_groups - 1.5 * num_prompts)
        stocks = np.linspace(0.0, most, _NUM_STOCKS)
        rates = [self.rates(split) for split in splits]
        return Flows(
            stocks=stocks,
            generated=np.stack(
                [
                    generation_rates(split.rollout, most - stocks, work=self.work, lines=self.lines)
                    for split in splits
                ]
            ),
            trained=np.array([each.trainer for each in rates]),
            balanced=np.array([each.rate for each in rates]),
        )

    def gang_rates(self, type_name: str, split: Split) -> tuple[float, float]:
        """Prompt groups a second of one more gang, in rollout and in training, if it adds as much as those of ``split``
        do."""
        work, batch = self.work, max(1.0, self.rates(split).batch)
        rollout = work.kept_share * batch / self.lines[type_name].step_s(batch) / work.tokens_per_group
        return rollout, 1.0 / (work.trained_tokens_per_group * self.training.gang_token_s(type_name, split.train))

    def unfavourable_share(self, to: Role, num_errors: float) -> float:
        """The kept share so many standard errors off, to where moves to a role gain less."""
        share, error = self.work.kept_share, num_errors * self.kept_error
        return min(share + error, 1.0) if to is Role.ROLLOUT else max(share - error, 0.1 * share)


def split_model(observation: Observation, running_share: float | None) -> SplitModel | str:
    """The model, or what has not been measured yet.

    ``running_share``: of the samples of groups under way, those that an engine computes.
    """
    measured, admission = observation.measured, observation.admission
    types = {gang.type for gang in observation.gangs}
    if not any(set(rate.types) <= types for rate in measured.train):
        return "no training step has been measured yet"
    if not any(curve.type in types for curve in measured.curves) or running_share is None:
        return "no replica has been measured yet"
    kept_share, num_observed = measured.kept_share, measured.num_kept_observed
    if kept_share is None or num_observed < _MIN_GROUPS or measured.tokens_per_group is None:
        return f"only {num_observed} prompt groups have been scored, too few for a rate"
    if measured.trained_tokens_per_group is None or measured.weights_s is None:
        return "no training step has been measured yet"
    prior = FiguresPrior(observation.gangs)
    smoothed = (kept_share * num_observed + 1.0) / (num_observed + 2.0)
    return SplitModel(
        work=Work(
            admission=admission,
            kept_share=max(kept_share, 1.0 / (num_observed + 2.0)),
            tokens_per_group=measured.tokens_per_group,
            trained_tokens_per_group=measured.trained_tokens_per_group,
            weights_s=measured.weights_s,
            running_share=running_share,
            max_batch=admission.max_samples_per_replica * running_share,
        ),
        kept_error=math.sqrt(smoothed * (1.0 - smoothed) / num_observed),
        lines=step_lines(types, measured.curves, prior),
        training=TrainingCurve([rate for rate in measured.train if set(rate.types) <= types], prior),
    )
