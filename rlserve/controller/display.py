"""What the controller shows of itself while it runs: reads the parts, hands a state to the progress display."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from rlserve.controller.context import RunContext
from rlserve.controller.observation import Rate, num_moving
from rlserve.controller.reallocation import Reallocation
from rlserve.controller.replicas import Replicas
from rlserve.controller.setup import RunSetup
from rlserve.controller.weight_source import WeightSource
from rlserve.manager.gang_table import SERVING, GangState
from rlserve.rollout.requests.base import RequestKind
from rlserve.rollout.requests.router import Router
from rlserve.tracking import names
from rlserve.tracking.events import Decision
from rlserve.tracking.progress import ProgressState, estimate_time_left_s

_INTERVAL_S = 0.5


class RunDisplay:
    """Updates the progress display twice a second, and after every step."""

    def __init__(
        self,
        run: RunContext,
        setup: RunSetup,
        router: Router,
        weights: WeightSource,
        replicas: Replicas,
        reallocation: Reallocation,
    ) -> None:
        self._run = run
        self._setup = setup
        self._router = router
        self._weights = weights
        self._replicas = replicas
        self._reallocation = reallocation
        self._rate = Rate(run.clock)
        self._rollout_tokens_per_s: float | None = None
        self._reward: float | None = None
        self._kl: float | None = None
        self._loss: float | None = None
        self._step_durations_s: list[float] = []
        self._decision = ""
        self.status = "starting workers"
        self.stopping = False
        """A stop was asked for, and the step under way is finished first."""
        run.events.subscribe(Decision, self._note_decision)

    async def run(self) -> None:
        """Update the display until cancelled."""
        while True:
            self._update()
            await asyncio.sleep(_INTERVAL_S)

    def note_step(self, metrics: Mapping[str, float]) -> None:
        """A training step is done."""
        self._reward, self._kl = metrics.get(names.REWARD), metrics.get(names.KL)
        self._loss = metrics.get(names.LOSS)
        self._step_durations_s.append(metrics["timing_s/step"])
        self._update()

    def _note_decision(self, decision: Decision) -> None:
        self._decision = decision.reason

    def _update(self) -> None:
        rate = self._rate.update(self._replicas.num_generated_tokens)
        self._rollout_tokens_per_s = rate if rate else self._rollout_tokens_per_s
        self._setup.progress.update(self._state())

    def _state(self) -> ProgressState:
        table, num_steps = self._reallocation.table, self._setup.config.num_steps
        stopping = self.stopping and self.status == "training"
        return ProgressState(
            name=self._setup.folder.name,
            status="stopping after this step" if stopping else self.status,
            step=self._run.counters.num_steps,
            num_steps=num_steps,
            elapsed_s=self._run.clock.now(),
            time_left_s=estimate_time_left_s(self._step_durations_s, num_steps - self._run.counters.num_steps),
            reward=self._reward,
            kl=self._kl,
            loss=self._loss,
            queue_length=self._router.num_waiting(RequestKind.TRAINING),
            num_train=table.count(GangState.TRAIN),
            num_rollout=table.count(*SERVING),
            num_moving=num_moving(self._reallocation),
            num_dead=table.count(GangState.DEAD),
            rollout_tokens_per_s=self._rollout_tokens_per_s,
            weight_version=self._weights.version if self._weights.version >= 0 else None,
            last_decision=self._decision,
        )
