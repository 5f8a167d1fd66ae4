"""Saying aloud that a run learns nothing: what the last metrics prove, and what to do about it.

Only what is certain is said, each kind once. Everything looked at is a metric of ``rlserve.tracking.names``.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlserve.tracking import names
from rlserve.tracking.base import Sink
from rlserve.tracking.paced import is_paced

logger = logging.getLogger(__name__)

NUM_STEPS = 3
"""Steps in a row that must show the same."""
CLEARLY_NEGATIVE_KL = -1e-3
"""Nats per token. The one-sample estimate scatters by far less over a batch of thousands of tokens."""

StepMetrics = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class AdviceContext:
    """What the advice depends on besides the metrics."""

    run_name: str = ""
    max_tokens: int | None = None
    is_restricted: bool = False
    """Answers are drawn with top-k or top-p."""
    is_paced: bool = False
    """How long answers are is part of the load."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Something that is wrong, with the remedy."""

    kind: str
    message: str


def advise(steps: Sequence[StepMetrics], context: AdviceContext) -> tuple[Advice, ...]:
    """What the metrics of the last ``NUM_STEPS`` steps, the oldest first, prove; nothing while there are fewer."""
    if len(steps) < NUM_STEPS:
        return ()
    last = list(steps)[-NUM_STEPS:]
    found = []
    if not context.is_paced and _all(last, names.CLIP_RATIO, lambda value: value == 1):
        found.append(Advice(kind="all answers cut", message=_all_cut(last, context)))
    if _all(last, names.FRAC_REWARD_ZERO_STD, lambda value: value == 1):
        found.append(Advice(kind="equal rewards", message=_equal_rewards(last, context)))
    elif _all(last, names.POLICY_GRAD_NORM, lambda value: value == 0):
        found.append(Advice(kind="no gradient", message=_no_gradient(last)))
    if context.is_restricted and _all(last, names.KL, lambda value: value < CLEARLY_NEGATIVE_KL):
        found.append(Advice(kind="negative KL", message=_negative_kl(last)))
    return tuple(found)


class AdviceSink(Sink):
    """Warns in the log, once a kind."""

    name = "advice"

    def __init__(self, context: AdviceContext) -> None:
        self._context = context
        self._steps: deque[StepMetrics] = deque(maxlen=NUM_STEPS)
        self._said: set[str] = set()

    def log(self, step: int, metrics: StepMetrics) -> None:
        if names.REWARD not in metrics:  # a held-out score alone
            return
        self._steps.append({"step": step, **metrics})
        for advice in advise(self._steps, self._context):
            if advice.kind not in self._said:
                self._said.add(advice.kind)
                logger.warning("%s", advice.message)

    def close(self, exit_code: int) -> None:
        return


def read_context(run_name: str, run_config: Mapping[str, object]) -> AdviceContext:
    """From the resolved configuration as plain data."""
    rollout = run_config.get("rollout")
    if not isinstance(rollout, Mapping):
        return AdviceContext(run_name=run_name)
    return AdviceContext(
        run_name=run_name,
        max_tokens=rollout["max_tokens"],
        is_restricted=rollout["top_k"] > 0 or rollout["top_p"] < 1,
        is_paced=is_paced(run_config),
    )


def _all(steps: Sequence[StepMetrics], name: str, holds: Callable[[float], bool]) -> bool:
    return all(name in metrics and holds(metrics[name]) for metrics in steps)


def _all_cut(steps: Sequence[StepMetrics], context: AdviceContext) -> str:
    return (
        f"{_span(steps)}: every answer was cut at rollout.max_tokens={context.max_tokens}, none came to its end. "
        f"Raise it. If the answers are complete and run on ({_show(steps, context)}), the model does not write the "
        "end-of-text token that the engine stops at: compare eos_token_id in the model's generation_config.json with "
        "the tokenizer's, or name what ends an answer in rollout.stop."
    )


def _equal_rewards(steps: Sequence[StepMetrics], context: AdviceContext) -> str:
    low = min(metrics.get("critic/score/min", 0.0) for metrics in steps)
    high = max(metrics.get("critic/score/max", 1.0) for metrics in steps)
    if low == high:
        what = f"every answer had the reward {low:g}"
    else:
        what = f"all answers to a prompt had the same reward, in every group ({names.FRAC_REWARD_ZERO_STD} = 1)"
    return (
        f"{_span(steps)}: {what}, so no answer is preferred to another. Read some: {_show(steps, context)}. Either the "
        "reward does not understand what the model writes, or the prompts are all too hard or all too easy for it; "
        "a higher rollout.temperature or more rollout.samples_per_prompt makes the answers differ more."
    )


def _no_gradient(steps: Sequence[StepMetrics]) -> str:
    return (
        f"{_span(steps)}: the gradient of the policy was 0 ({names.POLICY_GRAD_NORM}), so nothing is learned. Are the "
        "advantages all 0 (critic/advantages), or is every token clipped (actor/pg_clipfrac)?"
    )


def _negative_kl(steps: Sequence[StepMetrics]) -> str:
    return (
        f"{_span(steps)}: {names.KL} was below {CLEARLY_NEGATIVE_KL:g}, which no KL divergence is: answers are drawn "
        "with rollout.top_k or rollout.top_p, and the one-sample estimate holds only for draws from the whole "
        f"distribution. Read {names.KL_K3} instead; for a KL penalty, set rollout.top_k=0 and rollout.top_p=1."
    )


def _span(steps: Sequence[StepMetrics]) -> str:
    return f"steps {steps[0]['step']:g} to {steps[-1]['step']:g}"


def _show(steps: Sequence[StepMetrics], context: AdviceContext) -> str:
    return f"rlserve show {context.run_name} --step {steps[-1]['step']:g}"
