"""AdamW on parts of the flat vector: one clipped norm for each network, and one learning rate, but for a critic's head
that has its own.

Its state is where the parameters are, or in host memory. Then it goes through the device in buckets, by two streams in
turns, so that one bucket comes while another goes::

    stream 0   ── bucket 0 in ── update ── out ── bucket 2 in ── update ── out ──
    stream 1   ─────────────── bucket 1 in ── update ── out ── bucket 3 in ──────
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from rlserve.trainers.backends.config import TorchTrainerConfig
from rlserve.trainers.backends.learning_rates import learning_rates, rate_of
from rlserve.trainers.backends.pytorch.parameters import Place
from rlserve.trainers.elastic.intervals import Interval, Intervals, difference, intersection

_BUCKET_ELEMENTS = 2**24
"""Of moments in host memory that are on the device at once, twice over: 64 MiB each of the first and the second."""
_HOST = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """AdamW's state for some elements of the flat vector, each [number of elements] float32."""

    elements: Interval
    first: Tensor
    second: Tensor

    def copied(self, device: torch.device) -> Moments:
        """A copy on some device; one in host memory is pinned if this is."""
        first, second = (_copied(moment, device) for moment in (self.first, self.second))
        return Moments(elements=self.elements, first=first, second=second)

    def part(self, elements: Interval) -> Moments:
        """Views of some of the elements."""
        where = slice(elements.first - self.elements.first, elements.end - self.elements.first)
        return Moments(elements=elements, first=self.first[where], second=self.second[where])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Piece:
    """Elements of one network whose moments this rank holds; AdamW sees each piece as a parameter."""

    network: str
    rate: str
    """Which of the learning rates is theirs."""
    elements: Interval
    parameter: nn.Parameter
    """A view of the flat vector."""
    decayed: list[Tensor]
    """Views of those elements that weight decay acts on."""
    moments: Moments


class TrainedVector(Protocol):
    """Parameters of networks, of which one optimizer updates some."""

    @property
    def vector(self) -> Tensor:
        """All, laid end to end."""

    @property
    def segments(self) -> Mapping[str, slice]:
        """Where each network's stand."""

    def named_places(self, module_name: str, /) -> Sequence[tuple[str, Place]]:
        """Where each parameter of a network stands, in order, with its name in the network."""


class ShardedAdamW:
    """AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101), with rates by schedule and clipping by norm per network.

    Updates the elements whose moments this rank holds: at first none. All that is done to an element depends on that
    element alone, so the owner of a shard and its second holder come to the same bits.
    """

    def __init__(self, config: TorchTrainerConfig, flat: TrainedVector) -> None:
        self.num_updates = 0
        self.moments: tuple[Moments, ...] = ()
        self._config = config
        self._flat = flat
        self._streams: list[torch.cuda.Stream] = []
        self.hold(())

    def new_moments(self, elements: Interval) -> Moments:
        """Zeros, in pinned host memory if the state is offloaded from a GPU."""
        device = self._flat.vector.device
        is_pinned = self._config.offload_optimizer and device.type == "cuda"
        first, second = (
            torch.zeros(elements.num_elements, device=_HOST if is_pinned else device, pin_memory=is_pinned)
            for _ in range(2)
        )
        return Moments(elements=elements, first=first, second=second)

    def hold(self, moments: Sequence[Moments]) -> None:
        """Replace the moments that this rank holds."""
        self.moments = tuple(moments)
        self._pieces = [
            self._piece(network, rate, held.part(bucket))
            for network in self._flat.segments
            for rate, elements in self._elements_by_rate(network)
            for held in self.moments
            for bucket in self._buckets(intersection(elements, held.elements))
        ]
        betas = (self._config.adam_beta1, self._config.adam_beta2)
        self._adamw = [
            torch.optim.AdamW([piece.parameter], betas=betas, weight_decay=0.0, fused=True) for piece in self._pieces
        ]

    def move(self) -> None:
        """The flat vector has moved to another device: let its moments follow, unless they stay in host memory."""
        device = self._flat.vector.device
        self.hold([held if held.first.is_pinned() else held.copied(device) for held in self.moments])

    @property
    def held(self) -> Intervals:
        """The elements whose moments this rank holds."""
        return tuple(moments.elements for moments in self.moments)

    def learning_rates(self) -> dict[str, float]:
        """Those of the next update."""
        return learning_rates(self._config, self._flat.segments, self.num_updates)

    def own_parts(self, networks: Sequence[str], gradient: Tensor) -> dict[str, list[Tensor]]:
        """What ``update`` needs of the gradient of networks that are neighbours in the vector. Copies, unless that is
        all of it, so that the rest can go."""
        first = self._flat.segments[networks[0]].start
        parts = {
            network: [
                gradient[piece.elements.first - first : piece.elements.end - first]
                for piece in self._pieces
                if piece.network == network
            ]
            for network in networks
        }
        if sum(len(part) for of_network in parts.values() for part in of_network) == len(gradient):
            return parts
        return {network: [part.clone() for part in of_network] for network, of_network in parts.items()}

    def update(self, gradients: Mapping[str, Sequence[Tensor]], norms: Mapping[str, float]) -> None:
        """Clip the gradients in place by their norms and apply them.

        Args:
            gradients: ``own_parts`` of each network.
            norms: Euclidean, of each network's whole gradient, or of those together that are trained together.
        """
        rates = self.learning_rates()
        parts = {network: iter(found) for network, found in gradients.items()}
        with self._lanes() as lanes:
            for number, (piece, adamw) in enumerate(zip(self._pieces, self._adamw, strict=True)):
                rate, norm, gradient = rates[piece.rate], norms[piece.network], next(parts[piece.network])
                with torch.cuda.stream(lanes[number % 2]) if lanes else nullcontext():
                    gradient.mul_(min(1.0, self._config.max_grad_norm / (norm + 1e-6)))
                    self._apply(piece, adamw, gradient, rate)
        self.num_updates += 1

    def _apply(self, piece: _Piece, adamw: torch.optim.AdamW, gradient: Tensor, rate: float) -> None:
        if self._config.weight_decay > 0 and piece.decayed:
            torch._foreach_mul_(piece.decayed, 1.0 - rate * self._config.weight_decay)
        is_offloaded = self._config.offload_optimizer
        moments = piece.moments.copied(gradient.device) if is_offloaded else piece.moments
        adamw.param_groups[0]["lr"] = rate
        piece.parameter.grad = gradient
        # Our own moments, so that whoever copies or sends them need not know torch's optimizer.
        adamw.state[piece.parameter] = {
            "step": torch.full((), float(self.num_updates), device=gradient.device),
            "exp_avg": moments.first,
            "exp_avg_sq": moments.second,
        }
        adamw.step()
        adamw.zero_grad()
        if is_offloaded:
            piece.moments.first.copy_(moments.first, non_blocking=True)
            piece.moments.second.copy_(moments.second, non_blocking=True)
            adamw.state.clear()

    @contextmanager
    def _lanes(self) -> Iterator[Sequence[torch.cuda.Stream]]:
        """The streams that pieces take turns in: two where moments come from and go to host memory, otherwise none but
        the current one. All that was to be done in them is done in the end."""
        device = self._flat.vector.device
        if not (self._config.offload_optimizer and device.type == "cuda"):
            yield ()
            return
        if not self._streams:  # kept, since torch keeps memory apart for each stream
            self._streams = [torch.cuda.Stream(device) for _ in range(2)]  # type: ignore[no-untyped-call]
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(device))
        yield self._streams
        for stream in self._streams:
            stream.synchronize()

    def _elements_by_rate(self, network: str) -> list[tuple[str, Interval]]:
        """A network's segment, cut where the learning rate changes."""
        segment = self._flat.segments[network]
        runs = [
            (rate, next(places)[1].elements.first)
            for rate, places in groupby(
                self._flat.named_places(network), key=lambda place: rate_of(self._config, network, place[0])
            )
        ]
        bounds = [*(first for _, first in runs), segment.stop]
        return [(rate, Interval(*bound)) for (rate, _), bound in zip(runs, pairwise(bounds), strict=True)]

    def _buckets(self, elements: Interval) -> list[Interval]:
        """All in one, or as many as go through the device one after another."""
        length = _BUCKET_ELEMENTS if self._config.offload_optimizer else max(1, elements.num_elements)
        firsts = range(elements.first, elements.end, length)
        return [Interval(first, min(first + length, elements.end)) for first in firsts]

    def _piece(self, network: str, rate: str, moments: Moments) -> _Piece:
        vector, elements = self._flat.vector, moments.elements
        # Norms and biases are the vectors among the parameters. Decay comes before the update, so it can be apart.
        decayed = [
            vector[common.elements]
            for _, place in self._flat.named_places(network)
            if place.parameter.ndim > 1 or self._config.decay_norms_and_biases
            if (common := intersection(place.elements, elements)).num_elements
        ]
        parameter = nn.Parameter(vector[elements.elements])
        return _Piece(
            network=network, rate=rate, elements=elements, parameter=parameter, decayed=decayed, moments=moments
        )


def rearranged(moments: Sequence[Moments], wanted: Intervals, optimizer: ShardedAdamW) -> list[Moments]:
    """Moments of all ``wanted`` elements: views of what is there, and zeros, to be overwritten, of what is not."""
    found = [
        held.part(part)
        for held in moments
        for each in wanted
        if (part := intersection(each, held.elements)).num_elements
    ]
    lacking = difference(wanted, [moments.elements for moments in found])
    found += [optimizer.new_moments(elements) for elements in lacking]
    return sorted(found, key=lambda moments: moments.elements)


def compacted(moments: Sequence[Moments]) -> list[Moments]:
    """The same, as copies where a view would keep more in memory than is left of it."""
    num_left: Counter[int] = Counter()
    for held in moments:
        num_left[held.first.untyped_storage().data_ptr()] += held.first.nbytes
    return [
        held if num_left[storage.data_ptr()] == storage.nbytes() else held.copied(held.first.device)
        for held in moments
        for storage in [held.first.untyped_storage()]
    ]


def joined(held: Sequence[Moments], elements: Interval, name: str) -> Tensor:
    """The ``first`` or ``second`` moments of some elements that are held; a view where they are held in one piece."""
    parts = [
        getattr(moments.part(common), name)
        for moments in sorted(held, key=lambda moments: moments.elements)
        if (common := intersection(moments.elements, elements)).num_elements
    ]
    assert sum(len(part) for part in parts) == elements.num_elements
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _copied(moment: Tensor, device: torch.device) -> Tensor:
    is_pinned = device.type == "cpu" and moment.is_pinned()
    copied = torch.empty(moment.shape, device=device, pin_memory=is_pinned)
    return copied.copy_(moment, non_blocking=device.type == "cuda")
