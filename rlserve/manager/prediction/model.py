"""The model of a run that a decision is made with: from one observation, what any split would come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlserve.manager.policies.base import Observation
from rlserve.manager.prediction.curves import StepLine, TrainingCurve, step_lines
from rlserve.manager.prediction.finish import WorkLeft
from rlserve.manager.prediction.fluid import Flows
from rlserve.manager.prediction.prior import FiguresPrior
from rlserve.manager.prediction.splits import Split
from rlserve.manager.prediction.throughput import Rates, Work, generation_rates, groups_to_generate, steady_rates

_NUM_STOCKS = 17
"""Points of the grid of stocks."""
_MIN_GROUPS = 16
"""Scored before the kept share is worth a decision."""
_NOISE = 0.1
"""By which what replicas make may differ from what is predicted before that is put right."""


@dataclass(frozen=True, kw_only=True)
class SplitModel:
    """Predicts rates of splits."""

    work: Work
    kept_error: float
    """Standard error of the kept share."""
    lines: Mapping[str, StepLine]
    training: TrainingCurve

    def rates(self, split: Split) -> Rates:
        """Of a split, once it has settled."""
        return steady_rates(split.rollout, split.train, work=self.work, lines=self.lines, training=self.training)

    def stock(self, observation: Observation, rates: Rates) -> float:
        """Finished groups beyond those that training takes when its step under way ends; ``rates`` are those of the
        split that there is."""
        num_put_aside = self.work.admission.prompts_per_step * (1.0 - _step_left(observation, rates))
        return max(0.0, observation.num_buffered - num_put_aside)

    def work_left(self, observation: Observation, rates: Rates) -> WorkLeft | None:
        """What the run has still to do after its step under way; None where it has no last step."""
        if observation.num_steps_left is None:
            return None
        num_prompts = self.work.admission.prompts_per_step
        num_steps = observation.num_steps_left - 2 + _step_left(observation, rates)  # the last one begins then
        return WorkLeft(
            num_groups=max(0.0, num_prompts * num_steps), prompts_per_step=num_prompts, kept_share=self.work.kept_share
        )

    def with_kept_share(self, kept_share: float) -> SplitModel:
        """The same with another share."""
        return replace(self, work=replace(self.work, kept_share=kept_share))

    def flows(self, splits: Sequence[Split]) -> Flows:
        """Of these splits, by the stock of finished groups. A step in training holds its groups, and half a step's have
        been put aside for the next in the mean; the rest of the live groups is in stock or to be generated."""
        admission = self.work.admission
        most = max(1.0, admission.max_live_groups - 1.5 * admission.prompts_per_step)
        stocks = np.linspace(0.0, most, _NUM_STOCKS)
        rates = [self.rates(split) for split in splits]
        generated = [generation_rates(each.rollout, most - stocks, work=self.work, lines=self.lines) for each in splits]
        return Flows(
            stocks=stocks,
            generated=np.stack(generated),
            trained=np.array([each.trainer for each in rates]),
            balanced=np.array([each.rate for each in rates]),
        )

    def gang_rates(self, type_name: str, split: Split) -> tuple[float, float]:
        """Prompt groups a second of one more gang, in rollout and in training, if it adds as much as those of ``split``
        do."""
        work, batch = self.work, max(1.0, self.rates(split).batch)
        rollout = work.kept_share * batch / self.lines[type_name].step_s(batch) / work.tokens_per_group
        return rollout, 1.0 / (work.trained_tokens_per_group * self.training.gang_token_s(type_name, split.train))


def split_model(observation: Observation, now: Split, running_share: float | None) -> SplitModel | str:
    """The model, or what has not been measured yet.

    ``now``: the split that there is, with gangs in both roles. ``running_share``: of the samples of groups under way,
    those that an engine computes.
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
    model = SplitModel(
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
    return _as_quick_as_measured(model, observation, now)


def _step_left(observation: Observation, rates: Rates) -> float:
    """Share of the step under way that is still to be done."""
    last_s = observation.measured.last_step_end_s
    if observation.trainer_waiting or last_s is None:
        return 0.0
    return max(0.0, 1.0 - (observation.time_s - last_s) / rates.train_step_s)


def _as_quick_as_measured(model: SplitModel, observation: Observation, now: Split) -> SplitModel:
    """Replicas make at least what they are seen to make by the clock. The lines through their steps say less where work
    comes in bursts, larger batches than the even flow that is reckoned with; then all steps are that much quicker."""
    work = model.work
    tokens_per_s = sum(each.busy_share * (each.tokens_per_s or 0.0) for each in observation.measured.replicas)
    measured = work.kept_share * tokens_per_s / work.tokens_per_group
    if not measured:
        return model
    rates = model.rates(now)
    num_groups = groups_to_generate(
        min(measured, rates.trainer), trainer=rates.trainer, train_step_s=rates.train_step_s, admission=work.admission
    )
    predicted = float(generation_rates(now.rollout, np.array(num_groups), work=work, lines=model.lines))
    if not 0.0 < predicted * (1.0 + _NOISE) < measured:
        return model
    scale = predicted / measured
    lines = {
        name: StepLine(base_s=scale * line.base_s, per_sample_s=scale * line.per_sample_s)
        for name, line in model.lines.items()
    }
    return replace(model, lines=lines)
