"""Anything in any order: requests are added, aborted and resumed, weights swapped in all ways, the engine paused in
all modes and put to sleep, with a cache so small that samples are preempted all the time. No block, token or request
may be lost, and no version be wrong. What one version of the weights made alone must be what an engine with nothing
else to do makes. All of it again with overlapped scheduling."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from engine_builders import VOCAB_SIZE, make_engine, make_request, run, save_model, weights_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rlserve.engine import Engine, FinishReason, Request, RequestOutput, SampleOutput
from rlserve.engine.core.engine import PauseMode
from rlserve.engine.decoder import parameters
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import WeightsRefusedError

NUM_BLOCKS = 14
EXTRAS: list[dict[str, Any]] = [
    {},
    {"frequency_penalty": 1.0, "repetition_penalty": 1.3, "num_top_log_probs": 2},
    {"min_p": 0.1, "bad_token_ids": tuple(range(0, VOCAB_SIZE, 3)), "kept_support": True},
    {"prompt_log_probs": 1},
    {"stop_token_ids": tuple(range(0, VOCAB_SIZE, 5))},
]
"""What a request may ask for beside the usual."""
NUM_SEEDS = 3
"""Version v has the weights of seed v % NUM_SEEDS."""


@cache
def _folder() -> Path:
    return save_model(Path(tempfile.mkdtemp()), "qwen3", seed=0, num_hidden_layers=1)


@cache
def _weights(version: int) -> dict[str, torch.Tensor]:
    return weights_of("qwen3", version % NUM_SEEDS, num_hidden_layers=1)


@cache
def _lonely_engine(seed: int) -> Engine:
    engine = make_engine(_folder(), num_blocks=64, enable_prefix_caching=False)
    engine.load_weights(0, _weights(seed))
    return engine


def _expected(request: Request, version: int) -> RequestOutput:
    plain = replace(request, resumed=())
    return run(_lonely_engine(version % NUM_SEEDS), [plain])[request.id]


class EngineMachine(RuleBasedStateMachine):
    """An engine, the requests it has, and the partial samples waiting to be resumed."""

    overlaps = False

    @initialize(on_new_weights=st.sampled_from(["keep_kv", "recompute"]))
    def begin(self, on_new_weights: str) -> None:
        self.engine = make_engine(
            _folder(),
            num_blocks=NUM_BLOCKS,
            block_size=4,
            max_num_sequences=5,
            max_num_batched_tokens=12,
            overlap_scheduling=self.overlaps,
            on_new_weights=on_new_weights,
        )
        self.num_requests = 0
        self.live: dict[str, Request] = {}
        self.added_at: dict[str, int] = {}
        self.partial: list[tuple[Request, int]] = []
        self.paused: PauseMode | None = None
        self.arriving: list[dict[str, torch.Tensor]] | None = None
        """Buckets of the next version that were not sent yet, while it is arriving."""

    @rule(
        length=st.integers(1, 24),
        n=st.integers(1, 4),
        max_tokens=st.integers(1, 30),
        temperature=st.sampled_from([0.0, 0.7, 1.0]),
        common=st.booleans(),
        priority=st.integers(-1, 1),
        extras=st.sampled_from(EXTRAS),
    )
    def add(
        self,
        length: int,
        n: int,
        max_tokens: int,
        temperature: float,
        common: bool,
        priority: int,
        extras: dict[str, Any],
    ) -> None:
        name = str(self.num_requests)
        self.num_requests += 1
        first = 0 if common else self.num_requests
        prompt = [(first + 7 * position) % VOCAB_SIZE for position in range(length)]
        request = replace(
            make_request(
                name, prompt, n=n, max_tokens=max_tokens, temperature=temperature, seed=self.num_requests, **extras
            ),
            priority=priority,
        )
        self._start(request, self.engine.weight_version)

    @precondition(lambda self: self.partial)
    @rule()
    def resume_partial(self) -> None:
        request, version = self.partial.pop(0)
        self._start(request, version)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        (output,) = self.engine.abort([name])
        self._take_partial(output)

    @rule(num_steps=st.integers(1, 12))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            outputs = self.engine.step()
            assert not (self.paused in ("keep", "abort") and outputs)
            for output in outputs:
                self._take(output)

    @precondition(lambda self: self.arriving is None)
    @rule(by=st.integers(1, 2))
    def swap_weights(self, by: int) -> None:
        version = self.engine.weight_version + by
        self.engine.load_weights(version, _weights(version))
        self._take_what_has_ended()

    @precondition(lambda self: self.arriving is None)
    @rule(takes_another=st.booleans())
    def fail_to_swap_weights(self, takes_another: bool) -> None:
        version = self.engine.weight_version
        with patch.object(parameters, "put_weights", side_effect=MemoryError), pytest.raises(MemoryError):
            self.engine.load_weights(version + 1, _weights(version + 1))
        if self.engine._generation.requests:
            with pytest.raises(WeightsRefusedError, match="failed in the middle"):
                self.engine.step()
        self.engine.load_weights(version + takes_another, _weights(version + takes_another))
        self._take_what_has_ended()

    @precondition(lambda self: self.arriving is None)
    @rule(by=st.integers(1, 2), is_damaged=st.booleans())
    def change_elements(self, by: int, is_damaged: bool) -> None:
        base = self.engine.weight_version
        target = _weights(base + by)
        changes = {name: (torch.arange(tensor.numel()), tensor.flatten()) for name, tensor in target.items()}
        if is_damaged:
            with pytest.raises(WeightsRefusedError):
                self.engine.apply_weight_delta(base + by, base, changes, fingerprint(target.items()) ^ 1)
        else:
            self.engine.apply_weight_delta(base + by, base, changes, fingerprint(target.items()))
            self._take_what_has_ended()

    @precondition(lambda self: self.arriving is None)
    @rule()
    def begin_update(self) -> None:
        self.engine.begin_weight_update(self.engine.weight_version + 1)
        tensors = list(_weights(self.engine.weight_version + 1).items())
        self.arriving = [dict(tensors[:5]), dict(tensors[5:])]

    @precondition(lambda self: self.arriving is not None)
    @rule(is_abandoned=st.booleans())
    def go_on_with_update(self, is_abandoned: bool) -> None:
        assert self.arriving is not None
        if is_abandoned:
            self.engine.abandon_weight_update()
            self.arriving = None
        elif self.arriving:
            self.engine.update_weights(self.arriving.pop())
        else:
            version = self.engine.weight_version + 1
            self.engine.finish_weight_update(fingerprint(_weights(version).items()))
            self.arriving = None
            self._take_what_has_ended()

    @rule(mode=st.sampled_from(["keep", "abort", "wait"]))
    def pause(self, mode: PauseMode) -> None:
        self.paused = mode
        outputs = self.engine.pause(mode)
        assert len(outputs) == (len(self.live) if mode == "abort" else 0)
        for output in outputs:
            self._take_partial(output)

    @rule()
    def resume(self) -> None:
        self.paused = None
        self.engine.resume()

    @precondition(lambda self: not self.live and self.arriving is None)
    @rule(weights=st.booleans(), kv_cache=st.booleans())
    def sleep_and_wake(self, weights: bool, kv_cache: bool) -> None:
        if not weights and not kv_cache:
            return
        version = self.engine.weight_version
        self.engine.release_memory(weights=weights, kv_cache=kv_cache)
        self.engine.restore_memory()
        if weights:
            self.engine.load_weights(version, _weights(version))

    @invariant()
    def books_are_right(self) -> None:
        self.engine.check_integrity()
        stats = self.engine.stats()
        assert self.engine.has_work == bool(self.live)
        assert 0 <= stats.num_used_blocks <= NUM_BLOCKS
        assert bool(self.live) or stats.num_used_blocks == 0
        if self.engine.is_drained:
            assert self.paused is not None
            assert stats.num_running == stats.num_used_blocks == 0

    def teardown(self) -> None:
        self.engine.resume()
        while self.engine.has_work:
            for output in self.engine.step():
                self._take(output)
            self.engine.check_integrity()
        assert not self.live
        assert self.engine.stats().num_used_blocks == 0
        self._find_no_prefix_of_the_past()

    def _find_no_prefix_of_the_past(self) -> None:
        """Many requests before began alike, under whatever version there was."""
        prompt = [7 * position % VOCAB_SIZE for position in range(24)]
        self._start(make_request("last", prompt, max_tokens=3, temperature=0.0), self.engine.weight_version)
        for output in run(self.engine).values():
            self._take(output)

    def _take_what_has_ended(self) -> None:
        """The step in flight is read where all is to be computed anew, so samples may end with new weights."""
        for output in self.engine._generation.take_ready():
            self._take(output)

    def _start(self, request: Request, added_at: int) -> None:
        self.live[request.id] = request
        self.added_at[request.id] = added_at
        self.engine.add(request)

    def _take_partial(self, output: RequestOutput) -> None:
        request = self.live.pop(output.request_id)
        self._check(request, output, self.added_at[request.id])
        self.partial.append((replace(request, resumed=output.samples), self.added_at[request.id]))

    def _take(self, output: RequestOutput) -> None:
        request = self.live.pop(output.request_id)
        assert output.finished
        num_scored = len(request.prompt_token_ids) if request.sampling.prompt_log_probs is not None else 0
        assert len(output.prompt_log_probs) == num_scored or not self._was_computed(request)
        self._check(request, output, self.added_at[request.id])

    @staticmethod
    def _was_computed(request: Request) -> bool:
        """Whether something was left to do when the request came."""
        ended = (FinishReason.LENGTH, FinishReason.STOP)
        complete = [sample for sample in request.resumed if sample.finish_reason in ended]
        return len(complete) < request.sampling.n

    def _check(self, request: Request, output: RequestOutput, added_at: int) -> None:
        assert output.error is None
        assert [sample.index for sample in output.samples] == list(range(request.sampling.n))
        kept = {sample.index: sample for sample in request.resumed}
        for sample in output.samples:
            self._check_sample(request, sample, added_at)
            before = kept.get(sample.index)
            if before is not None:
                num_kept = len(before.token_ids)
                assert sample.token_ids[:num_kept] == before.token_ids
                assert sample.log_probs[:num_kept] == before.log_probs
                assert sample.weight_versions[:num_kept] == before.weight_versions

    def _check_sample(self, request: Request, sample: SampleOutput, added_at: int) -> None:
        num_tokens = len(sample.token_ids)
        assert len(sample.log_probs) == len(sample.behaviour_log_probs) == len(sample.weight_versions) == num_tokens
        assert num_tokens <= request.sampling.max_tokens
        assert len(sample.top_log_probs) == (num_tokens if request.sampling.num_top_log_probs else 0)
        assert len(sample.kept_support) == (num_tokens if request.sampling.kept_support else 0)
        stop_token_ids = request.sampling.stop_token_ids
        assert not set(sample.token_ids[:-1]) & set(stop_token_ids)
        assert (sample.finish_reason is FinishReason.STOP) == (sample.token_ids[-1:] in {(i,) for i in stop_token_ids})
        if sample.finish_reason is not FinishReason.STOP:
            assert (sample.finish_reason is FinishReason.LENGTH) == (num_tokens == request.sampling.max_tokens)
        versions = list(sample.weight_versions)
        assert versions == sorted(versions)
        if versions:
            assert added_at <= versions[0]
            assert versions[-1] <= self.engine.weight_version
        # Until the first swap, prompt and tokens alike were computed by the version of the beginning.
        num_alone = versions.count(added_at)
        expected = _expected(request, added_at).samples[sample.index]
        assert sample.token_ids[:num_alone] == expected.token_ids[:num_alone]
        differences = torch.tensor(sample.log_probs[:num_alone]) - torch.tensor(expected.log_probs[:num_alone])
        assert num_alone == 0 or differences.abs().max() < 1e-4


class OverlappedEngineMachine(EngineMachine):
    """The same with a step in flight between any two rules."""

    overlaps = True


_SETTINGS = settings(max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
TestEngine = EngineMachine.TestCase
TestEngine.settings = _SETTINGS
TestOverlappedEngine = OverlappedEngineMachine.TestCase
TestOverlappedEngine.settings = _SETTINGS
