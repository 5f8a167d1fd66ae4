"""Which gangs trained and which rolled out, over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rlserve.tracking.timeline.ownership import WORKING, SlotTimeline


@dataclass(frozen=True, kw_only=True)
class Split:
    """Gangs in each role; fractions of one where an ideal is asked for."""

    num_train: float
    rollout: tuple[tuple[str, float], ...]
    """Type and number, sorted."""

    @property
    def num_rollout(self) -> float:
        """Of all types."""
        return sum(number for _, number in self.rollout)


@dataclass(frozen=True, kw_only=True)
class SplitPiece:
    """A time with one split."""

    begin_s: float
    end_s: float
    split: Split


def split_of(num_train: float, rollout: Mapping[str, float]) -> Split:
    """With the types in order, those of which there is none left out."""
    return Split(num_train=num_train, rollout=tuple(sorted(each for each in rollout.items() if each[1] > 0)))


def split_pieces(rows: Sequence[SlotTimeline]) -> tuple[SplitPiece, ...]:
    """One piece after the other; gangs on their way belong to neither role."""
    leaders = {row.gang_id: row for row in reversed(rows)}.values()
    changes: list[tuple[float, str, str, int]] = []
    for row in leaders:
        for part in row.intervals:
            if part.owner in WORKING:
                changes += [(part.start_s, part.owner, row.slot_type, 1), (part.end_s, part.owner, row.slot_type, -1)]
    num_train, rollout = 0, Counter[str]()
    pieces: list[SplitPiece] = []
    changes.sort(key=lambda change: change[0])
    ends_s = [change[0] for change in changes[1:]]
    for (time_s, owner, type_name, number), end_s in zip(changes, ends_s, strict=False):
        if owner == "train":
            num_train += number
        else:
            rollout[type_name] += number
        if end_s > time_s:
            pieces.append(SplitPiece(begin_s=time_s, end_s=end_s, split=split_of(num_train, rollout)))
    return _joined(pieces)


def split_at(pieces: Sequence[SplitPiece], time_s: float) -> Split | None:
    """The split just before a time; None before the first."""
    return next((piece.split for piece in reversed(pieces) if piece.begin_s < time_s), None)


def shares(pieces: Sequence[SplitPiece], begin_s: float, end_s: float) -> tuple[tuple[Split, float], ...]:
    """Of a time, the share that each split had."""
    spent: dict[Split, float] = {}
    for piece in pieces:
        duration_s = min(piece.end_s, end_s) - max(piece.begin_s, begin_s)
        if duration_s > 0.0:
            spent[piece.split] = spent.get(piece.split, 0.0) + duration_s
    return tuple((split, duration_s / (end_s - begin_s)) for split, duration_s in spent.items())


def _joined(pieces: Sequence[SplitPiece]) -> tuple[SplitPiece, ...]:
    """Neighbours with the same split are one."""
    begins = [index for index in range(len(pieces)) if index == 0 or pieces[index].split != pieces[index - 1].split]
    return tuple(
        SplitPiece(begin_s=pieces[first].begin_s, end_s=pieces[last - 1].end_s, split=pieces[first].split)
        for first, last in pairwise([*begins, len(pieces)])
    )
