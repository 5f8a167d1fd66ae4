"""A training of ours until it reaches a score."""

from __future__ import annotations

import time
from statistics import fmean

from trainer_parts.base import PHASES, Outcome, Turn, TurnByTurn, Turns
from trainer_parts.rlserve_training import StepRecord, Training, versions


class RlserveScore(TurnByTurn):
    """Seconds of all steps until the score is reached. Neither loading nor scoring is in them."""

    def do(self, turn: Turn, turns: Turns) -> Outcome:
        case, training = self.case, Training(self.assignment)
        num_steps = case.steps_per_evaluation if turn.index == 0 else case.max_steps
        records: list[StepRecord] = []
        training_s = score = 0.0
        for number in range(num_steps):
            start_s = time.perf_counter()
            records.append(training.step(number))
            training_s += time.perf_counter() - start_s
            if (number + 1) % case.steps_per_evaluation == 0:
                score = training.score()
                if score >= case.target_score:
                    break
        if turn.index and score < case.target_score:
            raise RuntimeError(f"scored {score:.3f} after {num_steps} steps")
        return Outcome(
            value=training_s,
            phases_s={phase: fmean(record.phases_s[phase] for record in records) for phase in PHASES},
            remarks={"steps": len(records), "score": score, "s a step": training_s / len(records)},
        )

    def versions(self) -> dict[str, str]:
        return versions()

    def settings(self) -> dict[str, str]:
        return {"steps between scores": str(self.case.steps_per_evaluation)}
