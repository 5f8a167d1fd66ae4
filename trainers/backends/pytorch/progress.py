"""How far a rank has come in a step, and the way back: see ``elastic.standing`` for the places it can be in.

Nothing is copied for a step of one update: until all ranks hold its gradient nothing has changed, and from then on each
can complete the step by itself. Of a step of several, a rank remembers the shards that it holds before the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlserve.trainers.backends.pytorch.optimizer import Moments, ShardedAdamW, TrainedVector
from rlserve.trainers.backends.pytorch.saved_state import SavedProgress
from rlserve.trainers.elastic.intervals import Interval, difference, union
from rlserve.trainers.elastic.standing import NOTHING, Standing

_HOST = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Staged:
    """An update that every rank can apply by itself."""

    gradients: Mapping[str, Sequence[Tensor]]
    norms: Mapping[str, float]
    completes_step: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class _Before:
    """What this rank held before the first update of a step, in host memory."""

    shards: Sequence[tuple[Moments, Tensor]]
    """Copies of moments, and of the parameters of the same elements."""
    num_updates: int


class StepProgress:
    """Stages and applies the updates of a step."""

    def __init__(
        self, flat: TrainedVector, optimizer: ShardedAdamW, *, holds_state: bool, carried: Mapping[str, float]
    ) -> None:
        """``carried`` is what ``Backend.carried`` begins with."""
        self.num_steps = 0 if holds_state else NOTHING
        self.has_all_parameters = holds_state
        """Whether the parameters of shards that other ranks hold are as new as those of this rank's."""
        self.metrics: dict[str, float] = {}
        """Of the last step that was completed."""
        self.carried = dict(carried)
        """As ``Backend.carried``."""
        self._flat = flat
        self._optimizer = optimizer
        self._staged: _Staged | None = None
        self._before: _Before | None = None

    @property
    def holds_everything(self) -> bool:
        """Whether this rank holds all shards, so that nobody has anything to send it."""
        everything = [Interval(0, self._flat.vector.numel())]
        return not difference(everything, self._optimizer.held)

    def begin(self) -> None:
        """At the start of a step: the present is what ``take_back`` comes back to."""
        self._staged = self._before = None

    def stage(
        self, gradients: Mapping[str, Sequence[Tensor]], norms: Mapping[str, float], *, completes_step: bool
    ) -> None:
        """Keep this rank's parts of an update. The caller makes sure that all ranks have staged it before one applies
        it."""
        self._staged = _Staged(gradients=gradients, norms=norms, completes_step=completes_step)

    def apply(self, metrics: Mapping[str, float] | None = None, carried: Mapping[str, float] | None = None) -> None:
        """Apply the staged update to the shards that this rank holds.

        Args:
            metrics: of the step, where this completes it.
            carried: what the step leaves of the numbers that the algorithm carries, where this completes it.
        """
        assert self._staged is not None, "stage an update first"
        assert self._staged.completes_step == (metrics is not None) == (carried is not None)
        staged, self._staged = self._staged, None
        if metrics is None and self._before is None:
            self._before = _Before(
                shards=[(held.copied(_HOST), self._parameters(held).to("cpu", copy=True)) for held in self._held()],
                num_updates=self._optimizer.num_updates,
            )
        self._optimizer.update(staged.gradients, staged.norms)
        self.has_all_parameters = self.holds_everything
        if metrics is not None and carried is not None:
            self.num_steps += 1
            self.metrics, self.carried = dict(metrics), dict(carried)
            self._before = None

    def take_back(self) -> None:
        """Return to where the step began, as far as this rank's shards go."""
        self._staged = None
        if self._before is None:
            return
        for held, (moments, parameters) in zip(self._held(), self._before.shards, strict=True):
            self._parameters(held).copy_(parameters)
            held.first.copy_(moments.first)
            held.second.copy_(moments.second)
        self._optimizer.num_updates = self._before.num_updates
        self._before = None
        self.has_all_parameters = self.holds_everything

    def standing(self) -> Standing:
        """What this rank brings into a new group."""
        before = self._before
        return Standing(
            num_steps=self.num_steps,
            num_updates=self._optimizer.num_updates if before is None else before.num_updates,
            shards=() if self.num_steps == NOTHING else union(self._optimizer.held),
            has_all_parameters=self.has_all_parameters if before is None else self.holds_everything,
            can_complete=self._staged is not None and self._staged.completes_step,
            metrics=self.metrics,
            carried=self.carried,
        )

    def settle(self, common: Standing) -> None:
        """Complete the step that this rank is in the middle of, or take it back, to stand where ``common`` does."""
        if self.num_steps == NOTHING:
            return
        if self.num_steps < common.num_steps:
            self.apply(common.metrics, common.carried)
        else:
            self.take_back()

    def stand(self, common: Standing) -> None:
        """Count on from where ``common`` stands: all that it takes has come in."""
        self.num_steps = common.num_steps
        self.metrics, self.carried = dict(common.metrics), dict(common.carried)
        self._optimizer.num_updates = common.num_updates
        self.has_all_parameters = True

    def return_to(self, before: Standing) -> None:
        """Stand where this rank did before ``stand``, since not all has come in."""
        self.num_steps = before.num_steps
        self.metrics, self.carried = dict(before.metrics), dict(before.carried)
        self._optimizer.num_updates = before.num_updates
        self.has_all_parameters = before.has_all_parameters

    def saved(self) -> SavedProgress:
        """What a saved state has of it."""
        return SavedProgress(
            num_steps=self.num_steps, num_updates=self._optimizer.num_updates, carried=dict(self.carried)
        )

    def restart(self, saved: SavedProgress) -> None:
        """Count on from a saved state, with nothing in progress."""
        self.begin()
        self.num_steps, self._optimizer.num_updates = saved.num_steps, saved.num_updates
        self.metrics, self.carried = {}, dict(saved.carried)
        self.has_all_parameters = True

    def _held(self) -> tuple[Moments, ...]:
        return self._optimizer.moments

    def _parameters(self, held: Moments) -> Tensor:
        return self._flat.vector[held.elements.elements]
