"""Which ``outcome`` of ``events.jsonl`` belongs to which move of ``decisions.jsonl``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def find_outcome(
    move: Mapping[str, Any], later_moves: Sequence[Mapping[str, Any]], outcomes: Iterable[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """The first outcome of the move's slot that begins before the slot's next move; None where it was not judged."""
    slot_id, begin_s = move["slot_id"], move["time_s"]
    until_s = next((each["time_s"] for each in later_moves if each["slot_id"] == slot_id), float("inf"))
    own = (each for each in outcomes if each["slot_id"] == slot_id and begin_s <= each["begin_s"] < until_s)
    return next(own, None)
