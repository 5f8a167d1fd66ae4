"""When to move: the best control of a fluid between two taps and a tank, by dynamic programming.

    rollout ── g(split, x) ──►  tank: x finished groups in stock  ── s(split) ──► training

Work is a fluid: rollout makes g groups a second that training can use, and less the fuller the tank is, since what is
in stock counts against the limit of live groups; training takes s, or what comes in where the tank is empty. Gangs
cannot be divided, so no split has g = s. But the tank bridges the difference: with a split on each side of the best
division, one fills it and one empties it, and training is never slower than it has to be. So a move is worth as much as
the stock at that moment says: to rollout when it runs out, to training when it fills up.

The value of a split and a stock is what is trained from then on, discounted over the horizon for which rates are
trusted (Bellman 1957):

    V(split, x) = max over splits m of   W(m, x) - cost of the moves to m
    W(m, x)     = groups trained by m in a stage  +  e^(-stage / horizon)  V(m, stock after the stage)

solved by value iteration on a grid. A change of the load shows at once in g, and where that is known late, in x. Where
the load goes to and fro, V after a stage is mixed with that under the mean load, as probable as a change is by then: so
the stock is worth keeping, and gangs are not sent after every swing.

Legend: M splits, X grid points of the stock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

_NUM_SUBSTEPS = 4
"""Of a stage, in which flows are constant."""
_TOLERANCE = 1e-4
"""Of what a stage trains: only differences of values count, and once all change by the same between two sweeps, these
are known."""
_MAX_SWEEPS = 200


@dataclass(frozen=True, kw_only=True)
class Flows:
    """What each split does, by stock."""

    stocks: Array
    """[X], evenly spaced from 0."""
    generated: Array
    """[M, X] groups that training can use, a second."""
    trained: Array
    """[M] groups a second while there is stock."""
    balanced: Array
    """[M] groups trained a second with none, where rollout is behind."""


@dataclass(frozen=True, kw_only=True)
class Later:
    """What comes after the load that there is now."""

    value: Array
    """W, [M, X], under the load that is then."""
    share: float
    """Probability that it comes within a stage."""


def values(flows: Flows, *, costs: Array, stage_s: float, horizon_s: float, later: Later | None = None) -> Array:
    """W, [M, X]: groups trained from now on if a split is made now, up to a constant. ``costs``, [M, M]: groups lost by
    going from one split (row) to another (column). Without ``later`` the load stays as it is."""
    reward, after = _stage(flows, stage_s)
    discount = math.exp(-stage_s / horizon_s)
    below, upper = _places(flows.stocks, after)
    value, tolerance = reward / (1.0 - discount), _TOLERANCE * float(reward.max())
    share, best_later = 0.0, np.zeros_like(reward)
    if later is not None:
        share, best_later = later.share, with_best_move(later.value, costs)
    for _ in range(_MAX_SWEEPS):
        best = (1.0 - share) * with_best_move(value, costs) + share * best_later
        last, value = value, reward + discount * _read(best, below, upper)
        change = value - last
        if float(change.max() - change.min()) < tolerance:
            break
    return value


def with_best_move(value: Array, costs: Array) -> Array:
    """V, [M, X]: with the best move from each split."""
    best: Array = (value[None, :, :] - costs[:, :, None]).max(axis=1)
    return best


def at_stock(flows: Flows, table: Array, stock: float) -> Array:
    """A column of [M, X] between its grid points."""
    column = np.full((len(table), 1), min(max(stock, 0.0), float(flows.stocks[-1])))
    return read_at(flows.stocks, table, column)[:, 0]


def read_at(stocks: Array, table: Array, stock: Array) -> Array:
    """``table`` [M, X] between its grid points, at ``stock`` [M, …] of each split."""
    return _read(table, *_places(stocks, stock))


def _stage(flows: Flows, stage_s: float) -> tuple[Array, Array]:
    """Groups trained in a stage, and the stock after it; both [M, X]."""
    num_splits, num_stocks = flows.generated.shape
    substep_s, most = stage_s / _NUM_SUBSTEPS, float(flows.stocks[-1])
    stock = np.broadcast_to(flows.stocks, (num_splits, num_stocks)).copy()
    trained = np.zeros_like(stock)
    rate, balanced = flows.trained[:, None], flows.balanced[:, None]
    for _ in range(_NUM_SUBSTEPS):
        generated = read_at(flows.stocks, flows.generated, stock)
        ahead = stock + (generated - rate) * substep_s
        trained += np.where(ahead >= 0.0, rate * substep_s, stock + np.minimum(balanced, rate) * substep_s)
        stock = np.clip(ahead, 0.0, most)
    return np.minimum(trained, rate * stage_s), stock


def _places(stocks: Array, stock: Array) -> tuple[NDArray[np.int64], Array]:
    """Where ``stock`` [M, …] lies on the grid: indices into a flat [M, X] of the points below, and how far above them,
    0 to 1."""
    position = stock / float(stocks[1] - stocks[0])
    below = np.minimum(position.astype(np.int64), len(stocks) - 2)
    rows = np.arange(stock.shape[0])[:, None] * len(stocks)
    return below + rows, position - below


def _read(table: Array, below: NDArray[np.int64], upper: Array) -> Array:
    """``table`` [M, X] between its grid points, at places from ``_places``."""
    return table.take(below) * (1.0 - upper) + table.take(below + 1) * upper
