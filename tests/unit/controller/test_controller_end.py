"""The end of a run: what a stop leaves undone decides how it is said to have ended."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from controller_fakes import FakeTracker, run_context

from rlserve.config.tree import CheckpointConfig
from rlserve.controller.controller import Controller
from rlserve.controller.evaluation import HeldOutScore

NUM_STEPS = 3


class Ending:
    """A controller whose steps are trained already, and an evaluation that waits to be let go on."""

    def __init__(self) -> None:
        self.saved = 0
        self.happened: list[str] = []
        self.noted: list[float] = []
        self.scoring, self.evaluating, self.go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
        parts = SimpleNamespace(
            display=SimpleNamespace(status="", stopping=False, run=self._forever),
            heartbeat=SimpleNamespace(run=self._forever),
            live=SimpleNamespace(run=self._forever),
            stall_guard=SimpleNamespace(watch=self._forever),
            training=SimpleNamespace(step=self._once_groups_are_scored),
            weights=SimpleNamespace(publish=self._at_once, settled=self._at_once, close=self._at_once),
            trainers=SimpleNamespace(form=self._at_once),
            rollouts=SimpleNamespace(
                readmit=lambda: None,
                admit=self._forever,
                score=self._score_groups,
                give_up=self._at_once,
                drop_surplus=lambda: self.happened.append("surplus dropped"),
            ),
            reallocation=SimpleNamespace(run=self._forever, settle=self._at_once),
            turns=SimpleNamespace(begin_rollout=self._at_once, begin_training=self._at_once),
            recovery=SimpleNamespace(close=self._at_once),
            hand_moves=SimpleNamespace(open=lambda: None, run=self._forever),
            notice_watch=SimpleNamespace(open=lambda: None, watch=self._forever),
            node_watch=None,
            scale_out=None,
            host_watch=None,
            front=None,
            replicas=SimpleNamespace(close=self._at_once),
            evaluation=SimpleNamespace(score=self._score),
            saver=SimpleNamespace(
                loops_begin=lambda: None, loops_end=lambda: None, save=self._save, note_score=self.noted.append
            ),
        )
        setup = SimpleNamespace(
            config=SimpleNamespace(
                num_steps=NUM_STEPS,
                pool=SimpleNamespace(placement="elastic"),
                checkpoint=CheckpointConfig(every_steps=0),
            ),
            gangs=(),
            roles={},
            saved=None,
            tracker=FakeTracker(),
            dilation=None,
        )
        ports = SimpleNamespace(
            fleet=SimpleNamespace(start=self._at_once, close=lambda: None),
            services=(SimpleNamespace(start=self._at_once, close=lambda: None),),
        )
        run = run_context(asyncio.TaskGroup())
        run.counters.num_steps = NUM_STEPS
        self.controller = Controller(run, cast(Any, setup), cast(Any, ports), cast(Any, parts))

    async def _at_once(self, *_: object) -> None:
        pass

    async def _forever(self, *_: object) -> None:
        await asyncio.Event().wait()

    async def _once_groups_are_scored(self, *_: object, **__: object) -> None:
        await self.scoring.wait()

    async def _score_groups(self) -> None:
        """In a task of its own, as groups are: it hears of the cancellation a turn later."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._score_group())

    async def _score_group(self) -> None:
        self.scoring.set()
        try:
            await self._forever()
        finally:
            self.happened.append("scoring ended")

    async def _save(self) -> None:
        self.saved += 1

    async def _score(self, step: int) -> HeldOutScore:
        self.evaluating.set()
        await self.go_on.wait()
        return HeldOutScore(share_right=1.0, num_failed=0)


def test_a_stop_while_the_trained_policy_is_scored_ends_the_run_early() -> None:
    async def scenario() -> None:
        ending = Ending()
        running = asyncio.create_task(ending.controller.run())
        await ending.evaluating.wait()
        ending.controller.request_stop()
        await running
        assert ending.controller.stopped_early, "all steps are trained and saved, but nobody knows how good they are"
        assert ending.saved == 1

    asyncio.run(scenario())


def test_a_stop_after_the_score_comes_too_late_to_matter() -> None:
    async def scenario() -> None:
        ending = Ending()
        ending.go_on.set()
        await ending.controller.run()
        assert ending.noted == [1.0], "the checkpoint of the last step is written before it is scored"
        ending.controller.request_stop()
        assert not ending.controller.stopped_early

    asyncio.run(scenario())


def test_nothing_is_dropped_as_surplus_while_a_group_is_still_scored() -> None:
    async def scenario() -> None:
        ending = Ending()
        ending.go_on.set()
        await ending.controller.run()
        assert ending.happened == ["scoring ended", "surplus dropped"]

    asyncio.run(scenario())
