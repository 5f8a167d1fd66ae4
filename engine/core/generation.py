"""The requests in the engine, from arrival to output: one step of all of them at a time.

add ──► requests ──► scheduler.schedule ──► pipeline.launch ──► in flight ──► pipeline.collect
 │         ▲ ▲               ▲                                                        │
 ▼         │ │ abort         └───────────────── rows and blocks of ended samples ◄────┤
compiling ─┘ └────────────────────────────── outputs of ended requests ◄──────────────┘

A request with a structured output waits until its grammar is compiled (``compiling_requests.py``). A step is collected
as soon as it is launched; with overlapped scheduling, when the next one is (``pipeline.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from rlserve.engine.adapters.adapter import Adapter
from rlserve.engine.core.compiling_requests import CompilingRequests
from rlserve.engine.core.measurements import Measurements, adapter_use
from rlserve.engine.core.new_tokens import new_tokens
from rlserve.engine.core.pipeline import InFlightStep, Pipeline
from rlserve.engine.grammars.compiler import GrammarCompiler
from rlserve.engine.kernels.base import SampledTokens
from rlserve.engine.kv_cache.block_pool import BlockPool
from rlserve.engine.requests.delta import SampleDelta
from rlserve.engine.requests.folder_tokenizer import FolderTokenizer
from rlserve.engine.requests.generated_tokens import NO_TOKENS
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SampleOutput
from rlserve.engine.runner.model_runner import ModelRunner
from rlserve.engine.scheduling.scheduled_step import ScheduledStep
from rlserve.engine.scheduling.scheduler import Scheduler
from rlserve.engine.sequences.bad_words import BadWords
from rlserve.engine.sequences.prompt_scores import PromptScores
from rlserve.engine.sequences.sequence import RequestState, Sequence, SequenceState
from rlserve.engine.sequences.stop_strings import StopStringChecker
from rlserve.engine.sequences.table import SequenceTable
from rlserve.engine.stats.engine_stats import EngineStats
from rlserve.engine.stats.step_profile import profiled
from rlserve.engine.stats.step_work import NO_WORK, StepWork

_Ending = tuple[FinishReason, int | str | None]
"""Why a sample ended, and with which token or string."""


class Generation:
    """Owner of the live requests. Takes only requests that were found to be in order."""

    def __init__(
        self,
        *,
        runner: ModelRunner,
        table: SequenceTable,
        scheduler: Scheduler,
        tokenizer: FolderTokenizer,
        compiler: GrammarCompiler,
        max_model_len: int,
        measurements: Measurements,
        clock: Callable[[], float],
    ) -> None:
        self._measured = measurements
        self.last_work = NO_WORK
        """What the step that was launched last computes."""
        self.requests: dict[str, RequestState] = {}
        """By id, without those whose grammar is being compiled; read-only for others."""
        self._compiling = CompilingRequests(compiler)
        self._pipeline = Pipeline(runner=runner, table=table, scheduler=scheduler)
        self._table = table
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._overlaps = runner.overlaps
        self._clock = clock
        self._in_flight: InFlightStep | None = None
        """The step to collect next. There is none while there are no requests."""
        self._ready: list[RequestOutput] = []
        """Outputs that the next step hands out."""

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.requests or request_id in self._compiling

    @property
    def has_work(self) -> bool:
        """Whether there is something to compute or to hand out."""
        return bool(self.requests or self._ready or self._compiling)

    @property
    def ids(self) -> list[str]:
        """Of all requests that are here."""
        return [*self.requests, *self._compiling.ids]

    @property
    def has_outputs(self) -> bool:
        """Whether there is something to hand out."""
        return bool(self._ready)

    @property
    def has_started(self) -> bool:
        """Whether a request has tokens or KV."""
        return any(owner.has_started for owner in self.requests.values())

    def refuse(self, request_id: str, problem: str) -> None:
        """Answer a request with an error output."""
        self._ready.append(RequestOutput(request_id=request_id, samples=(), error=problem))

    def add(self, request: Request, adapter: Adapter | None) -> None:
        """Take a request, with the adapter that it names."""
        owner = RequestState(
            request=request,
            arrival=self._measured.counts.num_arrivals,
            arrival_s=self._clock(),
            prompt=np.array(request.prompt_token_ids, dtype=np.int32),
            adapter=adapter,
        )
        if request.sampling.bad_words:
            owner.bad_words = BadWords(request.sampling.bad_words, self._tokenizer.encode)
        if request.sampling.prompt_log_probs is not None:
            owner.prompt_scores = PromptScores(owner.prompt, request.sampling.prompt_log_probs)
        self._measured.counts.num_arrivals += 1
        self._measured.counts.num_prompt_tokens += len(owner.prompt)
        resumed = {sample.index: sample for sample in request.resumed}
        for index in range(request.sampling.n):
            self._add_sample(owner, index, resumed.get(index))
        if not owner.sequences:
            self._ready.append(_output(owner))
        elif request.sampling.structured_output is not None:
            self._compiling.add(owner, request.sampling.structured_output)
        else:
            self._start(owner)

    def step(self, weight_version: int) -> None:
        """Have one step of what the scheduler chooses computed, and collect it, or the one before it."""
        self.last_work = NO_WORK
        for owner in self._compiling.take_compiled(waits=not self.requests and not self._ready):
            if owner.error is None:
                self._start(owner)
            else:
                self.refuse(owner.request.id, owner.error)
        if not self.requests:
            return
        plan = self._plan()
        previous, self._in_flight = self._in_flight, None if plan.is_empty else self._launch(plan, weight_version)
        if previous is not None:
            self._collect(previous)
        if not self._overlaps or not self.requests:
            self._drain()

    def take_ready(self) -> list[RequestOutput]:
        """Hand out the outputs of the requests that ended or were refused since the last call."""
        finished, self._ready = self._ready, []
        self._measured.counts.num_finished_requests += len(finished)
        return finished

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """End requests now, without a token that is still being drawn; ids that are not here are passed over."""
        outputs = []
        for request_id in request_ids:
            owner = self.requests.get(request_id)
            if owner is not None:
                outputs += self._end(dict.fromkeys(owner.unfinished, (FinishReason.ABORT, None)))
            elif request_id in self._compiling:
                owner = self._compiling.remove(request_id)
                owner.outputs |= {each.index: each.output(FinishReason.ABORT, None) for each in owner.sequences}
                outputs.append(_output(owner))
        self._measured.counts.num_finished_requests += len(outputs)
        if not self.requests:
            self._drain()
        return outputs

    def weights_changed(self, version: int, *, recompute: bool) -> None:
        """New weights are in place. Tokens that are still being drawn are of the old ones, and are kept."""
        if recompute:
            self._drain()
        self._scheduler.set_weight_version(version, recompute=recompute)

    def new_tokens(self, request_id: str, num_seen: Mapping[int, int]) -> tuple[SampleDelta, ...]:
        """See ``Engine.new_tokens``."""
        owner = self.requests.get(request_id)
        return () if owner is None else new_tokens(owner, self._table, num_seen)

    def stats(self, pool: BlockPool, weight_version: int, num_adapters: int) -> EngineStats:
        """The numbers of now."""
        return self._measured.stats(
            self._scheduler,
            pool,
            self._compiling.num_samples,
            weight_version,
            adapter_use(num_adapters, self.requests.values()),
        )

    def check_integrity(self) -> None:
        """Assert that no sample is lost, and nothing that the scheduler holds."""
        self._scheduler.check_integrity()
        live = [sequence for owner in self.requests.values() for sequence in owner.sequences]
        unfinished = [sequence for sequence in live if sequence.state is not SequenceState.ENDED]
        assert len(unfinished) == self._scheduler.num_running + self._scheduler.num_waiting
        for owner in self.requests.values():
            assert len(owner.outputs) < owner.request.sampling.n, f"request {owner.request.id!r} ended but is kept"
        assert self.requests or self._in_flight is None

    def _start(self, owner: RequestState) -> None:
        self.requests[owner.request.id] = owner
        self._scheduler.add(owner.sequences)

    def _plan(self) -> ScheduledStep:
        """What to compute next. The step in flight is collected first where its tokens must be known for that."""
        if self._in_flight is not None and (self._table.needs_tokens() or self._scheduler.may_preempt()):
            self._drain()
        with profiled("schedule"):
            plan = self._scheduler.schedule()
        if plan.chunks:
            self._measured.note_schedule(plan, self._clock())
        return plan

    def _launch(self, plan: ScheduledStep, weight_version: int) -> InFlightStep | None:
        num_prefill = sum(chunk.end - chunk.start for chunk in plan.chunks)
        self._measured.note_step(num_decoding=len(plan.decode_rows), num_prefill=num_prefill)
        self.last_work = StepWork(
            num_samples=len(plan.decode_rows),
            num_kv_tokens=int(self._table.num_tokens[plan.decode_rows].sum()),
            num_prefill_tokens=num_prefill,
            num_recomputed_tokens=sum(
                chunk.end - chunk.start for chunk in plan.chunks if chunk.sequence.was_computed_before
            ),
        )
        step = self._pipeline.launch(plan, weight_version)
        self._measured.note_launch(num_prefill=num_prefill, num_drawn=0 if step is None else len(step.rows_B))
        return step

    def _drain(self) -> None:
        """Leave no step in flight."""
        step, self._in_flight = self._in_flight, None
        if step is not None:
            self._collect(step)

    def _collect(self, step: InFlightStep) -> None:
        with profiled("collect"):
            collected = self._pipeline.collect(step)
        rows_B = collected.rows_B
        self._measured.counts.num_dropped_tokens += collected.num_dropped
        self._measured.counts.num_generated_tokens += len(rows_B)
        if len(rows_B):
            self._measured.note_tokens(self._table, rows_B, self._clock())
            self._end_samples(rows_B, collected.sampled)
        if not self.requests:
            self._scheduler.check_idle()

    def _end_samples(self, rows_B: NDArray[np.intp], sampled: SampledTokens) -> None:
        """End the samples that end with the token just drawn, and the requests of those whose token is none."""
        broken_rows = rows_B[~np.isfinite(sampled.log_probs)].tolist()
        for owner in dict.fromkeys(self._table.sequence(row).owner for row in broken_rows):
            matchers = [sequence.grammar_matcher for sequence in owner.sequences]
            problems = [matcher.problem for matcher in matchers if matcher is not None and matcher.problem is not None]
            self._measured.counts.num_corrupted_requests += not problems
            owner.error = next(iter(problems), "the model's logits are not finite: its weights are broken")
            self._ready += self._end(dict.fromkeys(owner.unfinished, (FinishReason.ERROR, None)))
        self._ready += self._end(dict(self._endings(rows_B, sampled.token_ids)))

    def _endings(self, rows_B: NDArray[np.intp], token_ids_B: NDArray[np.int32]) -> Iterator[tuple[Sequence, _Ending]]:
        """The samples that are complete, and why. A stop token comes before a stop string, and that before the
        length."""
        table = self._table
        stopped_B = (table.stop_token_ids[rows_B] == token_ids_B[:, None]).any(axis=1)
        too_long_B = table.num_known[rows_B] >= table.max_num_tokens[rows_B]
        for place in np.flatnonzero(stopped_B | too_long_B | table.searches_text[rows_B]).tolist():
            row, token_id = int(rows_B[place]), int(token_ids_B[place])
            if not table.has_sequence(row):  # it ended with its whole request
                continue
            sequence = table.sequence(row)
            if stopped_B[place]:
                yield sequence, (FinishReason.STOP, token_id)
            elif (string := self._completed_stop_string(sequence, token_id)) is not None:
                yield sequence, (FinishReason.STOP, string)
            elif too_long_B[place]:
                yield sequence, (FinishReason.LENGTH, None)

    def _completed_stop_string(self, sequence: Sequence, token_id: int) -> str | None:
        """The stop string that the token just drawn completes, unless the sample is to have more tokens."""
        if sequence.stop_checker is None:
            return None
        string = sequence.stop_checker.push(token_id)
        num_generated = int(self._table.num_known[sequence.row]) - len(sequence.owner.prompt)
        return string if num_generated > sequence.owner.request.sampling.min_tokens else None

    def _end(self, ending: Mapping[Sequence, _Ending]) -> list[RequestOutput]:
        """End some samples; returns the outputs of the requests that are complete with them, which are forgotten."""
        outputs = []
        self._scheduler.end(*ending)
        for sequence, (reason, stop_reason) in ending.items():
            owner = sequence.owner
            owner.outputs[sequence.index] = sequence.output(reason, stop_reason)
            self._measured.note_end_of_sample(sequence, reason)
            if len(owner.outputs) == owner.request.sampling.n:
                del self.requests[owner.request.id]
                self._measured.note_end_of_request(owner, self._clock())
                outputs.append(_output(owner))
                owner.adapter = None  # its memory must not wait for the collector of cycles, which owner is in
        return outputs

    def _add_sample(self, owner: RequestState, index: int, resumed: SampleOutput | None) -> None:
        """Add one sample to its request: as it is if it is complete, else as a sequence to be computed."""
        sampling = owner.request.sampling
        if resumed is not None and resumed.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            owner.outputs[index] = resumed
            return
        sequence = Sequence(owner=owner, index=index, history=resumed.tokens if resumed else NO_TOKENS)
        if resumed is not None and sampling.tells_top_log_probs:
            sequence.top_log_probs = list(resumed.top_log_probs)
        if resumed is not None and sampling.kept_support:
            sequence.kept_support = list(resumed.kept_support)
        num_tokens = sequence.num_resumed_tokens = len(sequence.history)
        if num_tokens >= sampling.max_tokens_of(index) or len(owner.prompt) + num_tokens >= self._max_model_len:
            owner.outputs[index] = sequence.output(FinishReason.LENGTH, None)
            return
        if sampling.stop:
            sequence.stop_checker = StopStringChecker(self._tokenizer, owner.prompt.tolist(), sampling.stop)
            for token_id in sequence.history.token_ids.tolist():
                sequence.stop_checker.push(token_id)
        owner.sequences.append(sequence)


def _output(owner: RequestState) -> RequestOutput:
    prompt_log_probs, prompt_top_log_probs = owner.prompt_scores.result() if owner.prompt_scores else ((), ())
    return RequestOutput(
        request_id=owner.request.id,
        samples=tuple(owner.outputs[index] for index in sorted(owner.outputs)),
        error=owner.error,
        num_cached_tokens=owner.num_cached_tokens,
        queue_time_s=owner.queue_time_s,
        time_to_first_token_s=owner.time_to_first_token_s,
        time_to_last_token_s=owner.time_to_last_token_s,
        prompt_log_probs=prompt_log_probs,
        prompt_top_log_probs=prompt_top_log_probs,
    )
