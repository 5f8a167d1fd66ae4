"""The model runners of the ranks: rank 0's does what a plain one does and has the others do the same.

    rank 0     forward, put_weights, release_weights, … ─► send (order, arguments) ──► the same on its own part
                                                                 │    ▲
    others     follow: receive ◄─────────────────────────────────┘    │ sums, parts of logits and weights
                 └──► the same on their own parts ────────────────────┘

Weights come to rank 0 whole. They go to all ranks by broadcast, in the engine's type and a few at a time, and every
rank cuts its own parts out of them. ``named_weights`` joins the parts again, a few at a time too: no rank ever needs
memory for the whole model.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.adapters.adapter import Adapter, StepAdapters
from rlserve.engine.adapters.folder import read_adapter
from rlserve.engine.attention.base import StepLayout
from rlserve.engine.config import EngineConfig
from rlserve.engine.decoder.decoder import Decoder
from rlserve.engine.decoder.parameters import WeightChanges
from rlserve.engine.kernels.base import Kernels
from rlserve.engine.models.shard import Shard
from rlserve.engine.parallel.base import RankGroup
from rlserve.engine.parallel.orders import BlockTable, Order, StepPlan
from rlserve.engine.parallel.sent_adapters import receive_matrices, send_matrices, words_of
from rlserve.engine.parallel.sharded_decoder import ShardedDecoder
from rlserve.engine.runner.model_runner import ModelRunner
from rlserve.engine.runner.step_adapters import step_adapters
from rlserve.errors import WorkerFailedError

_BUCKET_BYTES = 64 * 2**20
"""Of weights that go from rank to rank at once."""
_BYTES_OF_CHANGE = 12
"""Of a changed element on its way: index and value."""


def buckets(num_bytes: Mapping[str, int]) -> Iterator[list[str]]:
    """The names in order, as many at a time as stay within the size of a bucket, but at least one."""
    bucket: list[str] = []
    size = 0
    for name, own_bytes in num_bytes.items():
        if bucket and size + own_bytes > _BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(name)
        size += own_bytes
    if bucket:
        yield bucket


class ShardedRunner(ModelRunner):
    """Computes one rank's part; all ranks must call the same methods in the same order."""

    def __init__(self, shard: Shard, config: EngineConfig, group: RankGroup) -> None:
        self._group = group
        super().__init__(shard, config)
        self._table = BlockTable(
            min(config.max_num_sequences, config.max_num_batched_tokens),
            -(-self.max_model_len // config.block_size),
            config.block_size,
        )
        self._weights = dict(self._parameters.named())
        self._names = list(self._weights)
        self._places = {name: place for place, name in enumerate(self._names)}
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

    def _whole_shape(self, name: str) -> torch.Size:
        return torch.Size(self._shard.whole_shape(name, self._weights[name].shape))

    def _whole_weights(self, names: Sequence[str], flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """The named weights, which lie in ``flat`` one behind the other."""
        shapes = [self._whole_shape(name) for name in names]
        parts = torch.split(flat, [shape.numel() for shape in shapes])
        return {name: part.view(shape) for name, shape, part in zip(names, shapes, parts, strict=True)}


class LeadingRunner(ShardedRunner):
    """That of rank 0. See ``ModelRunner``: the model that it shows is the whole one.

    ``wait_for_others`` is called when the others have been sent the order to end.
    """

    def __init__(
        self,
        shard: Shard,
        config: EngineConfig,
        group: RankGroup,
        wait_for_others: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(shard, config, group)
        self._adapters: dict[int, weakref.ref[Adapter]] = {}
        """Those that the others have, by number; gone where no request and no name has them any more."""
        self._finalize = weakref.finalize(self, _end_others, group, wait_for_others)

    def close(self) -> None:
        self._finalize()

    def load_adapter(self, number: int, name: str, folder: Path) -> Adapter:
        matrices = read_adapter(folder, self._shard.whole)
        self._forget_adapters()
        self._send(Order.LOAD_ADAPTER, number, *words_of(matrices))
        send_matrices(self._group, matrices, self._parameters.final_norm)
        adapter = self._adapter(number, name, matrices)
        self._adapters[number] = weakref.ref(adapter)
        return adapter

    def forward(
        self,
        layout: StepLayout,
        last_rows_R: NDArray[np.int64],
        block_copies: Mapping[int, int],
        adapters: StepAdapters | None = None,
    ) -> torch.Tensor:
        self._forget_adapters()
        ids = np.empty(0, dtype=np.int64) if adapters is None else adapters.ids_S
        plan = StepPlan(layout=layout, last_rows=last_rows_R, block_copies=block_copies, adapter_ids=ids)
        self._group.send(np.concatenate([np.array([Order.STEP], dtype=np.int32), self._table.pack(plan)]))
        return super().forward(layout, last_rows_R, block_copies, adapters)

    def logits_of(self, first: int, end: int) -> torch.Tensor:
        self._send(Order.LOGITS, first, end)
        return super().logits_of(first, end)

    def load_folder(self, folder: Path) -> None:
        self._send(Order.LOAD_FOLDER)
        super().load_folder(folder)

    def put_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for sent in self._sent(Order.PUT_WEIGHTS, tensors):
            super().put_weights(sent)

    def weights_changed(self) -> None:
        self._send(Order.WEIGHTS_CHANGED)
        super().weights_changed()

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._joined(Order.GATHER_WEIGHTS, self._weights)

    def keep_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().keep_weights({name: tensor for name, tensor in tensors.items() if name not in self._weights})
        tensors = {name: tensor for name, tensor in tensors.items() if name in self._weights}
        for sent in self._sent(Order.KEEP_WEIGHTS, tensors):
            super().keep_weights(sent)

    def staged_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._joined(Order.GATHER_STAGED_WEIGHTS, self._parameters.staged)

    def swap_staged_weights(self) -> None:
        self._send(Order.SWAP_STAGED_WEIGHTS)
        super().swap_staged_weights()

    def drop_staged_weights(self) -> None:
        self._send(Order.DROP_STAGED_WEIGHTS)
        super().drop_staged_weights()

    def put_changes(self, changes: WeightChanges) -> None:
        for names in buckets({name: len(indices) * _BYTES_OF_CHANGE for name, (indices, _) in changes.items()}):
            indices = [changes[name][0].to(self._device, torch.int64) for name in names]
            values = [changes[name][1].to(self._device, self._dtype) for name in names]
            self._send(Order.PUT_CHANGES, *self._places_of(names), *map(len, indices))
            self._group.broadcast(torch.cat(indices))
            self._group.broadcast(torch.cat(values))
            super().put_changes(dict(zip(names, zip(indices, values, strict=True), strict=True)))

    def keep_changes(self) -> None:
        self._send(Order.KEEP_CHANGES)
        super().keep_changes()

    def take_back_changes(self) -> None:
        self._send(Order.TAKE_BACK_CHANGES)
        super().take_back_changes()

    def release_weights(self) -> None:
        self._send(Order.RELEASE_WEIGHTS)
        super().release_weights()

    def restore_weights(self) -> None:
        self._send(Order.RESTORE_WEIGHTS)
        super().restore_weights()

    def release_kv_cache(self) -> None:
        self._send(Order.RELEASE_KV_CACHE)
        super().release_kv_cache()

    def restore_kv_cache(self) -> None:
        self._send(Order.RESTORE_KV_CACHE)
        super().restore_kv_cache()

    def _forget_adapters(self) -> None:
        gone = [number for number, adapter in self._adapters.items() if adapter() is None]
        if gone:
            self._send(Order.FORGET_ADAPTERS, *gone)
        for number in gone:
            del self._adapters[number]

    def _send(self, order: Order, *arguments: int) -> None:
        self._group.send(np.array([order, *arguments], dtype=np.int32))

    def _places_of(self, names: Iterable[str]) -> list[int]:
        return [self._places[name] for name in names]

    def _sent(self, order: Order, tensors: Mapping[str, torch.Tensor]) -> Iterator[Mapping[str, torch.Tensor]]:
        """Give all ranks whole weights, a few at a time; these as the engine would hold them."""
        for names in buckets({name: tensor.numel() * self._dtype.itemsize for name, tensor in tensors.items()}):
            self._send(order, *self._places_of(names))
            flat = torch.cat([tensors[name].detach().to(self._device, self._dtype).flatten() for name in names])
            self._group.broadcast(flat)
            yield self._whole_weights(names, flat)

    def _joined(self, order: Order, parts: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """The whole weights, of which these are the parts of rank 0."""
        for names in buckets({name: part.numel() * self._dtype.itemsize for name, part in parts.items()}):
            split = [name for name in names if self._shard.is_split(name)]
            whole = {}
            if split:
                self._send(order, *self._places_of(split))
                whole = self._gathered(split, parts)
            yield from ((name, whole[name] if name in split else parts[name]) for name in names)

    def _gathered(self, names: list[str], parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        sizes = [parts[name].numel() for name in names]
        flats = self._group.gather(torch.cat([parts[name].flatten() for name in names]))
        by_name = zip(names, *(torch.split(flat, sizes) for flat in flats), strict=True)
        return {
            name: self._shard.join(name, [part.view(parts[name].shape) for part in of_ranks])
            for name, *of_ranks in by_name
        }


class FollowingRunner(ShardedRunner):
    """That of the other ranks."""

    def __init__(self, shard: Shard, config: EngineConfig, group: RankGroup) -> None:
        super().__init__(shard, config, group)
        self._adapters: dict[int, Adapter] = {}

    def follow(self, folder: Path) -> None:
        """Do what rank 0 orders, until it closes.

        Args:
            folder: where rank 0 has its weights from.

        Raises:
            WorkerFailedError: a rank is lost.
        """
        handlers = self._handlers(folder)
        while True:
            words = self._group.receive()
            order = Order(int(words[0]))
            if order is Order.CLOSE:
                return
            if order is Order.STEP:
                plan = self._table.unpack(words[1:])
                adapters = step_adapters(plan.layout, plan.adapter_ids, self._adapters, self._device)
                self.forward(plan.layout, plan.last_rows, plan.block_copies, adapters)
            else:
                handlers[order](*words[1:].tolist())

    def _handlers(self, folder: Path) -> dict[Order, Callable[..., object]]:
        return {
            Order.LOGITS: self.logits_of,
            Order.LOAD_FOLDER: lambda: self.load_folder(folder),
            Order.PUT_WEIGHTS: lambda *places: self.put_weights(self._receive_weights(places)),
            Order.WEIGHTS_CHANGED: self.weights_changed,
            Order.KEEP_WEIGHTS: lambda *places: self.keep_weights(self._receive_weights(places)),
            Order.SWAP_STAGED_WEIGHTS: self.swap_staged_weights,
            Order.DROP_STAGED_WEIGHTS: self.drop_staged_weights,
            Order.PUT_CHANGES: lambda *words: self.put_changes(self._receive_changes(words)),
            Order.KEEP_CHANGES: self.keep_changes,
            Order.TAKE_BACK_CHANGES: self.take_back_changes,
            Order.GATHER_WEIGHTS: lambda *places: self._show(places, self._weights),
            Order.GATHER_STAGED_WEIGHTS: lambda *places: self._show(places, self._parameters.staged),
            Order.RELEASE_WEIGHTS: self.release_weights,
            Order.RESTORE_WEIGHTS: self.restore_weights,
            Order.RELEASE_KV_CACHE: self.release_kv_cache,
            Order.RESTORE_KV_CACHE: self.restore_kv_cache,
            Order.LOAD_ADAPTER: self._receive_adapter,
            Order.FORGET_ADAPTERS: self._forget,
        }

    def _receive_weights(self, places: Iterable[int]) -> Mapping[str, torch.Tensor]:
        names = [self._names[place] for place in places]
        num_elements = sum(self._whole_shape(name).numel() for name in names)
        flat = torch.empty(num_elements, dtype=self._dtype, device=self._device)
        self._group.broadcast(flat)
        return self._whole_weights(names, flat)

    def _receive_changes(self, words: Sequence[int]) -> WeightChanges:
        num_weights = len(words) // 2
        counts = list(words[num_weights:])
        indices = torch.empty(sum(counts), dtype=torch.int64, device=self._device)
        values = torch.empty(sum(counts), dtype=self._dtype, device=self._device)
        self._group.broadcast(indices)
        self._group.broadcast(values)
        pairs = zip(torch.split(indices, counts), torch.split(values, counts), strict=True)
        return dict(zip((self._names[place] for place in words[:num_weights]), pairs, strict=True))

    def _receive_adapter(self, number: int, *words: int) -> None:
        matrices = receive_matrices(self._group, words, self._shard.whole, self._parameters.final_norm)
        self._adapters[number] = self._adapter(number, "", matrices)

    def _forget(self, *numbers: int) -> None:
        for number in numbers:
            del self._adapters[number]

    def _show(self, places: Iterable[int], parts: Mapping[str, torch.Tensor]) -> None:
        """Give rank 0 some parts."""
        self._group.gather(torch.cat([parts[self._names[place]].flatten() for place in places]))


def _end_others(group: RankGroup, wait_for_others: Callable[[], None]) -> None:
    with suppress(WorkerFailedError):  # a rank that is lost need not be asked
        group.send(np.array([Order.CLOSE], dtype=np.int32))
    wait_for_others()
    group.close()
