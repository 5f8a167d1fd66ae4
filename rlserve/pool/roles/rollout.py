"""The rollout role of a worker: an engine in a loop of its own (``engine/loop/``), whole answers by long poll.

Requests of clients are followed token by token, by a long poll of its own: whole answers cost what they would without.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlserve.engine import Engine, EngineLoop, Request, RequestOutput
from rlserve.engine.decoder.staging import StagedWeights
from rlserve.engine.stats.metrics import vllm_metrics
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import UserError, WeightsRefusedError, WorkerFailedError
from rlserve.pool.base import Collected, MemoryChange, Profiled, RolloutStats, Streamed
from rlserve.pool.pacing.base import Pace
from rlserve.pool.roles.memory import used_bytes
from rlserve.weights.canary import CanaryPrompts, CanaryScores
from rlserve.weights.contents.base import Contents
from rlserve.weights.offer import FINGERPRINT_MASK, Offer, Receipt
from rlserve.weights.receiver import Receiver

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class _StagedVersion:
    """Weights beside the running model, and how their fingerprint becomes the one that was published."""

    weights: StagedWeights
    shift: int

    def published(self, of_model: int) -> int:
        """The version's fingerprint, if that of the model is what it must be."""
        return of_model + self.shift & FINGERPRINT_MASK

    @property
    def fingerprint(self) -> int:
        """Of the version, as it is staged."""
        return self.published(self.weights.fingerprint)


class RolloutRole:
    """Serves requests with one engine until it is stopped.

    The engine outlives the role: a worker that returns to rollout makes a new one on the same, warm engine.
    The first version of the weights must be loaded before the first request. All methods raise ``WorkerFailedError``
    once the engine has failed, and all but :meth:`collect` once the role is being given up.
    """

    def __init__(self, engine: Engine, receiver: Receiver, contents: Contents, pace: Pace, device: str) -> None:
        self._engine = engine
        self._contents = contents
        self._receiver = receiver
        self._pace = pace
        self._device = device
        self._loop = EngineLoop(engine, clock=pace.now_s, pace=pace.engine_steps())
        self._answers = self._loop.subscribe_answers()
        self._streams = self._loop.subscribe_deltas()

    @property
    def is_computing(self) -> bool:
        """Whether its engine is in the middle of a step. Waits for nothing."""
        return self._loop.is_computing

    @property
    def weight_version(self) -> int:
        """Of the weights that are loaded, -1 before any. Waits for nothing."""
        return self._loop.stats.engine.weight_version

    def take_weights(self, offers: Sequence[Offer], cargo: Sequence[Any]) -> Receipt:
        """Bring the last version that is offered into memory beside the running model and prove it, and swap it in
        between two steps."""
        with self._pace.receiving():
            staged = self._receiver.receive(offers, cargo, self._stage)
        return self._swap(lambda engine: staged.published(engine.swap_weights(offers[-1].version, staged.weights)))

    def copy_in(self, version: int, tensors: Mapping[str, torch.Tensor]) -> Receipt:
        """Copy weights of this process in between two steps, and prove what is loaded: no second set of them is
        needed, except to merge adapters."""
        whole = self._contents.whole(tensors)
        shift = self._contents.shift(tensors, whole)

        def copy(engine: Engine) -> int:
            engine.load_weights(version, whole)
            return fingerprint(engine.named_weights()) + shift & FINGERPRINT_MASK

        return self._swap(copy)

    def _stage(self, tensors: Mapping[str, torch.Tensor]) -> _StagedVersion:
        whole = self._contents.whole(tensors)
        shift = self._contents.shift(tensors, whole)
        return _StagedVersion(weights=self._engine.stage_weights(whole), shift=shift)

    def _swap(self, swap: Callable[[Engine], int]) -> Receipt:
        def timed(engine: Engine) -> Receipt:
            start = self._pace.now_s()
            loaded = swap(engine)
            return Receipt(version=engine.weight_version, fingerprint=loaded, load_s=self._pace.now_s() - start)

        return self._loop.run(timed)

    def score_canary(self, prompts: CanaryPrompts, version: int) -> CanaryScores:
        """What the engine makes of the canary, between two steps.

        Raises:
            WeightsRefusedError: it has another version.
        """

        def score(engine: Engine) -> CanaryScores:
            if engine.weight_version != version:
                raise WeightsRefusedError(
                    f"the engine has version {engine.weight_version} of the weights, asked for was {version}"
                )
            return engine.score(prompts)

        return self._loop.run(score)

    def submit(self, requests: list[Request]) -> None:
        """Queue a batch of requests; does not wait for the step under way."""
        self._loop.submit(requests, self._answers)

    def submit_streamed(self, requests: list[Request]) -> None:
        """As :meth:`submit`, of requests that :meth:`stream` follows."""
        self._loop.submit(requests, self._streams)

    def abort(self, request_ids: Sequence[str]) -> None:
        """End requests at the next boundary between two steps; does not wait for it."""
        self._loop.abort(request_ids)

    def collect(self, timeout_s: float) -> Collected:
        """Outputs since the last call; waits up to ``timeout_s`` for the first one."""
        outputs = self._answers.read(timeout_s)
        return Collected(outputs=outputs, stats=self._read_stats(), closed=self._answers.is_closed)

    def stream(self, timeout_s: float) -> Streamed:
        """New tokens of streamed requests since the last call, and their ends; waits up to ``timeout_s`` for any."""
        deltas = self._streams.read(timeout_s)
        return Streamed(deltas=deltas, closed=self._streams.is_closed)

    def profile(self, path: Path, max_steps: int, max_s: float) -> Profiled:
        """Profile the next steps under ``torch.profiler``, until so many were made, so much time is over, or the role
        ends; waits for that. Requests go on meanwhile.

        Raises:
            UserError: the trace cannot be written.
        """
        from rlserve.engine.stats.step_profile import StepProfile

        StepProfile.warm_up()
        profile = StepProfile(max_steps)
        self._loop.begin_profile(profile)
        if not profile.ended.wait(max_s):
            self._loop.end_profile()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return Profiled(num_steps=profile.num_steps, num_bytes=profile.write(path))
        except OSError as error:
            raise UserError(f"the trace cannot be written: {error}") from error

    def end_profile(self) -> None:
        """End the profile of now, if there is one."""
        self._loop.end_profile()

    def stop(self) -> tuple[RequestOutput, ...]:
        """Generate no more: unfinished requests come back with their tokens. :meth:`free` follows.

        Outputs that finished before are still handed out by ``collect``, each exactly once.
        """
        partials = self._loop.stop()
        self._engine.check_integrity()
        return partials

    def free(self) -> MemoryChange:
        """Free the engine's memory, that of the weights too: whoever takes the role again gets the newest ones."""
        before_bytes = used_bytes(self._device)
        with self._pace.freeing():
            self._engine.release_memory(weights=True)
            self._receiver.drop()
        return MemoryChange(before_bytes=before_bytes, after_bytes=used_bytes(self._device))

    def abandon(self) -> None:
        """Give the role up without handing anything back: whatever was asked of it is asked of others again."""
        try:
            self._loop.stop()
        except WorkerFailedError as error:
            logger.info("the engine had stopped before: %s", error)

    def _read_stats(self) -> RolloutStats:
        loop = self._loop.stats
        stats, first_s = loop.engine, loop.first_token_s
        return RolloutStats(
            weight_version=stats.weight_version,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            kv_cache_usage=stats.kv_cache_usage,
            num_generated_tokens=stats.num_generated_tokens,
            num_preemptions=stats.num_preemptions,
            prefix_cache_hit_rate=stats.prefix_hit_rate,
            num_steps=loop.num_steps,
            busy_s=loop.busy_s,
            recompute_s=loop.recompute_s,
            running_s=loop.running_s,
            first_token_ago_s=None if first_s is None else self._pace.now_s() - first_s,
            longest_gap_s=self._loop.take_longest_gap_s(),
            engine_metrics=vllm_metrics(stats),
        )
