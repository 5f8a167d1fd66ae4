"""The load of a run, paced or simulated: pure, the same for the same seed whatever else happens.

    kept     u < share(progress),  u ~ U(0, 1) of the group

What a group is like follows from its position in the data, so a paced and a simulated run of one configuration have the
same work.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from rlserve.engine.requests.request import SamplingParams
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.workload.courses import Course, Steady
from rlserve.rollout.workload.lengths import Lengths
from rlserve.rollout.workload.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Shapes the requests of a run, and decides which of its groups count. Points of a run are its progress, 0 to 1."""

    lengths: Lengths | None = None
    """None: the model decides."""
    kept: Course = field(default_factory=lambda: Steady(1.0))
    """Share of the groups that may be trained on."""
    says_kept: Trace | None = None
    """A trace that says it of every group, in place of that."""
    tool_share: float = 0.0
    """Share of the groups whose answers wait for a tool."""
    tool_wait_s: float = 10.0
    """Median of that wait."""
    tool_sigma: float = 1.0
    """Of its logarithm."""
    seed: int = 0
    num_steps: int = 1
    """Of the whole run."""
    tokens_scale: float = 1.0
    """Modelled tokens that a token of an answer stands for."""

    def sampling(self, group: PromptGroup, sampling: SamplingParams) -> SamplingParams:
        """How the group is sampled: as ``sampling`` says, but for the lengths where the load decides them."""
        if self.lengths is None:
            return sampling
        num_tokens = self.num_tokens(group.position, sampling.n, max_tokens=sampling.max_tokens)
        return replace(sampling, sample_max_tokens=tuple(num_tokens), ignore_eos=True, stop=(), stop_token_ids=())

    def held_out(self, sampling: SamplingParams) -> SamplingParams:
        """How held-out prompts are: no answer longer than the median, where the load decides lengths."""
        if self.lengths is None:
            return sampling
        median = max(1, round(self.lengths.median() / self.tokens_scale))
        return replace(sampling, max_tokens=min(median, sampling.max_tokens))

    def num_tokens(self, position: int, num_samples: int, *, max_tokens: int, progress: float = 0.0) -> Sequence[int]:
        """Tokens of each answer of the group at ``position``."""
        assert self.lengths is not None, "the model decides the lengths"
        lengths = self.lengths.of(position, num_samples, seed=self.seed, progress=progress)
        return [min(max(1, round(each / self.tokens_scale)), max_tokens) for each in lengths]

    def mean_num_tokens(self, progress: float, *, max_tokens: int) -> float:
        """Of an answer."""
        assert self.lengths is not None, "the model decides the lengths"
        return max(1.0, self.lengths.mean(progress, cap=max_tokens * self.tokens_scale) / self.tokens_scale)

    def progress(self, num_steps: int) -> float:
        """The point of the run at which so many steps are done."""
        return num_steps / self.num_steps

    def keeps(self, position: int, progress: float) -> bool:
        """Whether the group at ``position``, scored at this point of the run, may be trained on."""
        if self.says_kept is not None:
            return self.says_kept.keeps(position, seed=self.seed)
        share = self.kept.at(progress)
        return share >= 1 or self._random(position, "kept").random() < share

    def kept_share(self, progress: float) -> float:
        """The share of groups that are kept, in the mean."""
        return self.kept.at(progress) if self.says_kept is None else fmean(self.says_kept.kept)

    def group_tool_wait_s(self, position: int) -> float:
        """Seconds that the answers of a group wait for tools before they are scored."""
        if not self.tool_share:
            return 0.0
        rng = self._random(position, "tool")
        if rng.random() >= self.tool_share:
            return 0.0
        return self.tool_wait_s * math.exp(self.tool_sigma * rng.gauss(0.0, 1.0))

    def seeded(self, seed: int) -> Workload:
        """The same with other random numbers."""
        return replace(self, seed=seed)

    def _random(self, position: int, what: str) -> random.Random:
        return random.Random(f"{self.seed} {position} {what}")
