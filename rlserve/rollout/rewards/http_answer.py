"""Reading what a reward server answered: nothing is guessed, and nothing that is wrong is passed over."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from rlserve.rollout.rewards.base import Score
from rlserve.rollout.rewards.score_values import SCORE_KEY

_ID_KEY = "id"


class LieError(Exception):
    """An answer that is none; the message says what is wrong with it."""


def read_answer(body: bytes, ids: Sequence[str]) -> list[Score]:
    """The scores in ``{"scores": [{"id": "0:5/1", "score": 0.5, …}, …]}``, in the order of ``ids``.

    Raises:
        LieError: it is no JSON, an id is missing, unknown or twice there, or a number is not finite.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise LieError(f"the answer is no JSON ({error})") from None
    if not isinstance(answer, dict) or not isinstance(answer.get("scores"), list):
        raise LieError('the answer is no object with a list under "scores"')
    entries = answer["scores"]
    if len(entries) != len(ids):
        raise LieError(f"the answer has {len(entries)} scores for {len(ids)} samples")
    scores: dict[str, Score] = {}
    for entry in entries:
        if not isinstance(entry, dict) or _ID_KEY not in entry or SCORE_KEY not in entry:
            raise LieError(f'a score is no object with "id" and "score": {entry!r:.80}')
        name = entry[_ID_KEY]
        if not isinstance(name, str) or name in scores:
            raise LieError(f"an id is {'there twice' if isinstance(name, str) else 'no text'}: {name!r:.80}")
        scores[name] = _read_score(entry)
    missing = next((name for name in ids if name not in scores), None)
    if missing is not None:
        unknown = next(name for name in scores if name not in ids)
        raise LieError(f"the answer lacks the id {missing}, and has one that was not asked for: {unknown:.80}")
    return [scores[name] for name in ids]


def _read_score(entry: dict[str, Any]) -> Score:
    value = entry[SCORE_KEY]
    others = {name: number for name, number in entry.items() if name not in (_ID_KEY, SCORE_KEY)}
    numbers = {name: number for name, number in others.items() if isinstance(number, int | float)}
    if value is not None and not isinstance(value, int | float):
        raise LieError(f"the score of {entry[_ID_KEY]} must be a number or null, but is {value!r:.80}")
    for name, number in ({SCORE_KEY: value} if value is not None else {}).items() | numbers.items():
        if not _is_finite(number):
            raise LieError(f"{name} of {entry[_ID_KEY]} must be finite, but is {number!r:.80}")
    parts = {name: float(number) for name, number in numbers.items()}
    return Score(value=None if value is None else float(value), parts=parts)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond any float
        return False
