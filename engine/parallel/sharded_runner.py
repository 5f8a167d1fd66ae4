"""The model runners of the ranks: rank 0's does what a plain one does and has the others do the same.

    rank 0     forward, put_weight, release_weights, … ──► tell (order, arguments) ──► the same on its own part
                                                                 │    ▲
    others     follow: hear ◄────────────────────────────────────┘    │ sums, parts of logits and weights
                 └──► the same on their own parts ────────────────────┘

Weights come to rank 0 whole. Each goes to all ranks by broadcast, in the engine's type, and every rank cuts its own
part out of it; so no rank ever holds more than one whole weight. ``named_weights`` joins them again one by one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.attention.base import StepLayout
from rlserve.engine.config import EngineConfig
from rlserve.engine.kernels.base import Kernels
from rlserve.engine.models.decoder import Decoder
from rlserve.engine.parallel.base import RankGroup
from rlserve.engine.parallel.decoder import ShardedDecoder
from rlserve.engine.parallel.plan import BlockTable, Order, StepPlan
from rlserve.engine.parallel.shard import Shard
from rlserve.engine.runner import ModelRunner
from rlserve.errors import WorkerFailedError


class ShardedRunner(ModelRunner):
    """Computes one rank's part; all ranks must call the same methods in the same order."""

    def __init__(self, shard: Shard, config: EngineConfig, group: RankGroup) -> None:
        self._shard = shard
        self._group = group
        super().__init__(shard, config)
        self._table = BlockTable(
            min(config.max_num_sequences, config.max_num_batched_tokens),
            -(-self.max_model_len // config.block_size),
            config.block_size,
        )
        self._weights = dict(self._parameters.named())
        self._names = list(self._weights)
        self._dtype = self._parameters.embedding.dtype

    def _make_decoder(self, shard: Shard, config: EngineConfig, kernels: Kernels) -> Decoder:
        return ShardedDecoder(
            shard,
            self._group,
            self._parameters,
            self._attention,
            kernels,
            max_num_tokens=config.max_num_batched_tokens,
            max_num_rows=min(config.max_num_sequences, config.max_num_batched_tokens),
        )


class LeadingRunner(ShardedRunner):
    """That of rank 0. See ``ModelRunner``: the model that it shows is the whole one.

    ``wait_for_others`` is called when the others have been told to end.
    """

    def __init__(
        self,
        shard: Shard,
        config: EngineConfig,
        group: RankGroup,
        wait_for_others: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(shard, config, group)
        self._dismiss = weakref.finalize(self, _dismiss, group, wait_for_others)

    def close(self) -> None:
        self._dismiss()

    def forward(
        self, layout: StepLayout, last_rows_R: NDArray[np.int64], block_copies: Mapping[int, int]
    ) -> torch.Tensor:
        plan = StepPlan(layout=layout, last_rows=last_rows_R, block_copies=block_copies)
        self._group.tell(np.concatenate([np.array([Order.STEP], dtype=np.int32), self._table.pack(plan)]))
        return super().forward(layout, last_rows_R, block_copies)

    def logits_of(self, first: int, end: int) -> torch.Tensor:
        self._tell(Order.LOGITS, first, end)
        return super().logits_of(first, end)

    def load_folder(self, folder: Path) -> None:
        self._tell(Order.LOAD_FOLDER)
        super().load_folder(folder)

    def put_weight(self, name: str, tensor: torch.Tensor) -> None:
        super().put_weight(name, self._send_weight(Order.PUT_WEIGHT, name, tensor))

    def weights_changed(self) -> None:
        self._tell(Order.WEIGHTS_CHANGED)
        super().weights_changed()

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._joined(super().named_weights(), Order.GATHER_WEIGHT)

    def stage_weight(self, name: str, tensor: torch.Tensor) -> None:
        is_kept = name in self._names  # a tied head is only compared
        super().stage_weight(name, self._send_weight(Order.STAGE_WEIGHT, name, tensor) if is_kept else tensor)

    def staged_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._joined(super().staged_weights(), Order.GATHER_STAGED_WEIGHT)

    def swap_staged_weights(self) -> None:
        self._tell(Order.SWAP_STAGED_WEIGHTS)
        super().swap_staged_weights()

    def drop_staged_weights(self) -> None:
        self._tell(Order.DROP_STAGED_WEIGHTS)
        super().drop_staged_weights()

    def change_weight(self, name: str, indices: torch.Tensor, values: torch.Tensor) -> None:
        self._tell(Order.CHANGE_WEIGHT, self._names.index(name), len(indices))
        indices, values = indices.to(self._device, torch.int64), values.to(self._device, self._dtype)
        for tensor in (indices, values):
            self._group.broadcast(tensor.contiguous())
        super().change_weight(name, indices, values)

    def keep_changes(self) -> None:
        self._tell(Order.KEEP_CHANGES)
        super().keep_changes()

    def take_back_changes(self) -> None:
        self._tell(Order.TAKE_BACK_CHANGES)
        super().take_back_changes()

    def release_weights(self) -> None:
        self._tell(Order.RELEASE_WEIGHTS)
        super().release_weights()

    def restore_weights(self) -> None:
        self._tell(Order.RESTORE_WEIGHTS)
        super().restore_weights()

    def release_kv_cache(self) -> None:
        self._tell(Order.RELEASE_KV_CACHE)
        super().release_kv_cache()

    def restore_kv_cache(self) -> None:
        self._tell(Order.RESTORE_KV_CACHE)
        super().restore_kv_cache()

    def _tell(self, order: Order, *arguments: int) -> None:
        self._group.tell(np.array([order, *arguments], dtype=np.int32))

    def _send_weight(self, order: Order, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Give all ranks a whole weight, as the engine would hold it."""
        self._tell(order, self._names.index(name))
        sent = tensor.detach().to(self._device, self._dtype).contiguous()
        self._group.broadcast(sent)
        return sent

    def _joined(self, parts: Iterator[tuple[str, torch.Tensor]], order: Order) -> Iterator[tuple[str, torch.Tensor]]:
        """The whole weights, of which these are the parts of rank 0."""
        for name, part in parts:
            if not self._shard.is_split(name):
                yield name, part
            elif part.untyped_storage().nbytes() == 0:  # released
                yield name, part.new_empty(self._shard.whole_shape(name, part.shape), device="meta")
            else:
                self._tell(order, self._names.index(name))
                yield name, self._shard.join(name, self._group.gather(part))


class FollowingRunner(ShardedRunner):
    """That of the other ranks."""

    def follow(self, folder: Path) -> None:
        """Do what rank 0 tells, until it tells to end.

        Args:
            folder: where rank 0 has its weights from.

        Raises:
            WorkerFailedError: a rank is lost.
        """
        deeds = self._deeds(folder)
        while True:
            words = self._group.hear()
            order = Order(int(words[0]))
            if order is Order.CLOSE:
                return
            if order is Order.STEP:
                plan = self._table.unpack(words[1:])
                self.forward(plan.layout, plan.last_rows, plan.block_copies)
            else:
                deeds[order](*words[1:].tolist())

    def _deeds(self, folder: Path) -> dict[Order, Callable[..., object]]:
        return {
            Order.LOGITS: self.logits_of,
            Order.LOAD_FOLDER: lambda: self.load_folder(folder),
            Order.PUT_WEIGHT: lambda place: self.put_weight(self._names[place], self._receive_weight(place)),
            Order.WEIGHTS_CHANGED: self.weights_changed,
            Order.STAGE_WEIGHT: lambda place: self.stage_weight(self._names[place], self._receive_weight(place)),
            Order.SWAP_STAGED_WEIGHTS: self.swap_staged_weights,
            Order.DROP_STAGED_WEIGHTS: self.drop_staged_weights,
            Order.CHANGE_WEIGHT: self._receive_change,
            Order.KEEP_CHANGES: self.keep_changes,
            Order.TAKE_BACK_CHANGES: self.take_back_changes,
            Order.GATHER_WEIGHT: lambda place: self._group.gather(self._weight(place)),
            Order.GATHER_STAGED_WEIGHT: lambda place: self._group.gather(
                dict(self._parameters.staged())[self._names[place]]
            ),
            Order.RELEASE_WEIGHTS: self.release_weights,
            Order.RESTORE_WEIGHTS: self.restore_weights,
            Order.RELEASE_KV_CACHE: self.release_kv_cache,
            Order.RESTORE_KV_CACHE: self.restore_kv_cache,
        }

    def _weight(self, place: int) -> torch.Tensor:
        return self._weights[self._names[place]]

    def _receive_weight(self, place: int) -> torch.Tensor:
        """A whole weight."""
        part = self._weight(place)
        whole = part.new_empty(self._shard.whole_shape(self._names[place], part.shape))
        self._group.broadcast(whole)
        return whole

    def _receive_change(self, place: int, num_elements: int) -> None:
        indices = torch.empty(num_elements, dtype=torch.int64, device=self._device)
        values = torch.empty(num_elements, dtype=self._dtype, device=self._device)
        for tensor in (indices, values):
            self._group.broadcast(tensor)
        self.change_weight(self._names[place], indices, values)


def _dismiss(group: RankGroup, wait_for_others: Callable[[], None]) -> None:
    with suppress(WorkerFailedError):  # a rank that is lost need not be told
        group.tell(np.array([Order.CLOSE], dtype=np.int32))
    wait_for_others()
    group.close()
