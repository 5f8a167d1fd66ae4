"""TRL's GRPOTrainer, one step after another: ``train`` runs all the time, and waits for its turn at each step's end.

Its loss is that of ours (``loss_type="grpo"``, advantages by the group's deviation, no reference), with one update a
step. It generates by transformers' ``generate``, all answers of a step at once: on CPUs that is quicker than its
continuous batching (see ``hf`` and ``hf_batch`` in ``benchmarks/engine.py``), and vLLM is no part of it there unless a
second engine is installed beside it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from trainer_parts.base import Assignment, Case, Outcome, Peer, Turns
from trainer_parts.data import Answer, answer_lengths, reward_of, training_records
from trainer_parts.trl_common import (
    UpdateCount,
    common_arguments,
    force_lengths,
    load_policy,
    load_tokenizer,
    versions,
)

ENDLESS = 10**6
"""Steps of a training that ends when there are no turns any more."""
MICRO_BATCH_TOKENS = 2**17
"""Padded tokens that go through the policy at once, at most."""


def micro_batch_of(case: Case) -> int:
    """Answers at once: as many as fit, by halves of the step's."""
    size, longest = case.num_answers, case.longest_answer + 8
    while size % 2 == 0 and size * longest > MICRO_BATCH_TOKENS:
        size //= 2
    return size


class CountingReward(Protocol):
    """Has counted the answers that it was shown, and their tokens."""

    num_answers: int
    num_tokens: int


class TaskReward:
    """The task's reward as TRL calls it, which counts what it sees."""

    def __init__(self, case: Case, eos_token_id: int) -> None:
        self.__name__ = f"{case.task}_reward"
        self._reward = reward_of(case)
        self._eos_token_id = eos_token_id
        self.num_answers = self.num_tokens = 0
        self.total = 0.0

    def __call__(
        self,
        *,
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        answer: list[str],
        **others: Any,
    ) -> list[float]:
        rewards = [
            self._reward(
                Answer(
                    id=str(index),
                    prompt=prompt,
                    response=completion,
                    answer=right,
                    finished=token_ids[-1] == self._eos_token_id,
                )
            )
            for index, (prompt, completion, token_ids, right) in enumerate(
                zip(prompts, completions, completion_ids, answer, strict=True)
            )
        ]
        self.num_answers += len(rewards)
        self.num_tokens += sum(map(len, completion_ids))
        self.total += sum(rewards)
        return rewards


def create_trainer(
    assignment: Assignment, policy: Any, tokenizer: Any, reward: Callable[..., list[float]], callback: TrainerCallback
) -> GRPOTrainer:
    """For the prompts in the order of the file, as ours takes them."""
    case = assignment.case
    records = training_records(assignment)
    arguments = GRPOConfig(
        **common_arguments(assignment, micro_batch=micro_batch_of(case)),
        max_steps=ENDLESS,
        num_generations=case.num_samples,
        max_completion_length=case.longest_answer,
        shuffle_dataset=False,
        temperature=1.0,
        beta=0.0,
        loss_type="grpo",
        scale_rewards="group",
        epsilon=0.2,
        num_iterations=1,
    )
    data = {"prompt": [record.prompt for record in records], "answer": [record.answer for record in records]}
    return GRPOTrainer(
        model=policy,
        reward_funcs=[reward],
        args=arguments,
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
        callbacks=[callback],
    )


class NoMoreTurnsError(Exception):
    """Ends a training whose loop does not ask whether it should."""


class TurnTaking(TrainerCallback):
    """Waits for a turn before its steps, and answers after them."""

    def __init__(
        self, case: Case, turns: Turns, expect: Callable[[list[int]], None], count: Callable[[], dict[str, int]]
    ):
        """``expect`` is told the lengths of each step; ``count`` gives all that was done so far."""
        self._case = case
        self._turns = turns
        self._expect = expect
        self._count = count
        self._rest = self._num_steps = self._step = 0
        self._begin: dict[str, int] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._take_turn()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._rest -= 1
        self._step += 1
        if self._rest:
            self._expect(answer_lengths(self._case, self._step))
            return
        work = {name: number - self._begin[name] for name, number in self._count().items()}
        self._turns.answer(Outcome(value=self._turns.elapsed_s / self._num_steps, work=work))
        self._take_turn()

    def _take_turn(self) -> None:
        turn = self._turns.next()
        if turn is None:
            raise NoMoreTurnsError
        assert turn.first_step == self._step, "steps follow each other"
        self._rest = self._num_steps = turn.num_steps
        self._begin = self._count()
        self._expect(answer_lengths(self._case, self._step))


class TrlSteps(Peer):
    """Seconds of a step of one of TRL's trainers, from the end of the one before."""

    def __init__(self, assignment: Assignment) -> None:
        super().__init__(assignment)
        self._updates = UpdateCount()
        self._policy, self._tokenizer = load_policy(assignment), load_tokenizer(assignment)
        self._reward = self._create_reward()

    @abstractmethod
    def _create_reward(self) -> CountingReward:
        """What the trainer asks for rewards."""

    @abstractmethod
    def _create_trainer(self, callback: TurnTaking) -> Any:
        """With the policy, the tokenizer and the reward, and a ``train`` that never ends by itself."""

    def serve(self, turns: Turns) -> None:
        lengths = force_lengths(self._policy, self._tokenizer)
        trainer = self._create_trainer(TurnTaking(self.case, turns, lengths.expect, self._count))
        with suppress(NoMoreTurnsError):
            trainer.train()

    def versions(self) -> dict[str, str]:
        return versions()

    def settings(self) -> dict[str, str]:
        return {
            "answers in a micro-batch": str(micro_batch_of(self.case)),
            "generation": f"transformers, {self.case.num_answers} answers at once",
            "AdamW": "fused",
        }

    def _count(self) -> dict[str, int]:
        return {
            "answers": self._reward.num_answers,
            "answer tokens": self._reward.num_tokens,
            "updates": self._updates.num,
        }


class TrlGrpo(TrlSteps):
    """GRPO."""

    def _create_reward(self) -> TaskReward:
        return TaskReward(self.case, self._tokenizer.eos_token_id)

    def _create_trainer(self, callback: TurnTaking) -> GRPOTrainer:
        return create_trainer(self.assignment, self._policy, self._tokenizer, self._reward, callback)
