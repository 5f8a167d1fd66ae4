"""Training steps of ours."""

from __future__ import annotations

from statistics import fmean

from trainer_parts.base import PHASES, Assignment, Outcome, Turn, TurnByTurn, Turns
from trainer_parts.rlserve_training import Training, versions


class RlserveStep(TurnByTurn):
    """Seconds of a step, and of its phases."""

    def __init__(self, assignment: Assignment) -> None:
        super().__init__(assignment)
        self._training = Training(assignment)

    def do(self, turn: Turn, turns: Turns) -> Outcome:
        before = self._training.num_updates
        records = [self._training.step(turn.first_step + index) for index in range(turn.num_steps)]
        return Outcome(
            value=turns.elapsed_s / turn.num_steps,
            work={
                "answers": sum(record.num_answers for record in records),
                "answer tokens": sum(record.num_tokens for record in records),
                "updates": self._training.num_updates - before,
            },
            phases_s={phase: fmean(record.phases_s[phase] for record in records) for phase in PHASES},
            remarks={"mean reward": fmean(record.mean_reward for record in records)},
        )

    def versions(self) -> dict[str, str]:
        return versions()

    def settings(self) -> dict[str, str]:
        return {"logical shards": "12 at most", "tokens in a pass": "16384", "generation": "engine, float32"}
