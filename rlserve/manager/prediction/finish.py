"""When a run that is about to end will be done: the fluid of ``rlserve.manager.prediction.fluid`` with work that ends.

    R groups are still to be trained, x of them are in stock, at most (R - x) / k are generated at once

Near its end a run is no stationary process: rollout has nothing left to do before training has, and the fewer groups
are under way, the less replicas make of them. So what counts is the time to the end, by backward induction over the
groups that are left (Bellman 1957):

    T(m, R, x) = t + min over splits n of  [ T(n, R - D, x + g t - D) + cost of the moves to n ],  T(m, 0, x) = B / s(m)

where t is what split m takes to train the next D groups: D / s while the stock lasts, the rest at the rate at which
groups come. A group counts as trained here when its step begins, hence the last step, of B groups, at the end.

Legend: M splits, X grid points of the stock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlserve.manager.prediction.fluid import Array, Flows, read_at, with_best_move

_MAX_STAGES = 32
_LEAST_RATE = 1e-9


@dataclass(frozen=True, kw_only=True)
class WorkLeft:
    """What a run has still to do."""

    num_groups: float
    """To be trained, without those of the step under way."""
    prompts_per_step: int
    kept_share: float


@dataclass(frozen=True, kw_only=True)
class Change:
    """What the load may become meanwhile."""

    seconds: Sequence[Array]
    """T under the load that is then, by the number of stages that are left."""
    mean_s: float
    """Until it does."""


def seconds_left(flows: Flows, left: WorkLeft, *, costs_s: Array, change: Change | None = None) -> list[Array]:
    """T, [M, X] by the number of stages that are left: until the run is done if a split is made then. The last is that
    of now. ``costs_s``, [M, M]: seconds lost by going from one split (row) to another (column). Without ``change`` the
    load stays as it is."""
    num_stages = min(max(1, round(left.num_groups / left.prompts_per_step)), _MAX_STAGES)
    stage = left.num_groups / num_stages
    found = [np.repeat((left.prompts_per_step / flows.trained)[:, None], len(flows.stocks), axis=1)]
    for number in range(1, num_stages + 1):
        stage_s, after = _stage(flows, number * stage, stage, left.kept_share)
        best_s = read_at(flows.stocks, -with_best_move(-found[-1], costs_s), after)
        if change is not None:
            stays = np.exp(-stage_s / change.mean_s)
            then_s = read_at(flows.stocks, -with_best_move(-change.seconds[number - 1], costs_s), after)
            best_s = stays * best_s + (1.0 - stays) * then_s
        found.append(stage_s + best_s)
    return found


def _stage(flows: Flows, num_left: float, num_trained: float, kept_share: float) -> tuple[Array, Array]:
    """Seconds to train the next ``num_trained`` of ``num_left`` groups, and the stock after them; both [M, X]."""
    most = float(flows.stocks[-1])
    stock = np.minimum(np.broadcast_to(flows.stocks, flows.generated.shape), num_left)
    rate = flows.trained[:, None]
    comes = _generated(flows, stock, num_left, most, kept_share)
    lasts_s = stock / np.maximum(rate - comes, _LEAST_RATE)
    enough = (lasts_s * rate >= num_trained) | (comes >= rate)
    first = np.where(enough, num_trained, lasts_s * rate)
    dry = np.minimum(_generated(flows, np.zeros_like(stock), num_left, most, kept_share), flows.balanced[:, None])
    stage_s = first / rate + (num_trained - first) / np.maximum(np.minimum(dry, rate), _LEAST_RATE)
    after = np.where(enough, stock + comes * stage_s - num_trained, 0.0)
    return stage_s, np.clip(after, 0.0, min(most, num_left - num_trained))


def _generated(flows: Flows, stock: Array, num_left: float, most: float, kept_share: float) -> Array:
    """Groups that training can use, a second: by how many are under way at most."""
    under_way = np.minimum(most - stock, np.maximum(1.0, (num_left - stock) / kept_share))
    comes = read_at(flows.stocks, flows.generated, most - under_way)
    return np.where(stock < num_left, comes, 0.0)
