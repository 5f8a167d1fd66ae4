"""A training step of ours, from prompts to new weights in the engine: engine, reward, trainer and weights as a slot has
them that rolls out and trains in turn, in one process. What a launched run has beside them, its controller and Ray,
is not in it; a launched run also generates for the next step while it trains."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import AutoTokenizer

from rlserve.engine import Engine, EngineConfig, Request, RequestOutput, SamplingParams
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.rollout.answer_text import AnswerText
from rlserve.rollout.batch import build_batch
from rlserve.rollout.groups import PromptGroup, ScoredGroup
from rlserve.rollout.requests.training import sampling_seed
from rlserve.tasks.base import Record
from rlserve.trainers import AlgorithmConfig, GRPOConfig, PPOConfig, TorchTrainerConfig, Trainer, create_trainer
from trainer_parts.base import PHASES, Assignment
from trainer_parts.data import Answer, answer_lengths, held_out_records, records_of_step, reward_of, training_records

GENERATION, REWARD, LOG_PROBS, UPDATE, SYNC = PHASES
ADAM_BETA2 = 0.95
MAX_GRAD_NORM = 1.0
KL_COEFFICIENT = 0.05
"""Of PPO, where TRL always has a frozen reference."""
VALUE_COEFFICIENT = 0.5
SEED = 0


@dataclass(kw_only=True)
class StepRecord:
    """What one step did."""

    num_answers: int = 0
    num_tokens: int = 0
    """Of the answers."""
    mean_reward: float = 0.0
    phases_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time inside for a phase."""
        start = time.perf_counter()
        yield
        self.phases_s[phase] += time.perf_counter() - start


def algorithm_of(assignment: Assignment) -> AlgorithmConfig:
    """One update a step. PPO has a critic and a reference, GRPO neither."""
    if assignment.case.algorithm == "grpo":
        return GRPOConfig()
    return PPOConfig(kl_coefficient=KL_COEFFICIENT, value_coefficient=VALUE_COEFFICIENT, bound_whitening=False)


def trainer_of(assignment: Assignment, algorithm: AlgorithmConfig) -> Trainer:
    """Everything that no peer has an opposite of is as rlserve has it by itself."""
    case = assignment.case
    config = TorchTrainerConfig(
        dtype=case.dtype,
        learning_rate=case.learning_rate,
        critic_learning_rate=case.learning_rate,
        adam_beta2=ADAM_BETA2,
        max_grad_norm=MAX_GRAD_NORM,
    )
    return create_trainer(config, algorithm, model_path=assignment.model_folder, seed=SEED, device="cpu")


class Training:
    """Steps that follow each other."""

    def __init__(self, assignment: Assignment) -> None:
        case = self._case = assignment.case
        self._records = training_records(assignment)
        self._held_out = held_out_records(assignment)
        self._reward = reward_of(case)
        self._tokenizer = AutoTokenizer.from_pretrained(assignment.model_folder)
        self._text = AnswerText(self._tokenizer, end_token_ids=(), skip_special_tokens=True)
        self._engine = Engine(
            assignment.model_folder,
            EngineConfig(device="cpu", dtype="float32", max_num_sequences=max(case.num_answers, case.num_held_out)),
        )
        self._trainer = trainer_of(assignment, algorithm_of(assignment))
        self._record = StepRecord()
        self._time_scores()

    def step(self, number: int) -> StepRecord:
        """Answer the step's prompts, score the answers, update, and load the new weights."""
        record = self._record = StepRecord()
        groups = self._groups(number)
        lengths = answer_lengths(self._case, number) if self._case.answer_tokens is not None else []
        with record.timed(GENERATION):
            outputs = self._generate([self._request(group, lengths) for group in groups])
        with record.timed(REWARD):
            scored = [self._scored(group, outputs[group.id]) for group in groups]
        batch = build_batch(scored)
        with record.timed(UPDATE):
            self._trainer.step(batch)
        record.phases_s[UPDATE] -= record.phases_s[LOG_PROBS]
        with record.timed(SYNC):
            self._load_weights()
        record.num_answers, record.num_tokens = batch.num_samples, batch.num_response_tokens
        record.mean_reward = float(batch.rewards.mean())
        return record

    @property
    def num_updates(self) -> int:
        """So far: one a step."""
        return self._trainer.num_steps

    def score(self) -> float:
        """The share of held-out prompts that the likeliest tokens answer right."""
        sampling = SamplingParams(temperature=0.0, max_tokens=self._case.longest_answer)
        groups = self._groups_of(self._held_out, "held-out")
        outputs = self._generate(
            [Request(id=group.id, prompt_token_ids=group.prompt_token_ids, sampling=sampling) for group in groups]
        )
        rewards = [reward for group in groups for reward in self._scored(group, outputs[group.id]).rewards]
        return sum(reward >= 1 for reward in rewards) / len(rewards)

    def _groups(self, number: int) -> list[PromptGroup]:
        return self._groups_of(records_of_step(self._records, self._case, number), str(number))

    def _groups_of(self, records: Sequence[Record], name: str) -> list[PromptGroup]:
        token_ids = self._tokenizer([record.prompt for record in records])["input_ids"]
        return [
            PromptGroup(
                id=f"{name}:{row}",
                position=row,
                row=row,
                prompt_text=record.prompt,
                prompt_token_ids=tuple(prompt),
                answer=record.answer,
            )
            for row, (record, prompt) in enumerate(zip(records, token_ids, strict=True))
        ]

    def _request(self, group: PromptGroup, lengths: Sequence[int]) -> Request:
        """``lengths`` are of all answers of the step, if they are not the model's to decide."""
        case, first = self._case, group.row * self._case.num_samples
        lengths = lengths[first : first + case.num_samples]
        sampling = SamplingParams(
            n=case.num_samples,
            max_tokens=max(lengths, default=case.max_tokens),
            sample_max_tokens=tuple(lengths),
            ignore_eos=case.answer_tokens is not None,
            seed=sampling_seed(SEED, group.id),
        )
        return Request(id=group.id, prompt_token_ids=group.prompt_token_ids, sampling=sampling)

    def _generate(self, requests: Sequence[Request]) -> dict[str, RequestOutput]:
        for request in requests:
            self._engine.add(request)
        outputs: dict[str, RequestOutput] = {}
        while self._engine.has_work:
            for output in self._engine.step():
                assert output.error is None, output.error
                outputs[output.request_id] = output
        return outputs

    def _scored(self, group: PromptGroup, output: RequestOutput) -> ScoredGroup:
        answers = [
            Answer(
                id=f"{group.id}/{sample.index}",
                prompt=group.prompt_text,
                response=self._text(sample.tokens.token_ids),
                answer=str(group.answer),
                finished=sample.finish_reason == "stop",
            )
            for sample in output.samples
        ]
        return ScoredGroup(group=group, output=output, rewards=tuple(map(self._reward, answers)), attempt=0)

    def _load_weights(self) -> None:
        """As engines take those of a trainer beside them, with a proof that what is loaded is what was trained."""
        weights = self._trainer.weights()
        trained = fingerprint(weights.items())
        self._engine.load_weights(self._trainer.num_steps, weights)
        assert fingerprint(self._engine.named_weights()) == trained, "the engine has other weights than the trainer"

    def _time_scores(self) -> None:
        """Count the passes before the update, of the policy, the reference and the critic, as a phase of their own."""
        backend = self._trainer._backend  # type: ignore[attr-defined]  # a trainer does not tell how long its parts take
        score = backend.score

        def timed(*arguments: object, **options: object) -> object:
            with self._record.timed(LOG_PROBS):
                return score(*arguments, **options)

        backend.score = timed


def versions() -> dict[str, str]:
    """Of what computes."""
    import transformers

    import rlserve

    return {"rlserve": rlserve.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
