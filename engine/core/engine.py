"""The engine: requests in, samples out, one step at a time.

The caller turns the loop: ``while engine.has_work: outputs += engine.step()``. Everything else (weights, pause,
abort, memory) is called between two steps, so it always happens at a step boundary. Not thread-safe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch

from rlserve.engine.config import EngineConfig
from rlserve.engine.core.adapters import LoadedAdapters
from rlserve.engine.core.admission import Admission
from rlserve.engine.core.generation import Generation
from rlserve.engine.core.measurements import Measurements
from rlserve.engine.core.memory import EngineMemory
from rlserve.engine.core.scoring import SequenceScorer
from rlserve.engine.core.weight_versions import WeightVersions
from rlserve.engine.decoder.parameters import WeightChanges
from rlserve.engine.decoder.staging import StagedWeights
from rlserve.engine.grammars.compiler import GrammarCompiler
from rlserve.engine.kv_cache.block_pool import BlockPool
from rlserve.engine.models.factory import read_model_spec
from rlserve.engine.parallel.base import RankGroup
from rlserve.engine.parallel.factory import create_runner
from rlserve.engine.requests.delta import SampleDelta
from rlserve.engine.requests.folder_tokenizer import FolderTokenizer
from rlserve.engine.requests.request import Request, RequestOutput
from rlserve.engine.requests.validation import Limits, output_id
from rlserve.engine.scheduling.scheduler import Scheduler
from rlserve.engine.sequences.table import SequenceTable
from rlserve.engine.stats.engine_stats import EngineStats
from rlserve.engine.stats.metrics import cache_config
from rlserve.engine.stats.step_work import StepWork
from rlserve.errors import UserError, WeightsRefusedError

PauseMode = Literal["keep", "abort", "wait"]


class Engine:
    """Serves one model from a Hugging Face folder.

    Args:
        model_path: folder with ``config.json``, safetensors, and a tokenizer for what requests say in text.
        config: how to compute, and how much to hold.
        load_weights: False leaves the engine without weights; it refuses requests until :meth:`load_weights`.
        ranks: this process and those that compute the model with it, as rank 0 of ``join_ranks``. None starts the
            others, if the configuration wants any.
        clock: seconds, for latencies only.

    Raises:
        ModelError: the folder is no model, or one that the engine does not run.
        UserError: a cache too small for one block, a backend that cannot be had, or a model that does not divide
            by ``tensor_parallel_size``.
        WorkerFailedError: another rank could not be started. All methods that compute, or touch memory, raise it when
            one is lost.
    """

    def __init__(
        self,
        model_path: str | Path,
        config: EngineConfig,
        *,
        load_weights: bool = True,
        ranks: RankGroup | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        folder = Path(model_path)
        self.spec = read_model_spec(folder)
        self.config = config
        self._runner = create_runner(self.spec, config, folder, ranks)
        self._limits = Limits(
            vocab_size=self.spec.vocab_size,
            max_model_len=self._runner.max_model_len,
            # Some folders name tokens that their model has no logits for.
            eos_token_ids=tuple(token for token in self.spec.eos_token_ids if token < self.spec.vocab_size),
        )
        self._table = SequenceTable(
            num_rows=min(config.max_num_sequences, config.max_num_batched_tokens),
            max_model_len=self._runner.max_model_len,
            block_size=config.block_size,
        )
        self._pool = BlockPool(self._runner.num_blocks)
        self._scheduler = Scheduler(
            table=self._table,
            pool=self._pool,
            block_size=config.block_size,
            max_num_batched_tokens=config.max_num_batched_tokens,
            enable_prefix_caching=config.enable_prefix_caching,
            eos_token_ids=self._limits.eos_token_ids,
        )
        self._tokenizer = FolderTokenizer(folder)
        self._generation = Generation(
            runner=self._runner,
            table=self._table,
            scheduler=self._scheduler,
            tokenizer=self._tokenizer,
            compiler=GrammarCompiler(self._tokenizer, self.spec.vocab_size, self._limits.eos_token_ids),
            max_model_len=self._limits.max_model_len,
            measurements=Measurements(
                self._limits.max_model_len, cache_config(config, self._pool.num_blocks, self._limits.max_model_len)
            ),
            clock=clock,
        )
        self._scorer = SequenceScorer(self._runner, config, self.spec.vocab_size)
        # Not a method of this engine: an engine that is forgotten is freed at once, and with it its other ranks.
        on_change = partial(self._generation.weights_changed, recompute=config.on_new_weights == "recompute")
        self._weights = WeightVersions(self._runner, on_change=on_change)
        self._pause_mode: PauseMode | None = None
        self._memory = EngineMemory(self._runner, self._scheduler, self._generation, self._weights)
        self._adapters = LoadedAdapters(self._runner)
        holders = (self._generation, self._weights, self._memory, self._adapters)
        self._admission = Admission(self._limits, self._tokenizer, *holders)
        if load_weights:
            self._weights.load_folder(folder)

    @property
    def weight_version(self) -> int:
        """Version of the weights loaded last: 0 as in the folder, -1 before any."""
        return self._weights.version

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus answer in tokens: the model's limit, the configured one, or what the cache holds."""
        return self._limits.max_model_len

    @property
    def has_work(self) -> bool:
        """Whether a step has something to compute or to hand out. Stays true for requests while paused."""
        return self._generation.has_work

    @property
    def can_step(self) -> bool:
        """Whether a step would compute or hand out something now. False where there is no work, where the engine is
        paused, and while an update of the weights that failed in the middle is not made good."""
        if self._generation.has_outputs:
            return True
        if not self._generation.has_work or not self._weights.is_loaded:
            return False
        return self._pause_mode is None or (self._pause_mode == "wait" and self._generation.has_started)

    @property
    def last_work(self) -> StepWork:
        """What the last step computed, or launched."""
        return self._generation.last_work

    def add(self, request: Request) -> bool:
        """Take a request. One that cannot be served is not taken, and gets an output with ``error`` from the next step.

        Returns:
            Whether it was taken.
        """
        problem = self._admission.find_problem(request)
        if problem is not None:
            self._generation.refuse(output_id(request), problem)
        else:
            self._generation.add(request, None if request.adapter is None else self._adapters.get(request.adapter))
        return problem is None

    def step(self) -> list[RequestOutput]:
        """Compute one step, and return the outputs of the requests that ended with it. With overlapped scheduling
        the step is only launched, and the outputs are those of the step before.

        Raises:
            WeightsRefusedError: requests are in flight, and an update of the weights failed in the middle. They are
                kept, and go on when a whole version is loaded.
        """
        if self._generation.requests and not self._weights.is_loaded:
            raise WeightsRefusedError(
                "cannot compute: an update of the weights failed in the middle; load a whole version, or abort the "
                f"{len(self._generation.requests)} requests in flight"
            )
        if self._pause_mode in (None, "wait"):
            self._generation.step(self._weights.version)
        return self._generation.take_ready()

    def new_tokens(self, request_id: str, num_seen: Mapping[int, int]) -> tuple[SampleDelta, ...]:
        """What a request in the engine has gained: tokens that are drawn and read, and samples that have ended. Costs
        nothing unless it is called.

        Args:
            request_id: of a request. One that is not in the engine, or has ended, has nothing new.
            num_seen: by index of the samples that are asked about, how many of their tokens the caller knows.

        Returns:
            By index; samples without news are left out, and those that have ended are told each time.
        """
        return self._generation.new_tokens(request_id, num_seen)

    def score(self, sequences: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
        """Raw log-probability of each token after those before it, of every sequence; the first has none. Requests are
        left alone: it may be called between any two steps, and has room of its own.

        Args:
            sequences: token ids, 2 to 128 each, or fewer where the model or a step takes no more.

        Raises:
            UserError: a sequence that is too short or too long, or a token that the model does not have.
            WeightsRefusedError: there are no weights to score with, or the memory is released.
        """
        if not self._weights.is_loaded or self._memory.is_kv_cache_released:
            raise WeightsRefusedError("cannot score: load a whole version, into memory that is not released, first")
        return self._scorer.score(sequences)

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """End requests now and return what they have: finished samples as they are, the others with the tokens
        so far and ``ABORT``; a token that is still being drawn is dropped. Ids that are not in the engine are passed
        over: they ended by themselves.

        Raises:
            UserError: one id in place of several.
        """
        if isinstance(request_ids, str):
            raise UserError(f"abort takes several request ids, got {request_ids!r}: put it into a list")
        return self._generation.abort(request_ids)

    def pause(self, mode: PauseMode = "keep") -> list[RequestOutput]:
        """Stop until :meth:`resume`. Requests added meanwhile wait for it.

        Args:
            mode: ``keep`` computes nothing; requests keep their tokens and KV. ``abort`` ends all requests, and
                their partial outputs are returned. ``wait`` lets the requests that have started finish in further
                steps, and starts no other; :attr:`is_drained` tells when they have.

        Raises:
            UserError: another mode.
        """
        if mode not in get_args(PauseMode):
            raise UserError(f"pause mode must be one of {', '.join(get_args(PauseMode))}, got {mode!r}")
        self._pause_mode = mode
        if mode == "wait":
            self._scheduler.hold_unstarted()
        return self.abort(self._generation.ids) if mode == "abort" else []

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        self._pause_mode = None
        self._scheduler.release_held()

    @property
    def is_drained(self) -> bool:
        """Whether the engine is paused and no request is in the middle: nothing in it has tokens or KV."""
        return self._pause_mode is not None and not self._generation.has_started

    def load_weights(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy new weights into place. Requests in flight keep their tokens, and their KV or not (``on_new_weights``),
        and go on under the new version; cached prefixes of the old one are not found any more.

        Args:
            version: at least the current version.
            tensors: the whole model by Hugging Face names, as dense torch tensors of 16, 32 or 64 floating bits, on
                any device and in any order of memory; they are copied.

        Raises:
            WeightsRefusedError: a version that goes back or is no whole number of 31 bits, missing or unknown names,
                wrong shapes, tensors that cannot be weights, the memory is released, or another version is arriving
                in buckets. Nothing is changed.

        Whatever else is raised comes from the middle of writing. The weights then count as not loaded, and the engine
        serves nothing until a whole version is there.
        """
        self._weights.load(version, tensors)

    def stage_weights(self, tensors: Mapping[str, torch.Tensor]) -> StagedWeights:
        """Bring what :meth:`load_weights` takes into memory beside the running model, or refuse it as that does. Any
        thread may call this, one at a time, while steps go on; the tensors stay as they are until the swap. On a CPU
        it takes memory for a second set of weights and keeps it; elsewhere it only checks them, and the swap copies."""
        return self._runner.stage(tensors)

    def swap_weights(self, version: int, staged: StagedWeights) -> int:
        """Put staged weights into place, once, with the effects and refusals of :meth:`load_weights`; returns the
        fingerprint of what is loaded now."""
        return self._weights.swap(version, staged)

    def begin_weight_update(self, version: int) -> None:
        """Begin to take a version in buckets, by :meth:`update_weights`. They are staged beside the running model,
        which costs one copy of the weights, and steps go on under the old version until
        :meth:`finish_weight_update`.

        Raises:
            WeightsRefusedError: as for :meth:`load_weights`.
        """
        self._weights.begin(version)

    def update_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Stage some tensors, by Hugging Face names; they are copied.

        Raises:
            WeightsRefusedError: no update was begun, or this bucket has unknown names, wrong shapes, tensors that
                cannot be weights or that came before. The bucket is left out, and the update goes on.
        """
        self._weights.add(tensors)

    def finish_weight_update(self, checksum: int) -> None:
        """Swap in the staged version at once, with the effects of :meth:`load_weights`.

        Args:
            checksum: ``fingerprint`` of all weights in the engine's type (``engine/weights/fingerprint.py``).

        Raises:
            WeightsRefusedError: tensors are missing, or the checksum differs. The update is abandoned.
        """
        self._weights.finish(checksum)

    def abandon_weight_update(self) -> None:
        """Drop the staged version.

        Raises:
            WeightsRefusedError: no update was begun.
        """
        self._weights.abandon()

    def apply_weight_delta(self, version: int, base_version: int, changes: WeightChanges, checksum: int) -> None:
        """Change only some elements of the weights, with the effects of :meth:`load_weights`.

        Args:
            version: at least the current version.
            base_version: the version that the changes are to be made to; must be the current one.
            changes: by Hugging Face name, the changed elements of the flattened weight and their new values.
            checksum: ``fingerprint`` of all weights afterwards, in the engine's type.

        Raises:
            WeightsRefusedError: a wrong base, a change that does not fit, or a wrong checksum afterwards. The
                weights are as before.
        """
        self._weights.apply_delta(version, base_version, changes, checksum)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What is really loaded, by Hugging Face name and in the engine's dtype, to be read and not written to. The
        head of a model that ties it to the embedding is not listed.

        Raises:
            WeightsRefusedError: the memory of the weights is released.
        """
        return self._weights.named()

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of those that are loaded."""
        return self._adapters.names

    def load_adapter(self, name: str, folder: str | Path, *, in_place: bool = False) -> None:
        """Have requests be able to name a LoRA adapter (``Request.adapter``). It stays over the weights that come
        later, whatever they are.

        Args:
            folder: as peft's ``save_pretrained`` writes it.
            in_place: take the name over, if it is taken: who has the adapter of before goes on with that one.

        Raises:
            UserError: the name is taken.
            ModelError: the folder is no adapter of this model, or one that the engine does not compute.
        """
        self._adapters.load(name, Path(folder), in_place=in_place)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Requests that have it go on with it; its memory is free when they have ended.

        Raises:
            UserError: there is none of this name.
        """
        self._adapters.unload(name)

    def release_memory(self, *, weights: bool = False, kv_cache: bool = True) -> None:
        """Free the KV cache, the weights, or both; adapters stay. Returns when the memory is free. Requests are refused
        until :meth:`restore_memory`.

        Raises:
            IllegalTransitionError: requests are in flight, a version is arriving in buckets, or what is to be
                released is released already.
        """
        self._memory.release(weights=weights, kv_cache=kv_cache)

    def restore_memory(self, *, weights: bool = True, kv_cache: bool = True) -> None:
        """Take the released memory again, of the two or of one. Weights come back empty: the engine refuses
        requests until new ones are loaded; their version must not go back.

        Raises:
            IllegalTransitionError: nothing of it is released.
        """
        self._memory.restore(weights=weights, kv_cache=kv_cache)

    def stats(self) -> EngineStats:
        """The numbers of now."""
        return self._generation.stats(self._pool, self._weights.version, len(self._adapters.names))

    def close(self) -> None:
        """End the other ranks, if there are any; nothing can be computed afterwards. It happens by itself when the
        engine is forgotten or the process ends."""
        self._runner.close()

    def check_integrity(self) -> None:
        """Assert that no block, row or sample is lost: free + held = total, counts exact."""
        self._generation.check_integrity()
