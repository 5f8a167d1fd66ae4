"""Runs scheduled steps: from the sequence table to the flat tokens of a step, through the model, to sampled tokens.

Legend: T tokens of a step, S sequences, B samples to draw.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.adapters.adapter import Adapter, StepAdapters
from rlserve.engine.adapters.folder import AdapterMatrices, read_adapter
from rlserve.engine.attention.base import AttentionBackend, StepLayout
from rlserve.engine.attention.cpu_kernel import CpuKernelAttention
from rlserve.engine.attention.factory import attention_class
from rlserve.engine.config import EngineConfig
from rlserve.engine.decoder import cpu_program
from rlserve.engine.decoder.adapter_products import make_adapter
from rlserve.engine.decoder.cpu_program import CpuProgram
from rlserve.engine.decoder.decoder import Decoder
from rlserve.engine.decoder.parameters import Parameters, WeightChanges
from rlserve.engine.decoder.staging import StagedWeights
from rlserve.engine.device.backend import resolve_backend, resolve_device
from rlserve.engine.device.memory import MemoryLeft, free_device_memory, measure_memory
from rlserve.engine.device.transfer import to_device
from rlserve.engine.kernels.base import Draw, Kernels
from rlserve.engine.kernels.factory import create_kernels
from rlserve.engine.kv_cache.sizing import count_blocks, is_measured, largest_draw, largest_step
from rlserve.engine.models.checkpoint import Checkpoint
from rlserve.engine.models.rope import rotation_table
from rlserve.engine.models.shard import Shard
from rlserve.engine.runner.last_tokens import LastTokens
from rlserve.engine.runner.step_adapters import adapters_of_rows
from rlserve.engine.sampling.sampler import DrawDetails, Sampler, sampling_batch
from rlserve.engine.scheduling.scheduled_step import ScheduledStep
from rlserve.engine.sequences.prompt_scores import PromptScores
from rlserve.engine.sequences.table import SequenceTable
from rlserve.errors import UserError

if TYPE_CHECKING:
    from rlserve.engine.runner.cuda_graphs import DecodeGraphs

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SCORED_AT_ONCE = 64
"""Prompt positions whose logits are in memory at once."""
_SCORED_TOKENS = 128
"""Of given sequences, beside the requests: so many have KV blocks of their own."""


class ModelRunner:
    """Owner of the model's memory: weights, KV cache and work space."""

    def __init__(self, shard: Shard, config: EngineConfig) -> None:
        spec, dtype = shard.own, _DTYPES[config.dtype]
        self._device = resolve_device(config.device)
        if config.deterministic and self._device.type != "cpu":
            raise UserError(f"deterministic=true is only for device=cpu, and this engine computes on {self._device}")
        backend = resolve_backend(config.attention_backend, self._device)
        if config.dtype == "float16" and backend == "cpu":
            raise UserError("dtype=float16 is not for attention_backend=cpu: set dtype=bfloat16")
        attention = attention_class(backend, config.kv_cache_dtype)
        self._shard, self._block_size = shard, config.block_size
        self._is_program = cpu_program.is_chosen(shard, config, dtype, attention)
        if config.weight_dtype == "int8" and not self._is_program:
            raise UserError(
                "weight_dtype=int8 is only for a CPU, with a C++ compiler, one process and a model without experts "
                "and without exact GELU; use weight_dtype=auto"
            )
        self._parameters = Parameters(shard, dtype, self._device, in_panels=self._is_program)
        kernels = create_kernels(backend)
        self._sampler = Sampler(kernels)
        self.max_model_len = min(spec.max_position, config.max_model_len or spec.max_position)
        left: MemoryLeft | None = None
        if is_measured(config, self._device, shard.num_ranks):
            left = measure_memory(self._device, partial(self._compute_largest_step, attention, shard, config, kernels))
        block_bytes = attention.block_bytes(spec, config.block_size, dtype)
        self.num_blocks = count_blocks(config, block_bytes, self.max_model_len, left)
        self.max_model_len = min(self.max_model_len, self.num_blocks * config.block_size)
        self.scoring_blocks = range(self.num_blocks, self.num_blocks - (-_SCORED_TOKENS // config.block_size))
        """KV blocks beyond those of requests, for sequences that are only scored."""
        self._attention = self._make_attention(attention, shard, config, self.scoring_blocks.stop)
        self._decoder = self._make_decoder(shard, config, kernels)
        on_gpu = self._device.type == "cuda"
        is_alone = shard.num_ranks == 1  # others hear the tokens of a step from the host
        self.overlaps = on_gpu and is_alone if config.overlap_scheduling is None else config.overlap_scheduling
        """Whether steps are launched before the tokens of the one before are known."""
        self._is_drawn = False
        """The graph of the last step has drawn the next tokens too."""
        self._graphs: DecodeGraphs | None = None
        uses_graphs = config.cuda_graphs and on_gpu and backend in ("triton", "flash")
        uses_graphs = uses_graphs and not spec.experts and is_alone
        self._last_tokens: LastTokens | None = None
        """Where decoding steps find their tokens, if the sequence table may not have them yet."""
        if self.overlaps or uses_graphs:
            self._last_tokens = LastTokens(min(config.max_num_sequences, config.max_num_batched_tokens), self._device)
        if uses_graphs:
            self._graphs = self._make_graphs(config)

    def compute(self, step: ScheduledStep, rows: SequenceTable) -> torch.Tensor:
        """Run the model; returns logits, one row for each decoding row, then for each chunk that completes.
        They are overwritten by the next step."""
        layout = self._layout(step, rows)
        adapters = adapters_of_rows(layout, rows, self._device)
        if self._graphs is not None and not step.chunks and adapters is None:
            self._copy_blocks(step.block_copies)
            return self._replay(self._graphs, layout, rows, step.decode_rows)
        num_decoding = len(step.decode_rows)
        chunk_ends = layout.query_starts[num_decoding + 1 :][[chunk.completes for chunk in step.chunks]]
        last_rows = np.concatenate([np.arange(num_decoding), chunk_ends - 1])
        return self.forward(layout, last_rows, step.block_copies, adapters)

    def forward(
        self,
        layout: StepLayout,
        last_rows_R: NDArray[np.int64],
        block_copies: Mapping[int, int],
        adapters: StepAdapters | None = None,
    ) -> torch.Tensor:
        """Copy blocks (target -> source), compute the step of ``layout``, and return the logits of its tokens at
        ``last_rows_R``; they are overwritten by the next step."""
        self._copy_blocks(block_copies)
        last_rows = to_device(last_rows_R, self._device)
        with torch.inference_mode():
            self._attention.begin_step(layout)
            return self._decoder.forward(self._token_ids(layout), last_rows, adapters)

    def draw(
        self, logits_RV: torch.Tensor, rows: SequenceTable, rows_B: NDArray[np.intp], logits_row_B: NDArray[np.int32]
    ) -> tuple[Draw, list[DrawDetails]]:
        """Draw the next token of each of the given rows of the table, from the given row of logits. Nobody waits for
        the device, unless a row is special."""
        if self._is_drawn and self._graphs is not None:
            self._is_drawn = False
            return self._graphs.drawn(), []
        with torch.inference_mode():
            draw, details = self._sampler.draw(logits_RV, rows, rows_B, logits_row_B)
            if self._last_tokens is not None:
                self._last_tokens.put(to_device(rows_B, self._device), draw.token_ids_B)
        return draw, details

    def score_prompt(self, scores: PromptScores, start: int, first_token: int, end: int) -> None:
        """Score what the step just computed tells about the prompt whose positions [start, end) lie in it from
        ``first_token`` on. The logits are made in small pieces: those of a whole chunk can take gigabytes."""
        wanted = scores.wanted(start, end)
        with torch.inference_mode():
            for position in wanted[::_SCORED_AT_ONCE]:
                first = first_token + position - start
                num_tokens = min(_SCORED_AT_ONCE, wanted.stop - position)
                scores.record(self.logits_of(first, first + num_tokens))

    def logits_of(self, first: int, end: int) -> torch.Tensor:
        """Logits of the tokens [first, end) of the step computed last."""
        with torch.inference_mode():
            return self._decoder.logits_of(first, end)

    def load_adapter(self, number: int, name: str, folder: Path) -> Adapter:
        """That of a peft folder, or raise :class:`ModelError`. No two ever have one number."""
        return self._adapter(number, name, read_adapter(folder, self._shard.whole))

    def load_folder(self, folder: Path) -> None:
        """Read the weights of a Hugging Face folder; ends with :meth:`weights_changed`."""
        self._parameters.load(Checkpoint(folder))

    def checked_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """A whole set of weights as :meth:`put_weights` takes it, or raise :class:`WeightsRefusedError`."""
        return self._parameters.checked(tensors)

    def put_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy some checked weights into place; ends with :meth:`weights_changed`."""
        with torch.inference_mode():
            self._parameters.put(tensors)

    def stage(self, tensors: Mapping[str, torch.Tensor]) -> StagedWeights:
        """A whole set of weights as :meth:`swap_in` takes it, by any thread, or raise :class:`WeightsRefusedError`."""
        staged = self._parameters.stage_whole(tensors)
        if staged.beside is None or isinstance(self._decoder, CpuProgram):
            return staged
        beside = dict(zip(map(id, self._parameters.exchangeable), staged.beside, strict=True))
        with torch.inference_mode():
            return replace(staged, packed_ahead=self._decoder.packed_ahead(beside))

    def swap_in(self, staged: StagedWeights) -> None:
        """Put what was staged into place, once; ends with :meth:`weights_changed`."""
        if staged.beside is not None:
            self._parameters.exchange(staged.beside)
            if isinstance(self._decoder, Decoder):
                self._decoder.exchanged(staged.packed_ahead)
        self.put_weights(staged.tensors)

    def weights_changed(self) -> None:
        """Must be called after weights were written, before the next step."""
        with torch.inference_mode():
            self._decoder.weights_changed()

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The loaded weights by Hugging Face name."""
        return self._parameters.named()

    def checked_bucket(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Some weights as :meth:`keep_weights` takes them, or raise :class:`WeightsRefusedError`."""
        return self._parameters.checked_bucket(tensors)

    def keep_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep copies of some checked weights for :meth:`swap_staged_weights`."""
        for name, tensor in tensors.items():
            self._parameters.stage(name, tensor)

    def staged_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What is staged, by Hugging Face name."""
        return iter(self._parameters.staged.items())

    def check_staged_weights(self) -> None:
        """Raise :class:`WeightsRefusedError` unless a whole set of weights is staged."""
        self._parameters.check_staged()

    def swap_staged_weights(self) -> None:
        """Copy what is staged into place; ends with :meth:`weights_changed`."""
        with torch.inference_mode():
            self._parameters.swap_staged()

    def drop_staged_weights(self) -> None:
        """Forget what is staged."""
        self._parameters.drop_staged()

    def check_changes(self, changes: WeightChanges) -> None:
        """Raise :class:`WeightsRefusedError` unless these elements can be changed."""
        self._parameters.check_changes(changes)

    def put_changes(self, changes: WeightChanges) -> None:
        """Write some elements that were checked. Ends with :meth:`keep_changes` or :meth:`take_back_changes`."""
        with torch.inference_mode():
            for name, (indices, values) in changes.items():
                self._parameters.change(name, indices, values)

    def keep_changes(self) -> None:
        """Forget the elements of before; ends with :meth:`weights_changed`."""
        self._parameters.keep_changes()

    def take_back_changes(self) -> None:
        """Write the elements of before again."""
        with torch.inference_mode():
            self._parameters.take_back_changes()

    def release_weights(self) -> None:
        """Free the memory of the weights."""
        if self._graphs is not None:
            self._graphs.forget()
        self._parameters.release()
        self._decoder.weights_released()
        free_device_memory(self._device)

    def restore_weights(self) -> None:
        """Take it back; the content is undefined."""
        self._parameters.restore()

    def release_kv_cache(self) -> None:
        """Free the memory of the KV cache."""
        if self._graphs is not None:
            self._graphs.forget()
        self._attention.release()
        free_device_memory(self._device)

    def restore_kv_cache(self) -> None:
        """Take it back; the content is undefined."""
        self._attention.restore()

    def close(self) -> None:
        """Let go of other processes, if there are any."""

    def _adapter(self, number: int, name: str, matrices: AdapterMatrices) -> Adapter:
        return make_adapter(number, name, matrices, self._shard, self._parameters.final_norm, self._decoder.linear)

    def _compute_largest_step(
        self, attention: type[AttentionBackend], shard: Shard, config: EngineConfig, kernels: Kernels
    ) -> None:
        """Compute and draw with a cache of one block, and keep nothing: the weights may be anything yet."""
        layout = largest_step(config, self.max_model_len)
        self._attention = self._make_attention(attention, shard, config, 1)
        self._decoder = self._make_decoder(shard, config, kernels)
        token_ids_T = to_device(layout.token_ids, self._device)
        last_rows_R = to_device(layout.query_starts[1:].astype(np.int64) - 1, self._device)
        with torch.inference_mode():
            self._attention.begin_step(layout)
            logits_RV = self._decoder.forward(token_ids_T, last_rows_R).zero_().float()
            details = logits_RV.log_softmax(dim=-1)  # what a special draw holds meanwhile
            kernels.sample(logits_RV.clone(), largest_draw(len(details)))
        del self._attention, self._decoder

    def _make_attention(
        self, attention: type[AttentionBackend], shard: Shard, config: EngineConfig, num_blocks: int
    ) -> AttentionBackend:
        made = attention(
            shard.own,
            rotation_table(shard.own, self.max_model_len).to(self._device),
            num_blocks=num_blocks,
            block_size=config.block_size,
            dtype=_DTYPES[config.dtype],
        )
        if config.deterministic:
            made.separate_tokens()
        return made

    def _make_decoder(self, shard: Shard, config: EngineConfig, kernels: Kernels) -> Decoder | CpuProgram:
        spec, max_num_tokens = shard.own, config.max_num_batched_tokens
        max_num_rows = min(config.max_num_sequences, max_num_tokens)
        if self._is_program:
            assert isinstance(self._attention, CpuKernelAttention)
            return CpuProgram(
                spec,
                self._parameters,
                self._attention,
                max_num_tokens=max_num_tokens,
                max_num_rows=max_num_rows,
                int8_weights=config.weight_dtype == "int8",
            )
        return Decoder(
            spec,
            self._parameters,
            self._attention,
            kernels,
            max_num_tokens=max_num_tokens,
            max_num_rows=max_num_rows,
            deterministic=config.deterministic,
        )

    def _copy_blocks(self, block_copies: Mapping[int, int]) -> None:
        if block_copies:
            self._attention.copy_blocks(list(block_copies.values()), list(block_copies))

    def _token_ids(self, layout: StepLayout) -> torch.Tensor:
        """[T] on the device; there, those of decoding sequences take the place of what the host knows."""
        token_ids_T = to_device(layout.token_ids, self._device)
        if self._last_tokens is not None and layout.num_decoding:
            rows = to_device(layout.table_rows[: layout.num_decoding], self._device)
            token_ids_T[: layout.num_decoding] = self._last_tokens.of(rows)
        return token_ids_T

    def _make_graphs(self, config: EngineConfig) -> DecodeGraphs:
        from rlserve.engine.attention.device_paged import DevicePagedAttention
        from rlserve.engine.runner.cuda_graphs import DecodeGraphs  # needs Triton

        assert isinstance(self._attention, DevicePagedAttention)
        assert isinstance(self._decoder, Decoder)
        assert self._last_tokens is not None
        return DecodeGraphs(
            self._decoder,
            self._attention,
            self._last_tokens,
            max_num_sequences=min(config.max_num_sequences, config.max_num_batched_tokens),
            table_width=-(-self.max_model_len // config.block_size),
            device=self._device,
        )

    def _replay(
        self, graphs: DecodeGraphs, layout: StepLayout, rows: SequenceTable, decode_rows: NDArray[np.intp]
    ) -> torch.Tensor:
        """Compute a step without chunks as a graph; its draws count if all rows want a plain draw."""
        batch = sampling_batch(rows, decode_rows, np.arange(len(decode_rows), dtype=np.int32))
        self._is_drawn = batch.keeps_all and not rows.is_special[decode_rows].any()
        with torch.inference_mode():
            return graphs.replay(layout, batch)

    def _layout(self, step: ScheduledStep, rows: SequenceTable) -> StepLayout:
        """The flat tokens of the step: one for each decoding row, then the chunks."""
        decode_rows = step.decode_rows
        positions = rows.num_tokens[decode_rows] - 1
        token_ids = rows.token_ids[decode_rows, positions]
        blocks = rows.block_tables[decode_rows, positions // self._block_size]
        lengths, table_rows = np.ones(len(decode_rows), dtype=np.int32), decode_rows
        if step.chunks:
            chunk_rows = np.array([chunk.sequence.row for chunk in step.chunks])
            chunk_lengths = np.array([chunk.end - chunk.start for chunk in step.chunks], dtype=np.int32)
            spans = [np.arange(chunk.start, chunk.end, dtype=np.int32) for chunk in step.chunks]
            chunk_positions = np.concatenate(spans)
            row_of_token = np.repeat(chunk_rows, chunk_lengths)
            positions = np.concatenate([positions, chunk_positions])
            token_ids = np.concatenate([token_ids, rows.token_ids[row_of_token, chunk_positions]])
            blocks = np.concatenate([blocks, rows.block_tables[row_of_token, chunk_positions // self._block_size]])
            lengths, table_rows = np.concatenate([lengths, chunk_lengths]), np.concatenate([table_rows, chunk_rows])
        query_starts = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=query_starts[1:])
        return StepLayout(
            token_ids=token_ids.astype(np.int64),
            positions=positions,
            cache_slots=blocks.astype(np.int64) * self._block_size + positions % self._block_size,
            query_starts=query_starts,
            table_rows=table_rows.astype(np.int32),
            block_tables=rows.block_tables,
            num_decoding=len(decode_rows),
        )
