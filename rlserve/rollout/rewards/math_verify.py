"""The reward ``builtin:math_verify``: 1 where an answer equals the reference as mathematics, else 0.

math-verify's own deadlines are alarm signals, and a power with a million digits is computed without looking at signals.
So answers are compared in a process of its own, which is ended when the time is over:

::

    MathVerifyReward ──sample──► RewardProcess: compare ──► score
            └── no score in time ──► ended, a new one is started; the answer is worth 0
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rlserve.errors import RewardError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import Reward, RewardSample, Score
from rlserve.rollout.rewards.config import MATH_VERIFY, MathVerifyRewardConfig
from rlserve.rollout.rewards.math_comparison import ANSWER_FOUND, REFERENCE_FOUND

if TYPE_CHECKING:
    from rlserve.rollout.rewards.process import RewardProcess

_COMPARE = "rlserve.rollout.rewards.math_comparison:compare"
_TIMED_OUT = "timed_out"


class MathVerifyReward(Reward):
    """Compares one answer after the other."""

    def __init__(self, config: MathVerifyRewardConfig) -> None:
        """
        Raises:
            RewardError: math-verify is not installed, or cannot be loaded.
        """
        if find_spec("math_verify") is None:
            raise RewardError(f"reward.function={MATH_VERIFY} needs math-verify: pip install 'rlserve[math]'")
        self._config = RewardConfig(function=_COMPARE, timeout_s=config.timeout_s)
        self._process = self._start()

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        """1 or 0, with parts ``answer_found`` and ``timed_out``; an error where the reference is no mathematics."""
        return [self._score(sample) for sample in samples]

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def _score(self, sample: RewardSample) -> Score:
        name = f"reward {MATH_VERIFY} on prompt {sample.id}"
        if not isinstance(sample.answer, str):
            return Score(error=f"{name}: the reference answer must be text, but is {sample.answer!r:.80}")
        try:
            (score,) = self._process.score([sample], name).scores
        except RewardError:
            # An answer that cannot be compared is a wrong one, whether it took too long or all memory.
            self._process.close()
            self._process = self._start()
            return Score(value=0.0, parts={_TIMED_OUT: 1.0})
        if score.error is not None:
            return Score(error=f"{name}: {score.error}")
        if not score.parts[REFERENCE_FOUND]:
            return Score(error=f"{name}: the reference answer cannot be read as mathematics: {sample.answer!r:.80}")
        return Score(value=score.value, parts={ANSWER_FOUND: score.parts[ANSWER_FOUND], _TIMED_OUT: 0.0})

    def _start(self) -> RewardProcess:
        from rlserve.rollout.rewards.process import RewardProcess  # it makes rewards, this one among them

        process = RewardProcess(self._config, None, name="math_verify")
        try:
            process.load()
        except RewardError:
            process.close()
            raise
        return process
