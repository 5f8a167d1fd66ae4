"""The engine: requests in, samples out, one step at a time.

    add ──► requests ──► scheduler.schedule ──► runner.compute ──► runner.sample ──► tokens into the row table
               ▲                 ▲                                                        │
               │ abort           └──────────────── scheduler.complete ◄───────────────────┤
               └──────────────────────────────── outputs of ended requests ◄──────────────┘

The caller turns the loop: ``while engine.has_work: outputs += engine.step()``. Everything else (weights, pause,
abort, memory) is called between two steps, so it always happens at a step boundary. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.config import EngineConfig
from rlserve.engine.kernels.base import SampledTokens
from rlserve.engine.kv_cache.block_pool import BlockPool
from rlserve.engine.models.factory import read_model_spec
from rlserve.engine.request import FinishReason, Request, RequestOutput, SampleOutput
from rlserve.engine.rows import RowTable
from rlserve.engine.runner import ModelRunner
from rlserve.engine.scheduler import ScheduledStep, Scheduler
from rlserve.engine.sequence import RequestState, Sequence, SequenceState, TokenHistory
from rlserve.engine.stats import EngineStats
from rlserve.engine.stop import FolderDetokenizer, StopStringChecker
from rlserve.engine.validation import Limits, find_problem
from rlserve.errors import IllegalTransitionError, WeightsRefusedError

NO_VERSION = -1
"""Weight version of an engine that has no weights."""


class Engine:
    """Serves one model from a Hugging Face folder.

    Args:
        model_path: folder with ``config.json``, safetensors, and a tokenizer if stop strings are used.
        config: how to compute, and how much to hold.
        load_weights: False leaves the engine without weights; it refuses requests until :meth:`load_weights`.

    Raises:
        ModelError: the folder is no model, or one that the engine does not run.
        UserError: a cache too small for one block, or a backend that cannot be had.
    """

    def __init__(self, model_path: str | Path, config: EngineConfig, *, load_weights: bool = True) -> None:
        folder = Path(model_path)
        self.spec = read_model_spec(folder)
        self.config = config
        self._runner = ModelRunner(self.spec, config)
        self._limits = Limits(vocab_size=self.spec.vocab_size, max_model_len=self._runner.max_model_len)
        self._rows = RowTable(
            num_rows=min(config.max_num_sequences, config.max_num_batched_tokens),
            max_model_len=self._runner.max_model_len,
            block_size=config.block_size,
        )
        self._pool = BlockPool(self._runner.num_blocks)
        self._scheduler = Scheduler(
            rows=self._rows,
            pool=self._pool,
            block_size=config.block_size,
            max_num_batched_tokens=config.max_num_batched_tokens,
            enable_prefix_caching=config.enable_prefix_caching,
            eos_token_ids=self.spec.eos_token_ids,
        )
        self._detokenizer = FolderDetokenizer(folder)
        self._requests: dict[str, RequestState] = {}
        self._ready: list[RequestOutput] = []
        """Outputs that the next step hands out."""
        self._num_arrivals = self._num_steps = self._num_finished_requests = 0
        self._num_prompt_tokens = self._num_generated_tokens = self._num_computed_tokens = 0
        self._paused = self._released = self._has_weights = False
        self._weight_version = NO_VERSION
        if load_weights:
            self._runner.load_folder(folder)
            self._set_version(0)

    @property
    def weight_version(self) -> int:
        """Version of the weights loaded last: 0 as in the folder, -1 before any."""
        return self._weight_version

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus answer in tokens: the model's limit, the configured one, or what the cache holds."""
        return self._limits.max_model_len

    @property
    def has_work(self) -> bool:
        """Whether a step has something to compute or to hand out. Stays true for requests while paused."""
        return bool(self._requests or self._ready)

    def add(self, request: Request) -> None:
        """Take a request. One that cannot be served gets an output with ``error`` from the next step."""
        problem = self._find_problem(request)
        if problem is not None:
            self._ready.append(RequestOutput(request_id=str(request.id), samples=(), error=problem))
            return
        owner = RequestState(
            request=request, arrival=self._num_arrivals, prompt=np.array(request.prompt_token_ids, dtype=np.int32)
        )
        self._num_arrivals += 1
        self._num_prompt_tokens += len(owner.prompt)
        resumed = {sample.index: sample for sample in request.resumed}
        for index in range(request.sampling.n):
            self._add_sample(owner, index, resumed.get(index))
        if owner.sequences:
            self._requests[request.id] = owner
            self._scheduler.add(owner.sequences)
        else:
            self._ready.append(_output(owner))

    def step(self) -> list[RequestOutput]:
        """Compute one step, and return the outputs of the requests that ended with it."""
        if not self._paused and self._requests:
            step = self._scheduler.schedule()
            if not step.is_empty:
                self._compute(step)
        finished, self._ready = self._ready, []
        self._num_finished_requests += len(finished)
        return finished

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """End requests now and return what they have: finished samples as they are, the others with the tokens
        so far and ``ABORT``. Ids that are not in the engine are passed over: they ended by themselves."""
        outputs = []
        for request_id in request_ids:
            owner = self._requests.get(request_id)
            if owner is not None:
                self._end_request(owner, FinishReason.ABORT)
                outputs.append(_output(owner))
        self._num_finished_requests += len(outputs)
        return outputs

    def pause(self) -> None:
        """Compute nothing until :meth:`resume`; requests keep their tokens and KV."""
        self._paused = True

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        self._paused = False

    def load_weights(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy new weights into place. Requests in flight keep tokens and KV and go on under the new version;
        cached prefixes of the old one are not found any more.

        Args:
            version: at least the current version.
            tensors: the whole model by Hugging Face names, in any floating type; they are copied.

        Raises:
            WeightsRefusedError: a version that goes back, missing or unknown names, wrong shapes, or the memory
                is released. Nothing is changed.
        """
        if version < max(self._weight_version, 0):
            raise WeightsRefusedError(f"weights refused: version {version}, but the engine has {self._weight_version}")
        if self._released:
            raise WeightsRefusedError("weights refused: the engine's memory is released, restore it first")
        self._runner.update_weights(tensors)
        self._set_version(version)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What is really loaded, by Hugging Face name and in the engine's dtype; views, not copies. The head of
        a model that ties it to the embedding is not listed."""
        return self._runner.named_weights()

    def release_memory(self, *, weights: bool = False) -> None:
        """Free the KV cache, and the weights if asked. Returns when the memory is free. Until
        :meth:`restore_memory`, requests are refused.

        Raises:
            IllegalTransitionError: requests are in flight, or the memory is released already.
        """
        if self._released:
            raise IllegalTransitionError("cannot release memory: it is released already")
        if self._requests:
            raise IllegalTransitionError(
                f"cannot release memory: {len(self._requests)} requests are in flight, abort them first"
            )
        self._scheduler.set_weight_version(self._weight_version)
        self._runner.release(weights=weights)
        self._released = True
        self._has_weights = self._has_weights and not weights

    def restore_memory(self) -> None:
        """Take the memory again. If the weights were released too, the engine refuses requests until new ones
        are loaded; their version must not go back.

        Raises:
            IllegalTransitionError: nothing is released.
        """
        if not self._released:
            raise IllegalTransitionError("cannot restore memory: nothing is released")
        self._runner.restore()
        self._released = False

    def stats(self) -> EngineStats:
        """The numbers of now."""
        counts = self._scheduler.counts
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_blocks=self._pool.num_blocks,
            num_used_blocks=self._pool.num_blocks - self._pool.num_free,
            weight_version=self._weight_version,
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_computed_tokens=self._num_computed_tokens,
            num_finished_requests=self._num_finished_requests,
            num_preemptions=counts.num_preemptions,
            num_forks=counts.num_forks,
            num_block_copies=counts.num_block_copies,
            num_prefill_chunks=counts.num_prefill_chunks,
            num_partial_chunks=counts.num_partial_chunks,
            prefix_queries=counts.prefix_queries,
            prefix_hits=counts.prefix_hits,
        )

    def check_integrity(self) -> None:
        """Assert that no block, row or sample is lost: free + held = total, counts exact."""
        self._scheduler.check_integrity()
        live = [sequence for owner in self._requests.values() for sequence in owner.sequences]
        unfinished = [sequence for sequence in live if sequence.state is not SequenceState.ENDED]
        assert len(unfinished) == self._scheduler.num_running + self._scheduler.num_waiting
        for owner in self._requests.values():
            assert len(owner.outputs) < owner.request.sampling.n, f"request {owner.request.id!r} ended but is kept"

    def _compute(self, step: ScheduledStep) -> None:
        logits_RV = self._runner.compute(step, self._rows)
        self._num_steps += 1
        self._num_computed_tokens += len(step.decode_rows) + sum(chunk.end - chunk.start for chunk in step.chunks)
        self._scheduler.complete(step)
        rows_B, logits_row_B = self._rows_to_sample(step)
        if len(rows_B) == 0:
            return
        sampled = self._runner.sample(logits_RV, self._rows, rows_B, logits_row_B)
        self._rows.append(
            rows_B, sampled.token_ids, sampled.log_probs, sampled.behaviour_log_probs, self._weight_version
        )
        self._num_generated_tokens += len(rows_B)
        self._end_samples(rows_B, sampled)
        if not self._requests:
            self._scheduler.check_integrity()

    def _rows_to_sample(self, step: ScheduledStep) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
        """Rows that get a token, and the row of logits of each; a leader's followers share its logits."""
        rows, logits_rows = step.decode_rows, np.arange(len(step.decode_rows), dtype=np.int32)
        leaders = [chunk.sequence for chunk in step.chunks if chunk.completes]
        if not leaders:
            return rows, logits_rows
        new_rows, new_logits_rows = [], []
        for logits_row, leader in enumerate(leaders, start=len(rows)):
            for sequence in (leader, *self._scheduler.release_followers(leader)):
                new_rows.append(sequence.row)
                new_logits_rows.append(logits_row)
        return (
            np.concatenate([rows, np.array(new_rows, dtype=np.intp)]),
            np.concatenate([logits_rows, np.array(new_logits_rows, dtype=np.int32)]),
        )

    def _end_samples(self, rows_B: NDArray[np.intp], sampled: SampledTokens) -> None:
        """Find the samples that end with the token just drawn. A stop token comes before a stop string, and
        that before the length."""
        table = self._rows
        stopped_B = (table.stop_token_ids[rows_B] == sampled.token_ids[:, None]).any(axis=1)
        too_long_B = table.num_tokens[rows_B] >= table.max_num_tokens[rows_B]
        broken_B = ~np.isfinite(sampled.log_probs)
        places = np.flatnonzero(stopped_B | too_long_B | broken_B | table.searches_text[rows_B]).tolist()
        ending = [(place, table.sequence(int(rows_B[place])), int(sampled.token_ids[place])) for place in places]
        for place, sequence, token_id in ending:
            if sequence.state is SequenceState.ENDED:  # with its whole request, for a broken sample before it
                continue
            if broken_B[place]:
                sequence.owner.error = "the model's logits are not finite: its weights are broken"
                self._end_request(sequence.owner, FinishReason.ERROR)
                self._ready.append(_output(sequence.owner))
            elif stopped_B[place]:
                self._end_sample(sequence, FinishReason.STOP, token_id)
            elif sequence.stop_checker is not None and (string := sequence.stop_checker.push(token_id)) is not None:
                self._end_sample(sequence, FinishReason.STOP, string)
            elif too_long_B[place]:
                self._end_sample(sequence, FinishReason.LENGTH, None)

    def _end_sample(self, sequence: Sequence, reason: FinishReason, stop_reason: int | str | None) -> None:
        owner = sequence.owner
        self._scheduler.end(sequence)
        owner.outputs[sequence.index] = sequence.history.output(sequence.index, reason, stop_reason)
        if len(owner.outputs) == owner.request.sampling.n:
            del self._requests[owner.request.id]
            self._ready.append(_output(owner))

    def _end_request(self, owner: RequestState, reason: FinishReason) -> None:
        """End all samples of a request that have not ended, and forget it."""
        for sequence in owner.sequences:
            if sequence.state is not SequenceState.ENDED:
                self._scheduler.end(sequence)
                owner.outputs[sequence.index] = sequence.history.output(sequence.index, reason, None)
        del self._requests[owner.request.id]

    def _add_sample(self, owner: RequestState, index: int, resumed: SampleOutput | None) -> None:
        """Add one sample to its request: as it is if it is complete, else as a sequence to be computed."""
        sampling = owner.request.sampling
        history = TokenHistory.of(resumed)
        if resumed is not None and resumed.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            owner.outputs[index] = resumed
            return
        num_tokens = len(history.token_ids)
        if num_tokens >= sampling.max_tokens or len(owner.prompt) + num_tokens >= self.max_model_len:
            owner.outputs[index] = history.output(index, FinishReason.LENGTH, None)
            return
        checker = StopStringChecker(self._detokenizer, sampling.stop) if sampling.stop else None
        if checker is not None:
            for token_id in history.token_ids.tolist():
                checker.push(token_id)
        owner.sequences.append(Sequence(owner=owner, index=index, history=history, stop_checker=checker))

    def _find_problem(self, request: Request) -> str | None:
        if not isinstance(request.id, str):
            return f"id must be a string, got {request.id!r}"
        if request.id in self._requests:
            return f"a request with id {request.id!r} is in the engine already"
        if self._released:
            return "the engine's memory is released: restore it first"
        if not self._has_weights:
            return "the engine has no weights: load them first"
        return find_problem(request, self._limits) or (self._detokenizer.problem() if request.sampling.stop else None)

    def _set_version(self, version: int) -> None:
        self._weight_version = version
        self._has_weights = True
        self._scheduler.set_weight_version(version)


def _output(owner: RequestState) -> RequestOutput:
    return RequestOutput(
        request_id=owner.request.id,
        samples=tuple(owner.outputs[index] for index in sorted(owner.outputs)),
        error=owner.error,
        num_cached_tokens=owner.num_cached_tokens,
    )
