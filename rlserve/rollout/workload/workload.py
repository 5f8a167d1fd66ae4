"""The load of a paced run: pure, the same for the same seed whatever else happens.

    length of a sample   median * exp(sigma * (g + s) / sqrt(2)),  g ~ N(0, 1) of its group, s ~ N(0, 1) of its own
    kept                 u < share(step),  u ~ U(0, 1) of the group

Groups whose lengths go together are what is seen of reasoning models: hard prompts have long answers, all of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlserve.engine.requests.request import SamplingParams
from rlserve.errors import UserError
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.workload.config import WorkloadConfig

_GROUP_SHARE = 0.5
"""Of the variance of logarithmic lengths."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Shapes the requests of a run, and decides which of its groups count."""

    config: WorkloadConfig
    seed: int
    num_steps: int
    """Of the whole run."""
    tokens_scale: float
    """Modelled tokens that a token of an answer stands for."""
    lengths: tuple[float, ...] = ()
    """Of the trace, in modelled tokens."""

    def sampling(self, group: PromptGroup, sampling: SamplingParams) -> SamplingParams:
        """How the group is sampled: as ``sampling`` says, but for the lengths where the load decides them."""
        lengths = self._lengths_of(group, sampling.n)
        if not lengths:
            return sampling
        num_tokens = tuple(min(max(1, round(each / self.tokens_scale)), sampling.max_tokens) for each in lengths)
        return replace(sampling, sample_max_tokens=num_tokens, ignore_eos=True, stop=(), stop_token_ids=())

    def held_out(self, sampling: SamplingParams) -> SamplingParams:
        """How held-out prompts are: no answer longer than the median, where the load decides lengths."""
        median = sorted(self.lengths)[len(self.lengths) // 2] if self.lengths else self.config.median_tokens
        if median is None:
            return sampling
        return replace(sampling, max_tokens=min(max(1, round(median / self.tokens_scale)), sampling.max_tokens))

    def keeps(self, group: PromptGroup, step: int) -> bool:
        """Whether the group may be trained on, after so many steps of the run."""
        return self._random(group, "kept").random() < self.kept_share(step)

    def kept_share(self, step: int) -> float:
        """The share of groups that are kept after so many steps of the run."""
        progress = step / self.num_steps
        start, end = self.config.kept_share, self.config.kept_share_end
        if end is None:
            return start
        if self.config.kept_course == "linear":
            return start + (end - start) * min(max(progress, 0.0), 1.0)
        phase = min(int(progress * self.config.num_phases), self.config.num_phases - 1)
        return start if phase % 2 == 0 else end

    def tool_wait_s(self, group: PromptGroup) -> float:
        """Seconds that the answers of a group wait for tools before they are scored."""
        rng = self._random(group, "tool")
        if rng.random() >= self.config.tool_share:
            return 0.0
        return self.config.tool_wait_s * math.exp(self.config.sigma * rng.gauss(0.0, 1.0))

    def _lengths_of(self, group: PromptGroup, num_samples: int) -> Sequence[float]:
        if self.lengths:
            first = group.position * num_samples
            return [self.lengths[(first + index) % len(self.lengths)] for index in range(num_samples)]
        if self.config.median_tokens is None:
            return ()
        rng = self._random(group, "length")
        common = math.sqrt(_GROUP_SHARE) * rng.gauss(0.0, 1.0)
        own = math.sqrt(1 - _GROUP_SHARE)
        return [
            self.config.median_tokens * math.exp(self.config.sigma * (common + own * rng.gauss(0.0, 1.0)))
            for _ in range(num_samples)
        ]

    def _random(self, group: PromptGroup, what: str) -> random.Random:
        return random.Random(f"{self.seed} {group.id} {what}")


def read_trace(path: Path) -> tuple[float, ...]:
    """The lengths in a trace.

    Raises:
        UserError: it cannot be read, is empty, or has a line that is not a number above 0.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"rollout.workload.trace: {path} cannot be read: {error}") from error
    lengths = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text:
            lengths.append(_length(text, path, number))
    if not lengths:
        raise UserError(f"rollout.workload.trace: {path} has no lengths: one number of tokens a line")
    return tuple(lengths)


def _length(text: str, path: Path, number: int) -> float:
    try:
        length = float(text)
    except ValueError:
        length = math.nan
    if not 0 < length < math.inf:
        raise UserError(f"rollout.workload.trace: line {number} of {path} must be a number above 0, got {text[:40]!r}")
    return length
