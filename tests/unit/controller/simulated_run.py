"""A whole run on virtual time: the real controller with all its parts, over simulated workers, scorer and tracker."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from controller_fakes import FakeTracker, make_gang
from simulated_fleet import SimulatedFleet
from simulated_workers import SimulatedWorker
from simulated_world import World
from virtual_time import run_virtual

from rlserve.config.tree import ModelConfig, RunConfig
from rlserve.controller.build import build_controller
from rlserve.controller.checkpoint import newest_checkpoint, read_run
from rlserve.controller.clients.desk import ClientDesk
from rlserve.controller.clock import RunClock
from rlserve.controller.controller import Controller
from rlserve.controller.ports import Front, Ports
from rlserve.controller.preparation.prepare import Preparation
from rlserve.controller.preparation.supervised import SupervisedPreparation
from rlserve.controller.setup import RunSetup
from rlserve.errors import RewardError
from rlserve.manager.roles import Role
from rlserve.pool.gangs import Node
from rlserve.rollout.config import DataConfig, RewardConfig
from rlserve.rollout.end_tokens import EndTokens
from rlserve.rollout.environments.base import Environments
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.rewards.base import RewardSample, Score
from rlserve.supervised.source import SupervisedSource
from rlserve.tracking.cost.figures import CostFigures
from rlserve.tracking.cost.replay import replay
from rlserve.tracking.events import Event, Record, SlotEvent, StepEvent, TrainedBatch, WeightEvent
from rlserve.tracking.progress import NoProgress
from rlserve.tracking.run_folder import RunFolder


def prompt(name: str, position: int) -> PromptGroup:
    return PromptGroup(
        id=name,
        position=position,
        row=position,
        prompt_text="1+1=",
        prompt_token_ids=(1, 2, position % 50),
        answer="2",
    )


class Source:
    """Numbered prompts without end."""

    def __init__(self) -> None:
        self.position = 0

    def next(self) -> PromptGroup:
        self.position += 1
        return self.get(f"0:{self.position - 1}", position=self.position - 1)

    def get(self, group_id: str, *, position: int) -> PromptGroup:
        assert group_id == f"0:{position}"
        return prompt(group_id, position)

    def snapshot(self) -> dict[str, Any]:
        return {"position": self.position}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        self.position = snapshot["position"]


class Tokenizer:
    def __len__(self) -> int:
        return 1000

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_text("{}")


class Decode:
    """What stands for a text."""

    tokenizer = Tokenizer()
    end_token_ids = frozenset({0})

    def __call__(self, token_ids: Any) -> str:
        return f"{len(token_ids)} tokens"


class SimulatedScorer:
    """Takes a while, and now and then fails, or leaves an answer out."""

    num_workers = 4

    def __init__(self, *, share_failed: float = 0.0, share_left_out: float = 0.0) -> None:
        self._chance = random.Random(7)
        self._share_failed = share_failed
        self._share_left_out = share_left_out
        self.hangs = False

    async def start(self) -> None:
        await asyncio.sleep(1.0)

    async def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        if self.hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(self._chance.uniform(0.05, 0.5))
        draw = self._chance.random()
        if draw < self._share_failed:
            raise RewardError("the reward failed")
        if draw < self._share_failed + self._share_left_out:
            return [Score(value=None) for _ in samples]
        return [Score(value=float(self._chance.random() < 0.5)) for _ in samples]

    def close(self) -> None:
        pass


class MemoryTracker(FakeTracker):
    """Keeps everything in memory."""

    def log_answers(self, step: int, kind: str, make: Callable[[], Any]) -> None:
        pass

    def watch_engines(self, read: Callable[[], Any]) -> None:
        read()

    def of(self, kind: type[Record]) -> list[Any]:
        return [record for record in self.records if isinstance(record, kind)]


@dataclass(kw_only=True)
class SimulatedRun:
    """Everything of one run that a test may look at, or lay hands on."""

    config: RunConfig
    controller: Controller
    fleet: SimulatedFleet
    scorer: SimulatedScorer
    tracker: MemoryTracker
    folder: RunFolder

    def living(self, role: Role) -> list[SimulatedWorker]:
        """Workers in a role that are well."""
        workers = [self.fleet.workers[slot_id] for slot_id in self.fleet.ready]
        in_role = (
            (lambda worker: worker.training and not worker.sleeping)
            if role is Role.TRAIN
            else (lambda worker: worker.rolling_out)
        )
        return [worker for worker in workers if in_role(worker) and not (worker.dead or worker.hung or worker.wedged)]

    @property
    def trained(self) -> list[str]:
        """Prompt groups in the order in which they were trained."""
        return [group_id for batch in self.tracker.of(TrainedBatch) for group_id in batch.group_ids]

    def check(self, *, max_staleness: int) -> None:
        """Assert what always holds of a run that ended well (I1, I2, I3, I8)."""
        assert self.fleet.world.faults == []
        summary, per_step = self.controller.summary(), self.config.rollout.prompts_per_step
        batches = self.tracker.of(TrainedBatch)
        assert len(set(self.trained)) == len(self.trained), "a group was trained twice"
        for batch in batches:
            assert len(batch.group_ids) == per_step
            assert all(batch.step - 1 - version <= max_staleness for version in batch.oldest_versions)
        assert summary.groups_trained == summary.num_steps * per_step
        assert summary.final_weight_version == summary.num_steps
        taken: dict[str, int] = {}
        for event in self.tracker.of(WeightEvent):
            where = event.slot_id or "published"
            assert event.version >= taken.get(where, 0), "a version went back"
            taken[where] = event.version
        self.check_costs()

    def check_costs(self) -> None:
        """Assert that all time of all slots is accounted for, and that the run's files tell the same as the run."""
        events = self.tracker.of(Event)
        ledger = replay({"event": event.kind, **asdict(event)} for event in events)
        now_s = self.controller.summary().seconds_total
        statement = ledger.statement(now_s)
        statement.check_integrity()
        assert CostFigures(statement=statement, prices=None).amount().gpu_hours == pytest.approx(
            self.controller.summary().cost["total"]["gpu_hours"]
        )
        slots: dict[str, float] = {}
        for event in self.tracker.of(SlotEvent):
            slots.setdefault(event.slot_id, 0.0 if event.time_s == 0.0 else event.time_s)
            if event.owner == "gone":
                slots[event.slot_id] = slots[event.slot_id] - event.time_s + now_s
        assert 3600 * statement.gpu_hours == pytest.approx(sum(now_s - begin_s for begin_s in slots.values()), rel=1e-9)
        assert statement.num_steps == len(self.tracker.of(StepEvent))


def make_config(**parts: Any) -> RunConfig:
    """A configuration of which only a run's own parts matter."""
    defaults: dict[str, Any] = {
        "model": ModelConfig(path="none"),
        "data": DataConfig(path="none"),
        "reward": RewardConfig(function="none"),
    }
    return RunConfig(**defaults | parts)


def begin(
    config: RunConfig,
    folder: RunFolder,
    *,
    world: World,
    scorer: SimulatedScorer,
    num_slots: int,
    resume: bool,
    cluster: list[Node] | None,
    environments: Environments | None = None,
    data: SupervisedSource | None = None,
    front: Callable[[ClientDesk], Front] | None = None,
) -> SimulatedRun:
    """Build the run, one that learns from ``data`` where there are any. Within a loop of virtual time."""
    loop = asyncio.get_running_loop()
    node_id = cluster[0].id if cluster else None
    gangs = tuple(make_gang(f"cpu/{number}", node_id=node_id) for number in range(num_slots))
    num_train = num_slots if config.pool.placement == "colocated" or data is not None else num_slots // 2
    roles = {gang.id: Role.TRAIN if index < num_train else Role.ROLLOUT for index, gang in enumerate(gangs)}
    saved = read_run(newest_checkpoint(folder.checkpoints)) if resume else None
    preparation = _prepared(config, data)
    if saved is not None:
        preparation.source.restore(saved.content["source"])
    tracker, fleet = MemoryTracker(), SimulatedFleet(world)
    tracker_port: Any = tracker
    fleet_port: Any = fleet
    setup = RunSetup(
        config=config,
        preparation=preparation,
        gangs=gangs,
        roles=roles,
        folder=folder,
        tracker=tracker_port,
        progress=NoProgress(),
        clock=RunClock(started=loop.time(), read=loop.time),
        saved=saved,
    )

    async def look() -> tuple[Node, ...]:
        return tuple(cluster or ())

    nodes = None if cluster is None else look
    scorer_port = scorer if data is None else None
    ports = Ports(fleet=fleet_port, scorer=scorer_port, environments=environments, nodes=nodes, front=front)
    controller = build_controller(setup, ports)
    return SimulatedRun(
        config=config, controller=controller, fleet=fleet, scorer=scorer, tracker=tracker, folder=folder
    )


def _prepared(config: RunConfig, data: SupervisedSource | None) -> Preparation | SupervisedPreparation:
    decode: Any = Decode()
    if data is not None:
        return SupervisedPreparation(model_path="none", tokenizer=decode.tokenizer, source=data)
    source_port: Any = Source()
    return Preparation(
        model_path="none",
        tokenizer=decode.tokenizer,
        source=source_port,
        held_out=tuple(prompt(f"held_out:{row}", row) for row in range(20)),
        end_tokens=EndTokens(of_model=(0,), added=()),
        reward=config.reward,
        decode=decode,
    )


_REQUESTS = count()


async def ask(run: SimulatedRun, action: str, gang_id: str | None = None, role: str | None = None) -> dict[str, Any]:
    """What ``rlserve move`` asks, and what it is answered."""
    name = f"r{next(_REQUESTS)}"
    request, answer = (run.folder.requests / f"{name}.{kind}.json" for kind in ("request", "answer"))
    request.write_text(json.dumps({"id": name, "action": action, "gang_id": gang_id, "role": role}))
    while not answer.exists():
        await asyncio.sleep(0.1)
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


Disturb = Callable[[SimulatedRun], Coroutine[Any, Any, None]]


def simulate(
    config: RunConfig,
    folder: RunFolder,
    *,
    world: World | None = None,
    scorer: SimulatedScorer | None = None,
    num_slots: int = 6,
    resume: bool = False,
    disturb: Disturb | None = None,
    cluster: list[Node] | None = None,
    environments: Environments | None = None,
    data: SupervisedSource | None = None,
    front: Callable[[ClientDesk], Front] | None = None,
) -> SimulatedRun:
    """Run to the end on virtual time. ``disturb`` goes on beside it for as long as it runs. ``cluster`` are the nodes
    that there are, the first with all slots of the start; it may be changed meanwhile.

    Raises:
        RlserveError: what the run failed with.
    """

    async def whole() -> SimulatedRun:
        run = begin(
            config,
            folder,
            world=world or World(),
            scorer=scorer or SimulatedScorer(),
            num_slots=num_slots,
            resume=resume,
            cluster=cluster,
            environments=environments,
            data=data,
            front=front,
        )
        beside = None if disturb is None else asyncio.create_task(disturb(run))
        try:
            await run.controller.run()
        finally:
            if beside is not None:
                beside.cancel()
        return run

    return run_virtual(whole())
