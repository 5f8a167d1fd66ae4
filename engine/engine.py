"""The engine: requests in, samples out, one step at a time.

The caller turns the loop: ``while engine.has_work: outputs += engine.step()``. Everything else (weights, pause,
abort, memory) is called between two steps, so it always happens at a step boundary. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from rlserve.engine.config import EngineConfig
from rlserve.engine.generation import Generation
from rlserve.engine.kv_cache.block_pool import BlockPool
from rlserve.engine.models.factory import read_model_spec
from rlserve.engine.request import Request, RequestOutput
from rlserve.engine.rows import RowTable
from rlserve.engine.runner import ModelRunner
from rlserve.engine.scheduler import Scheduler
from rlserve.engine.stats import EngineStats
from rlserve.engine.stop import FolderDetokenizer
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
        self._limits = Limits(
            vocab_size=self.spec.vocab_size,
            max_model_len=self._runner.max_model_len,
            eos_token_ids=self.spec.eos_token_ids,
        )
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
        self._generation = Generation(
            runner=self._runner,
            rows=self._rows,
            scheduler=self._scheduler,
            detokenizer=self._detokenizer,
            max_model_len=self._limits.max_model_len,
        )
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
        return self._generation.has_work

    def add(self, request: Request) -> None:
        """Take a request. One that cannot be served gets an output with ``error`` from the next step."""
        problem = self._find_problem(request)
        if problem is not None:
            self._generation.refuse(str(request.id), problem)
        else:
            self._generation.add(request)

    def step(self) -> list[RequestOutput]:
        """Compute one step, and return the outputs of the requests that ended with it."""
        if not self._paused:
            self._generation.step(self._weight_version)
        return self._generation.take_ready()

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """End requests now and return what they have: finished samples as they are, the others with the tokens
        so far and ``ABORT``. Ids that are not in the engine are passed over: they ended by themselves."""
        return self._generation.abort(request_ids)

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
        if self._generation.requests:
            raise IllegalTransitionError(
                f"cannot release memory: {len(self._generation.requests)} requests are in flight, abort them first"
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
        counts, totals = self._scheduler.counts, self._generation.counts
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_blocks=self._pool.num_blocks,
            num_used_blocks=self._pool.num_blocks - self._pool.num_free,
            weight_version=self._weight_version,
            num_steps=totals.num_steps,
            num_prompt_tokens=totals.num_prompt_tokens,
            num_generated_tokens=totals.num_generated_tokens,
            num_computed_tokens=totals.num_computed_tokens,
            num_finished_requests=totals.num_finished_requests,
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
        self._generation.check_integrity()

    def _find_problem(self, request: Request) -> str | None:
        if not isinstance(request.id, str):
            return f"id must be a string, got {request.id!r}"
        if request.id in self._generation.requests:
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
