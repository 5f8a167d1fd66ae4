"""Where each parameter stands in one vector of all of them, and which of it ZeRO leaves to which rank. Pure.

::

    vector     policy …            critic …            reference …
    stage 1, 2 of each network: those with weight decay end to end, cut evenly; the others end to end, cut evenly;
               a critic's head with a learning rate of its own apart from both
    stage 3    each parameter is cut evenly

The vector is never in memory. It names elements, so that ranks can tell each other what they hold.

Legend: N elements of the vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rlserve.trainers.backends.base import CRITIC, POLICY
from rlserve.trainers.backends.config import OptimizationConfig
from rlserve.trainers.backends.learning_rates import rate_of
from rlserve.trainers.backends.spread.whole_tensors import SpreadTensor
from rlserve.trainers.elastic.intervals import Interval, Intervals, union

REFERENCE = "reference"

_ALIGNMENT = 2
"""DeepSpeed lengthens what it cuts into as many parts as there are ranks to a multiple of this for each."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one parameter stands in the vector."""

    network: str
    name: str
    """In its network."""
    shape: torch.Size
    elements: Interval
    is_decayed: bool
    """Whether weight decay acts on it."""
    rate: str
    """Which of the learning rates is its own."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Elements of the vector, and where the first of them stands in one of DeepSpeed's own."""

    elements: Interval
    offset: int


class ParameterLayout:
    """Of the trained parameters of policy and critic, and all of the reference; equal on all ranks."""

    def __init__(self, networks: Mapping[str, nn.Module], config: OptimizationConfig) -> None:
        """Without LoRA the reference is among ``networks``."""
        self.places: dict[str, dict[str, Place]] = {}
        offset = 0
        for network in (POLICY, CRITIC, REFERENCE):
            if network not in networks:
                continue
            self.places[network] = {}
            for name, parameter in networks[network].named_parameters():
                if parameter.requires_grad or network == REFERENCE:
                    elements = Interval(offset, offset + parameter.numel())
                    self.places[network][name] = Place(
                        network=network,
                        name=name,
                        shape=parameter.shape,
                        elements=elements,
                        is_decayed=config.decay_norms_and_biases or parameter.ndim > 1,
                        rate=rate_of(config, network, name),
                    )
                    offset = elements.end
        self.num_elements = offset
        """N."""

    @property
    def trained(self) -> tuple[str, ...]:
        """The networks that are trained."""
        return tuple(network for network in self.places if network != REFERENCE)

    @property
    def num_trained_elements(self) -> int:
        """Of the vector, those that come first and have an optimizer's state."""
        return max(place.elements.end for network in self.trained for place in self.places[network].values())

    def moments_of(self, rank: int, num_ranks: int, zero_stage: int) -> Intervals:
        """The elements whose optimizer's state, and float32 parameters, a rank has."""
        if zero_stage == 0:
            return (Interval(0, self.num_trained_elements),)
        return union(
            span.elements
            for network in self.trained
            for part in parts_of_rank(list(self.places[network].values()), rank, num_ranks, zero_stage)
            for span in part
        )

    def parameters_of(self, rank: int, num_ranks: int, zero_stage: int) -> Intervals:
        """The elements whose parameters a rank has for certain: those of its optimizer, and its part of the reference,
        which only stage 3 cuts up."""
        reference = list(self.places.get(REFERENCE, {}).values())
        if zero_stage == 3:
            frozen = [span.elements for span in shards_of_rank(reference, rank, num_ranks)]
        else:
            frozen = [place.elements for place in reference]
        return union((*self.moments_of(rank, num_ranks, zero_stage), *frozen))

    def spread_policy(self, num_ranks: int) -> list[SpreadTensor]:
        """Under stage 3, the policy's tensors, with what each rank of a group has of them."""
        return [
            SpreadTensor(
                name=place.name,
                shape=place.shape,
                elements=place.elements,
                held=tuple(
                    tuple(span.elements for span in shards_of_rank([place], rank, num_ranks))
                    for rank in range(num_ranks)
                ),
            )
            for place in self.places[POLICY].values()
        ]

    def written_by(self, rank: int, num_ranks: int, zero_stage: int, prefix: str) -> Intervals:
        """The elements that a rank writes of a checkpoint, each once: of parameters (``prefix`` is empty) or of a
        moment. Of what all have alike each writes a part."""
        held = self.moments_of(rank, num_ranks, zero_stage)
        if zero_stage == 0:
            held = (_even_part(Interval(0, self.num_trained_elements), rank, num_ranks),)
        if prefix:
            return held
        if zero_stage == 3:
            return self.parameters_of(rank, num_ranks, zero_stage)
        return union((*held, _even_part(Interval(self.num_trained_elements, self.num_elements), rank, num_ranks)))


def parts_of_rank(places: Sequence[Place], rank: int, num_ranks: int, zero_stage: int) -> Iterator[list[Span]]:
    """What of one network's parameters a rank has, one list for each of DeepSpeed's vectors of stages 1 to 3."""
    for group in optimizer_groups(places):
        yield shards_of_rank(group, rank, num_ranks) if zero_stage == 3 else partition_of_rank(group, rank, num_ranks)


def optimizer_groups(places: Sequence[Place]) -> list[list[Place]]:
    """One network's parameters by learning rate and weight decay, none of them empty: what the optimizer treats
    alike."""
    groups: dict[tuple[str, bool], list[Place]] = {}
    for place in places:
        groups.setdefault((place.rate, place.is_decayed), []).append(place)
    return list(groups.values())


def partition_of_rank(places: Sequence[Place], rank: int, num_ranks: int) -> list[Span]:
    """As stages 1 and 2 cut parameters that lie end to end."""
    num_elements, step = sum(place.elements.num_elements for place in places), _ALIGNMENT * num_ranks
    length = -(-num_elements // step) * _ALIGNMENT
    first, at, spans = rank * length, 0, []
    for place in places:
        begin, end = max(at, first), min(at + place.elements.num_elements, first + length)
        if begin < end:
            elements = Interval(place.elements.first + begin - at, place.elements.first + end - at)
            spans.append(Span(elements=elements, offset=begin - first))
        at += place.elements.num_elements
    return spans


def shards_of_rank(places: Sequence[Place], rank: int, num_ranks: int) -> list[Span]:
    """As stage 3 cuts each parameter."""
    at, spans = 0, []
    for place in places:
        length = -(-place.elements.num_elements // num_ranks)
        first = place.elements.first + rank * length
        elements = Interval(first, min(first + length, place.elements.end))
        if elements.num_elements > 0:
            spans.append(Span(elements=elements, offset=at))
        at += length
    return spans


def _even_part(elements: Interval, rank: int, num_ranks: int) -> Interval:
    bounds = [elements.first + index * elements.num_elements // num_ranks for index in (rank, rank + 1)]
    return Interval(*bounds)
