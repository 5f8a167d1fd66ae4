"""Sending parts of vectors between the ranks of a group, a bucket at a time.

Legend: N elements of a vector, W ranks.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.intervals import Interval
from rlserve.trainers.elastic.transfers import Transfer

BUCKET_ELEMENTS = 2**20
"""Most that one rank sends another, or that all ranks gather, at once: 16 MiB."""


def carry_out(
    group: Group,
    transfers: Sequence[Transfer],
    read: Callable[[Interval], Tensor],
    write: Callable[[Interval, Tensor], None],
    *,
    device: torch.device,
) -> None:
    """Send what a plan says; all ranks call this with the same plan.

    Args:
        read: gives some float32 elements that this rank has, on any device; they lie within one transfer of the plan.
        write: is given some elements that came in.
    """
    rounds = _rounds(transfers)
    ranks = range(group.num_ranks)
    for parts in rounds:
        outgoing = [
            [part.elements for part in parts if (part.source, part.destination) == (group.rank, rank)] for rank in ranks
        ]
        incoming = [
            [part.elements for part in parts if (part.source, part.destination) == (rank, group.rank)] for rank in ranks
        ]
        sent = [read(elements) for each in outgoing for elements in each]
        received = group.all_to_all(
            torch.cat(sent).to(device) if sent else torch.empty(0, device=device),
            send_sizes=[sum(elements.num_elements for elements in each) for each in outgoing],
            receive_sizes=[sum(elements.num_elements for elements in each) for each in incoming],
        )
        arrived = [elements for each in incoming for elements in each]
        for elements, values in zip(
            arrived, torch.split(received, [each.num_elements for each in arrived]), strict=True
        ):
            write(elements, values)


def gather_shards(group: Group, vector: Tensor, shards: Sequence[Interval]) -> None:
    """Fill ``vector`` [N] with what the ranks have: elements ``shards[r]`` come from rank r's."""
    longest = max(shard.num_elements for shard in shards)
    bucket_length = max(1, BUCKET_ELEMENTS // group.num_ranks)
    for first in range(0, longest, bucket_length):
        length = min(bucket_length, longest - first)
        parts = [
            slice(min(shard.first + first, shard.end), min(shard.first + first + length, shard.end)) for shard in shards
        ]
        own = vector[parts[group.rank]]
        padded = torch.nn.functional.pad(own, (0, length - len(own)))
        for rank, (part, values) in enumerate(zip(parts, group.all_gather(padded), strict=True)):
            if rank != group.rank:
                vector[part] = values[: part.stop - part.start]


def exchange_notes(group: Group, note: Any, device: torch.device) -> list[Any]:
    """Every rank's note, in rank order: small things that JSON knows."""
    content = torch.frombuffer(bytearray(json.dumps(note).encode()), dtype=torch.uint8).to(device)
    sizes = [int(size) for size in group.all_gather(torch.tensor([len(content)], device=device))]
    padded = torch.nn.functional.pad(content, (0, max(sizes) - len(content)))
    gathered = group.all_gather(padded)
    return [json.loads(bytes(part[:size].tolist())) for part, size in zip(gathered, sizes, strict=True)]


def _rounds(transfers: Sequence[Transfer]) -> list[list[Transfer]]:
    """Cut the transfers, so that in each round no rank sends another more than a bucket."""
    rounds: dict[int, list[Transfer]] = defaultdict(list)
    num_planned: dict[tuple[int, int], int] = defaultdict(int)
    for transfer in transfers:
        pair, at = (transfer.source, transfer.destination), transfer.elements.first
        while at < transfer.elements.end:
            number, filled = divmod(num_planned[pair], BUCKET_ELEMENTS)
            end = min(transfer.elements.end, at + BUCKET_ELEMENTS - filled)
            rounds[number].append(
                Transfer(source=transfer.source, destination=transfer.destination, elements=Interval(at, end))
            )
            num_planned[pair] += end - at
            at = end
    return [rounds[number] for number in sorted(rounds)]
