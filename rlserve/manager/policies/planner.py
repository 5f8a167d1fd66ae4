"""The slow planner: a linear programme for the best split, as if gangs could be divided.

    maximise X    subject to    Σ x_i r_i ≥ X,    Σ (n_i - x_i) s_i ≥ X,    0 ≤ x_i ≤ n_i

for ``n_i`` gangs of type i, of which ``x_i`` roll out: one makes ``r_i`` prompt groups a second in rollout and trains
``s_i`` in training. Moves cost nothing in it, so its rate bounds what any policy can reach, and its split says where
the quick rule has to look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TypeRates:
    """Gangs of one type, and what one of them does in each role."""

    type: str
    num_gangs: int
    rollout_rate: float
    """Prompt groups a second that training can use."""
    train_rate: float
    """Prompt groups a second."""


@dataclass(frozen=True, kw_only=True)
class FluidOptimum:
    """The solution."""

    rate: float
    """Prompt groups a second."""
    num_rollout: tuple[float, ...]
    """Of each type, in the order given."""


@cache
def load_solver() -> Callable[..., Any]:
    """``linprog``. Its import takes half a second, which runs that never plan are spared."""
    from scipy.optimize import linprog

    return linprog  # type: ignore[no-any-return]


def fluid_optimum(types: Sequence[TypeRates]) -> FluidOptimum:
    """The best division of these gangs; ``types`` is not empty."""
    solution = load_solver()(
        c=[-1.0, *(0.0 for _ in types)],
        A_ub=[
            [1.0, *(-each.rollout_rate for each in types)],
            [1.0, *(each.train_rate for each in types)],
        ],
        b_ub=[0.0, sum(each.num_gangs * each.train_rate for each in types)],
        bounds=[(0.0, None), *((0.0, each.num_gangs) for each in types)],
        method="highs",
    )
    rate, *num_rollout = solution.x.tolist()
    return FluidOptimum(rate=rate, num_rollout=tuple(num_rollout))
