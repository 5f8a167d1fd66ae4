"""Reading what a reward function returned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from rlserve.rollout.rewards.base import Score

SCORE_KEY = "score"
"""Of a mapping that a reward function returned: what is trained on. verl has the same name."""


def read_score(value: Any) -> Score:
    """The score that a returned value stands for.

    ======================================================  ==========================================================
    a number, True or False, a Decimal or Fraction, an      the reward
    array or tensor of one element
    None                                                    the answer is left out
    a mapping with ``score``                                ``score`` is read like the above; its other finite numbers
                                                            are parts, the rest of it is passed over
    ======================================================  ==========================================================

    Anything else is an error, and so is a reward that is not finite.
    """
    if value is None:
        return Score()
    if not isinstance(value, Mapping):
        number = read_number(value)
        if number is None or not math.isfinite(number):
            return Score(error=f"must return a finite number, None or a dict with 'score', but returned {_show(value)}")
        return Score(value=number)
    if SCORE_KEY not in value:
        keys = ", ".join(repr(key) for key in value) or "nothing"
        return Score(error=f"returned a dict without 'score': it has {keys:.200}")
    numbers = {str(name): _finite(part) for name, part in value.items() if name != SCORE_KEY}
    parts = {name: number for name, number in numbers.items() if number is not None}
    if value[SCORE_KEY] is None:
        return Score(parts=parts)
    number = read_number(value[SCORE_KEY])
    if number is None or not math.isfinite(number):
        return Score(error=f"returned a dict whose 'score' must be a finite number or None: {_show(value[SCORE_KEY])}")
    return Score(value=number, parts=parts)


def read_number(value: Any) -> float | None:
    """``value`` as a float, which may be infinite or NaN; None where it is no number."""
    if isinstance(value, Real | np.bool_ | Decimal):
        return _to_float(value)
    item = getattr(value, "item", None)
    if not callable(item):
        return None
    try:
        element = item()
    except (TypeError, ValueError, RuntimeError):  # arrays and tensors of several elements
        return None
    return _to_float(element) if isinstance(element, Real | np.bool_ | Decimal) else None


def _to_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except ValueError:  # a signalling NaN of decimal
        return math.nan


def _finite(value: Any) -> float | None:
    number = read_number(value)
    return number if number is not None and math.isfinite(number) else None


def _show(value: Any) -> str:
    return f"{value!r:.80} ({type(value).__name__})"
