"""Anything in any order: requests are added, aborted and resumed, weights swapped, the engine paused, with a
cache so small that samples are preempted all the time. No block, token or request may be lost, and no version
be wrong. What one version of the weights made alone must be what an engine with nothing else to do makes."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from engine_builders import VOCAB_SIZE, make_engine, make_request, run, save_model, weights_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rlserve.engine import Engine, FinishReason, Request, RequestOutput, SampleOutput

NUM_BLOCKS = 14
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

    def __init__(self) -> None:
        super().__init__()
        self.engine = make_engine(
            _folder(), num_blocks=NUM_BLOCKS, block_size=4, max_num_sequences=5, max_num_batched_tokens=12
        )
        self.num_requests = 0
        self.live: dict[str, Request] = {}
        self.added_at: dict[str, int] = {}
        self.partial: list[tuple[Request, int]] = []
        self.paused = False

    @rule(
        length=st.integers(1, 24),
        n=st.integers(1, 4),
        max_tokens=st.integers(1, 30),
        temperature=st.sampled_from([0.0, 0.7, 1.0]),
        common=st.booleans(),
        priority=st.integers(-1, 1),
    )
    def add(self, length: int, n: int, max_tokens: int, temperature: float, common: bool, priority: int) -> None:
        name = str(self.num_requests)
        self.num_requests += 1
        first = 0 if common else self.num_requests
        prompt = [(first + 7 * position) % VOCAB_SIZE for position in range(length)]
        request = replace(
            make_request(name, prompt, n=n, max_tokens=max_tokens, temperature=temperature, seed=self.num_requests),
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
        request = self.live.pop(name)
        self._check(request, output, self.added_at[name])
        self.partial.append((replace(request, resumed=output.samples), self.added_at[name]))

    @rule(num_steps=st.integers(1, 12))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            outputs = self.engine.step()
            assert not (self.paused and outputs)
            for output in outputs:
                self._take(output)

    @rule(by=st.integers(1, 2))
    def swap_weights(self, by: int) -> None:
        version = self.engine.weight_version + by
        self.engine.load_weights(version, _weights(version))

    @rule()
    def pause_or_resume(self) -> None:
        self.paused = not self.paused
        if self.paused:
            self.engine.pause()
        else:
            self.engine.resume()

    @invariant()
    def books_are_right(self) -> None:
        self.engine.check_integrity()
        stats = self.engine.stats()
        assert self.engine.has_work == bool(self.live)
        assert 0 <= stats.num_used_blocks <= NUM_BLOCKS
        assert bool(self.live) or stats.num_used_blocks == 0

    def teardown(self) -> None:
        self.engine.resume()
        while self.engine.has_work:
            for output in self.engine.step():
                self._take(output)
            self.engine.check_integrity()
        assert not self.live
        assert self.engine.stats().num_used_blocks == 0

    def _start(self, request: Request, added_at: int) -> None:
        self.live[request.id] = request
        self.added_at[request.id] = added_at
        self.engine.add(request)

    def _take(self, output: RequestOutput) -> None:
        request = self.live.pop(output.request_id)
        assert output.finished
        self._check(request, output, self.added_at[request.id])

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


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
