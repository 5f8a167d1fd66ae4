"""Measure what the controller itself costs: processor time for each million generated tokens, with no worker behind it.

python benchmarks/controller.py [--steps N] [--prompts N] [--samples N] [--tokens N] [--json FILE]

Real are the ledger, router, replicas, both loops, buffer, batches and a tokenizer; workers, trainers and the scorer
answer at once. What would cross a process border is pickled and unpickled on the controller's side as it would be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pickle
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from checks import Check
from machine import circumstances
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from rlserve.controller.answer_stages import AnswerStages
from rlserve.controller.batches.rollouts import RolloutBatches
from rlserve.controller.clock import RunClock
from rlserve.controller.context import Books, RunContext
from rlserve.controller.counters import Counters
from rlserve.controller.events import EventBus, WeightsTaken, WorkerLost
from rlserve.controller.group_copies import GroupCopies, GroupStep
from rlserve.controller.replicas import Replicas
from rlserve.controller.resizes import Resize
from rlserve.controller.rollout_loop import FailureLimits, RolloutLoop
from rlserve.controller.signal import Signal
from rlserve.controller.training_loop import TrainingLoop
from rlserve.controller.turns.at_once import AtOnce
from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SampleOutput, SamplingParams
from rlserve.pool.base import Collected, RolloutStats
from rlserve.rollout.admission import PromptAdmission
from rlserve.rollout.buffer import SampleBuffer
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.ledger import Ledger
from rlserve.rollout.requests.base import RequestId
from rlserve.rollout.requests.router import Router
from rlserve.rollout.requests.training import TrainingRequests
from rlserve.rollout.rewards.base import Score
from rlserve.weights.offer import Receipt

VOCABULARY = 32_000
PROMPT_LENGTH = 64
NUM_REPLICAS = 4
NO_FAILURES = FailureLimits(max_refusal_share=0.0, max_reward_failure_share=0.0, max_environment_failure_share=0.0)
BARS = {"event_loop_s_per_million_tokens": 0.3}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How much is generated."""

    num_steps: int
    prompts_per_step: int
    samples_per_prompt: int
    num_tokens: int
    """Of each answer."""
    max_staleness: int = 1

    @property
    def num_generated(self) -> int:
        """Tokens of all answers."""
        return self.num_steps * self.prompts_per_step * self.samples_per_prompt * self.num_tokens


class Source:
    """Prompts of random tokens."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._position = 0

    def next(self) -> PromptGroup:
        """The next one."""
        position, self._position = self._position, self._position + 1
        return PromptGroup(
            id=f"0:{position}",
            position=position,
            row=position,
            prompt_text="",
            prompt_token_ids=tuple(self._random.integers(0, VOCABULARY, PROMPT_LENGTH).tolist()),
            answer="",
        )


def pickled_samples(shape: Shape, random: np.random.Generator) -> bytes:
    """The samples of one request, as they come out of a worker."""
    length = shape.num_tokens
    samples = tuple(
        SampleOutput(
            index=index,
            tokens=GeneratedTokens(
                token_ids=random.integers(0, VOCABULARY, length, dtype=np.int32),
                log_probs=random.standard_normal(length, dtype=np.float32),
                behaviour_log_probs=random.standard_normal(length, dtype=np.float32),
                weight_versions=np.zeros(length, dtype=np.int64),
            ),
            finish_reason=FinishReason.STOP,
        )
        for index in range(shape.samples_per_prompt)
    )
    return pickle.dumps(samples, protocol=5)


class Worker:
    """A replica that answers as soon as it is asked, with answers made before."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self._answers = answers
        self._requests: list[str] = []
        self._changed = asyncio.Event()
        self._num_steps = 0

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self, f"do_{name}"))

    async def do_start_rollout(self) -> None:
        """Nothing to start."""

    async def do_submit(self, requests: Sequence[Request]) -> None:
        """Take requests, as pickled as they would travel."""
        self._requests += [request.id for request in pickle.loads(pickle.dumps(requests, protocol=5))]
        self._changed.set()

    async def do_collect(self, timeout_s: float) -> Collected:
        """Answer what was taken."""
        while not self._requests and timeout_s:
            self._changed.clear()
            await self._changed.wait()
        taken, self._requests = self._requests, []
        self._num_steps += 1
        return Collected(outputs=tuple(map(self._output, taken)), stats=self._stats(), closed=False)

    def _output(self, request_id: str) -> RequestOutput:
        position = int(RequestId.parse(request_id).name.partition(":")[2])
        return RequestOutput(request_id=request_id, samples=pickle.loads(self._answers[position % len(self._answers)]))

    def _stats(self) -> RolloutStats:
        return RolloutStats(
            weight_version=0,
            num_running=0,
            num_waiting=0,
            kv_cache_usage=0.0,
            num_generated_tokens=0,
            num_preemptions=0,
            prefix_cache_hit_rate=0.0,
            num_steps=self._num_steps,
        )


class Method:
    """A method of a worker, called as Ray's are."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def remote(self, *arguments: Any) -> Any:
        """Call it."""
        return self._function(*arguments)


class Outside:
    """Fleet, weights, trainers and scorer: they do nothing and take no time."""

    num_workers = 1

    def __init__(self, workers: Mapping[str, Worker], events: EventBus) -> None:
        self._workers = workers
        self._events = events
        self._slot_ids: list[str] = []
        self.version = 0
        self.busy_s = self.snapshot_s = self.pause_s = 0.0
        self.members = tuple(workers)

    def __getitem__(self, slot_id: str) -> Worker:
        return self._workers[slot_id]

    async def take(self, _: str) -> Receipt:
        """A replica that begins to serve takes the newest version."""
        return Receipt(version=self.version, fingerprint=0, load_s=0.0)

    async def add(self, slot_id: str, _: Receipt) -> None:
        """It serves."""
        self._slot_ids.append(slot_id)

    def copies(self, version: int) -> GroupCopies:
        """Nothing is copied."""
        return GroupCopies()

    async def publish(self, version: int, _: Sequence[Any]) -> None:
        """The trainers have stepped: all replicas have the new version at once."""
        self.version = version
        for slot_id in self._slot_ids:
            self._events.emit(WeightsTaken(slot_id=slot_id, version=version, duration_s=0.0, pause_s=0.0))

    def metrics(self) -> dict[str, float]:
        """Nothing takes any time."""
        return {}

    def take_resizes(self) -> list[Resize]:
        """The group never changes."""
        return []

    async def step(self, batch: Any, _: GroupCopies) -> GroupStep:
        """One training step: the batch is pickled as it would travel."""
        pickle.dumps(batch, protocol=5)
        return GroupStep(metrics={"training/log_prob_diff_mean": 0.0}, copies=(), duration_s=0.0)

    async def score(self, samples: Sequence[Any]) -> list[Score]:
        """The reward: samples are pickled as they would travel."""
        pickle.dumps(samples, protocol=5)
        return [Score(value=1.0)] * len(samples)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One word for each token."""
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def make_books(shape: Shape) -> Books:
    """The owners of state on the rollout side."""
    ledger = Ledger(prompts_per_step=shape.prompts_per_step, max_staleness=shape.max_staleness)
    return Books(
        ledger=ledger,
        admission=PromptAdmission(ledger, num_groups=shape.num_steps * shape.prompts_per_step),
        buffer=SampleBuffer(ledger, prompts_per_step=shape.prompts_per_step),
        router=Router(),
    )


def make_stages(scorer: Any, tokenizer: PreTrainedTokenizerFast) -> AnswerStages:
    """Decoding and the reward."""
    return AnswerStages(
        decode=lambda token_ids: str(tokenizer.decode(token_ids, skip_special_tokens=True)), scorer=scorer
    )


async def run(shape: Shape, answers: Sequence[bytes], tokenizer: PreTrainedTokenizerFast, folder: Path) -> Ledger:
    """Generate and train until the steps are done; returns the ledger of the prompt groups."""
    events = EventBus()
    outside: Any = Outside({f"r{index}": Worker(answers) for index in range(NUM_REPLICAS)}, events)
    books = make_books(shape)
    source: Any = Source()
    async with asyncio.TaskGroup() as tasks:
        context = RunContext(
            clock=RunClock(started=time.monotonic()),
            counters=Counters(),
            events=events,
            changed=Signal(),
            tasks=tasks,
        )
        context.events.subscribe(WorkerLost, _lost)
        replicas = Replicas(
            context,
            fleet=outside,
            router=books.router,
            weights=outside,
            capacity=4 * shape.samples_per_prompt,
            switch_timeout_s=60.0,
            request_timeout_s=60.0,
        )
        rollouts = RolloutLoop(
            context,
            books,
            source=source,
            requests=TrainingRequests(sampling=SamplingParams(n=shape.samples_per_prompt), run_seed=0),
            replicas=replicas,
            stages=make_stages(outside, tokenizer),
            limits=NO_FAILURES,
        )
        turns = AtOnce()
        training = TrainingLoop(
            context,
            num_steps=shape.num_steps,
            turns=turns,
            trainers=outside,
            weights=outside,
            batches=RolloutBatches(context, num_steps=shape.num_steps, turns=turns, buffer=books.buffer),
            folder=folder,
        )
        for index in range(NUM_REPLICAS):
            await replicas.join(f"r{index}")
        loops = [
            tasks.create_task(rollouts.admit()),
            tasks.create_task(rollouts.score()),
        ]
        stop = asyncio.Event()
        while await training.step(stop) is not None:
            pass
        for loop in loops:
            loop.cancel()
        await replicas.close()
    for owner in (books.ledger, books.router, books.buffer):
        owner.check_integrity()
    return books.ledger


def _lost(event: WorkerLost) -> None:
    raise event.error


def measure(shape: Shape) -> dict[str, float]:
    """Seconds of processor time for each million generated tokens: of the event loop's thread, and of all threads."""
    random = np.random.default_rng(1)
    answers = [pickled_samples(shape, random) for _ in range(64)]
    tokenizer = make_tokenizer()
    with TemporaryDirectory() as folder:
        loop_start, all_start = time.thread_time(), time.process_time()
        asyncio.run(run(shape, answers, tokenizer, Path(folder)))
        loop_s, all_s = time.thread_time() - loop_start, time.process_time() - all_start
    millions = shape.num_generated / 1e6
    return {
        "event_loop_s_per_million_tokens": loop_s / millions,
        "all_threads_s_per_million_tokens": all_s / millions,
    }


def checks_of(results: Mapping[str, float]) -> Iterable[Check]:
    """The numbers that have a bar."""
    for name, bar in BARS.items():
        yield Check(name=name, value=results[name], bar=bar, at_least=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line, and write the JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks/controller.py", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=16, help="prompt groups of a step")
    parser.add_argument("--samples", type=int, default=8, help="samples of a prompt")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of an answer")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    shape = Shape(
        num_steps=options.steps,
        prompts_per_step=options.prompts,
        samples_per_prompt=options.samples,
        num_tokens=options.tokens,
    )
    results = measure(shape)
    for name, value in results.items():
        sys.stdout.write(f"{name.replace('_', ' ')}: {value:.3f}\n")
    if options.json:
        checks = [check.line() for check in checks_of(results)]
        content = {**circumstances(), "shape": asdict(shape), "results": results, "checks": checks}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
