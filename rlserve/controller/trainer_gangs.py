"""Which trainers come, leave and are lost together. Pure: plain data in, plain data out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class TrainerGangs:
    """The slots of the gang of each slot that ever was a member of the trainers' group."""

    def __init__(self) -> None:
        self._gangs: dict[str, tuple[str, ...]] = {}

    def note(self, slot_ids: Sequence[str]) -> None:
        """These slots are one gang."""
        self._gangs |= dict.fromkeys(slot_ids, tuple(slot_ids))

    def common_size(self, members: Sequence[str]) -> int:
        """Members of each gang; 1 where gangs are of several sizes, or one is incomplete."""
        gangs = {self._gangs[member] for member in members}
        sizes = {len(gang) for gang in gangs}
        return sizes.pop() if len(sizes) == 1 and sum(map(len, gangs)) == len(members) else 1

    def without(self, members: Sequence[str], lost: Collection[str], *, holders: Collection[str]) -> tuple[str, ...]:
        """The members of gangs that lost nobody; where none of these is a holder of the state, whoever is left."""
        broken = {mate for member in lost for mate in self._gangs[member]}
        whole = tuple(member for member in members if member not in broken)
        if whole and whole[0] in holders:
            return whole
        return tuple(member for member in members if member not in lost)

    def one_of_each(self, lost: Mapping[str, T]) -> list[tuple[str, T]]:
        """Of each gang that lost members, the last of them."""
        return list({self._gangs[member]: (member, found) for member, found in lost.items()}.values())
