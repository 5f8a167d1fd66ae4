"""Trying a reward before a run starts, in a process of its own: a hang or a crash is found there too."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rlserve.errors import RewardError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import RewardSample, Score
from rlserve.rollout.rewards.process import RewardProcess

logger = logging.getLogger(__name__)

_HOW = "tried before the run, with the reference answer as the response"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How scoring one sample went."""

    score: Score
    duration_s: float
    at_once: bool
    """Whether the answers to a prompt are scored side by side."""


class RewardProbe:
    """A process that has the reward, as long as the context lasts."""

    def __init__(self, config: RewardConfig, log_path: Path | None) -> None:
        """What the reward prints goes to ``log_path``; None shows it only where the process ends."""
        assert not config.has_model, "models are not tried: one is as good as its files"
        self._config = config
        self._name = config.function or config.title
        self._folder = tempfile.TemporaryDirectory(prefix="rlserve-probe-")
        self._process = RewardProcess(config, log_path or Path(self._folder.name) / "reward.log")

    def __enter__(self) -> RewardProbe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.close()
        self._folder.cleanup()

    def load(self) -> None:
        """Make the reward.

        Raises:
            RewardError: it cannot be found or loaded, or loading it hangs or ends the process.
        """
        self._process.load()

    def try_on(self, samples: Sequence[RewardSample], *, samples_per_prompt: int) -> Score | None:
        """Score the samples one by one until one of them can be scored; returns its score, None without samples.

        A reward that fails on some is only reported: rows differ, and a run stands a share of failures.

        Raises:
            RewardError: it fails on all of them, hangs past ``reward.timeout_s`` or ends the process.
        """
        errors: list[str] = []
        for sample in samples:
            trial = self._try(sample)
            if trial.score.error is None:
                if errors:
                    logger.warning("%s (%s; on prompt %s it did not fail)", errors[0], _HOW, sample.id)
                self._compare_with_deadline(trial, sample, samples_per_prompt)
                return trial.score
            errors.append(trial.score.error)
        if errors:
            others = f", and on {len(errors) - 1} other held-out prompts" if len(errors) > 1 else ""
            raise RewardError(f"{errors[0]} ({_HOW}{others})")
        return None

    def _try(self, sample: RewardSample) -> Trial:
        scored = self._process.score([sample], f"reward {self._name} ({_HOW}) on prompt {sample.id}:")
        (score,) = scored.scores
        return Trial(score=score, duration_s=scored.duration_s, at_once=scored.at_once)

    def _compare_with_deadline(self, trial: Trial, sample: RewardSample, samples_per_prompt: int) -> None:
        """Say early that a group cannot be scored in time. The first call may be slow for reasons of its own."""
        deadline_s = self._config.timeout_s
        if trial.at_once or trial.duration_s * samples_per_prompt <= deadline_s:
            return
        again_s = self._try(sample).duration_s
        if again_s * samples_per_prompt > deadline_s:
            logger.warning(
                "reward %s took %.2g s for one answer: the %d answers to a prompt would take %.3g s, more than "
                "reward.timeout_s=%g; make the function async, or raise reward.timeout_s",
                self._name,
                again_s,
                samples_per_prompt,
                again_s * samples_per_prompt,
                deadline_s,
            )
