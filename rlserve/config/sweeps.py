"""Several runs from one line of overrides, in Hydra's grammar of sweeps.

::

    trainer.learning_rate=1e-5,1e-6    seed=range(1,4)    pool.num_initial_rollout=choice(1,2)    algorithm=ppo,grpo
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from rlserve.errors import UserError


def expand_sweep(overrides: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The overrides of each run: every combination, the last sweep changing fastest.

    Raises:
        UserError: nothing has more than one value.
    """
    parser = OverridesParser.create()
    choices = [_choices(parser, text) for text in overrides]
    if all(len(values) == 1 for values in choices):
        raise UserError("a sweep needs a key with several values, for instance trainer.learning_rate=1e-5,1e-6")
    return tuple(product(*choices))


def _choices(parser: OverridesParser, text: str) -> list[str]:
    try:
        parsed = parser.parse_override(text)
    except HydraException:
        return [text]  # one value, which need not be in Hydra's grammar: whoever loads it says what is wrong
    if not parsed.is_sweep_override():
        return [text]
    return [f"{text.partition('=')[0]}={value}" for value in parsed.sweep_string_iterator()]
