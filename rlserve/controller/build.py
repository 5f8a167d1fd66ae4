"""The composition root: makes the parts of a run in the order in which they need each other, and joins them.

::

    ports (fleet, scorer)      context (clock, counters, events, tasks)      books (ledger, buffer, router)
       └──────────────┬─────────────────────┴──────────────────┬───────────────────────┘
                      ▼                                        ▼
    trainers ─► weights ─► replicas ─► rollouts, training ─► measuring, recovery ─► reallocation ─► … ─► Controller

Every part is given what it needs when it is made. What has to flow against this order are events
(``rlserve.controller.events``).
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from rlserve.config.tree import RunConfig
from rlserve.controller.batches.base import BatchSource
from rlserve.controller.calls import Calls
from rlserve.controller.canary import CanaryWatch
from rlserve.controller.cluster_side import cluster_side
from rlserve.controller.context import Books, RunContext
from rlserve.controller.controller import Controller, Parts
from rlserve.controller.cost_keeper import CostKeeper
from rlserve.controller.counters import Counters
from rlserve.controller.data_side import DataSide
from rlserve.controller.departures import Departures
from rlserve.controller.display import RunDisplay
from rlserve.controller.engine_ranks import EngineRanks
from rlserve.controller.events import EventBus
from rlserve.controller.gang_book import GangBook
from rlserve.controller.hand_moves import HandMoves
from rlserve.controller.heartbeat import Heartbeat
from rlserve.controller.host_watch import HostWatch
from rlserve.controller.live_reporter import LiveReporter
from rlserve.controller.load import LoadReader
from rlserve.controller.measuring import Measuring
from rlserve.controller.notice_watch import NoticeWatch
from rlserve.controller.observation import PoolMetrics, RolloutMetrics
from rlserve.controller.observer import Observer
from rlserve.controller.ports import Fleet, Ports
from rlserve.controller.preparation.supervised import SupervisedPreparation
from rlserve.controller.reallocation import Reallocation
from rlserve.controller.recovery import Recovery
from rlserve.controller.replica_log import ReplicaLog
from rlserve.controller.replicas import Replicas
from rlserve.controller.role_changes import RoleChanges
from rlserve.controller.rollout_side import rollout_side
from rlserve.controller.saving import RunSaver, restore
from rlserve.controller.scale_out_side import scale_out_side
from rlserve.controller.setup import RunSetup
from rlserve.controller.signal import Signal
from rlserve.controller.slot_need import SlotNeed
from rlserve.controller.stall import StallGuard, stall_timeout_s
from rlserve.controller.supervised.no_replicas import NoReplicas
from rlserve.controller.supervised.roles import TrainersOnly
from rlserve.controller.supervised.side import supervised_side
from rlserve.controller.supervised.trainers import SupervisedTrainers
from rlserve.controller.suspicion import Suspicion
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.controller.training_loop import TrainingLoop
from rlserve.controller.turns.at_once import AtOnce
from rlserve.controller.turns.base import Turns
from rlserve.controller.turns.in_turn import InTurn
from rlserve.controller.turns.roles import RolesInTurn
from rlserve.controller.turns.trainers import TrainersInTurn
from rlserve.controller.weight_handover import WeightHandover
from rlserve.controller.weight_source import WeightSource
from rlserve.controller.weight_sync import WeightSync
from rlserve.manager.config import RateMatchingConfig
from rlserve.manager.measurement.meter import Meter
from rlserve.manager.policies.base import Admission, admission_window
from rlserve.manager.policies.factory import create_policy
from rlserve.manager.policies.planned_range import prepare_planning
from rlserve.manager.policies.train_only import TrainOnlyPolicy
from rlserve.pool.config import PoolConfig
from rlserve.rollout.admission import PromptAdmission
from rlserve.rollout.buffer import SampleBuffer
from rlserve.rollout.group_filter import GroupFilter
from rlserve.rollout.ledger import Ledger
from rlserve.rollout.requests.router import Router
from rlserve.tracking.events import Record
from rlserve.tracking.jsonl import read_json_lines
from rlserve.tracking.move_requests import MoveRequests
from rlserve.weights.canary import tolerance_of


def build_controller(setup: RunSetup, ports: Ports) -> Controller:
    """A controller that is ready to run; nothing is started."""
    config = setup.config
    books = _books(setup)
    counters = Counters()
    if setup.saved is not None:
        counters = restore(setup.saved, books.ledger, time_s=setup.clock.now())
    run = RunContext(
        clock=setup.clock, counters=counters, events=EventBus(), changed=Signal(), tasks=asyncio.TaskGroup()
    )
    run.events.subscribe(Record, setup.tracker.record)
    ReplicaLog(run)
    costs = CostKeeper(run, read_json_lines(setup.folder.events_file), setup.prices, config.cost.budget)
    trainers = _kind_of_trainers(config)(
        run,
        ports.fleet,
        # Those who wait for another in vain have their say first, or they would be taken for lost with it.
        switch_timeout_s=config.pool.switch_timeout_s + config.trainer.timeout_s,
        step_timeout_s=config.trainer.step_timeout_s,
        on_one_machine=config.launch.kind == "local",
    )
    weights = _weights(run, setup, ports.fleet, trainers)
    replicas = Replicas(
        run,
        fleet=ports.fleet,
        router=books.router,
        weights=weights,
        capacity=config.rollout.engine.max_num_sequences,
        switch_timeout_s=config.pool.switch_timeout_s,
        request_timeout_s=config.rollout.request_timeout_s,
    )
    setup.tracker.watch_engines(lambda: {slot_id: stats.engine_metrics for slot_id, stats in replicas.stats.items()})
    return Controller(run, setup, ports, _parts(run, setup, ports, books, costs, trainers, weights, replicas))


def _kind_of_trainers(config: RunConfig) -> type[TrainerGroup]:
    if not config.algorithm.needs.rollouts:
        return SupervisedTrainers
    return TrainersInTurn if config.pool.placement == "colocated" else TrainerGroup


def _weights(run: RunContext, setup: RunSetup, fleet: Fleet, trainers: TrainerGroup) -> WeightSource:
    if not setup.config.algorithm.needs.rollouts:
        return NoReplicas()
    config = setup.config.weights
    tolerance = tolerance_of(config.canary, setup.config.rollout.engine, setup.config.trainer.dtype)
    canary = CanaryWatch(run, tolerance=tolerance, timeout_s=config.timeout_s)
    if setup.config.pool.placement == "colocated":
        return WeightHandover(run, fleet, trainers, canary, timeout_s=config.timeout_s)
    return WeightSync(
        run,
        fleet,
        trainers,
        canary,
        timeout_s=config.timeout_s,
        anchor_every=config.anchor_every,
        weights_are_spread=setup.config.trainer.weights_are_spread,
    )


def _books(setup: RunSetup) -> Books:
    rollout, num_steps = setup.config.rollout, setup.config.num_steps
    ledger = Ledger(prompts_per_step=rollout.prompts_per_step, max_staleness=rollout.max_staleness)
    return Books(
        ledger=ledger,
        admission=PromptAdmission(ledger, num_groups=num_steps * rollout.prompts_per_step),
        buffer=SampleBuffer(ledger, prompts_per_step=rollout.prompts_per_step),
        router=Router(num_client_places=rollout.server.num_places(rollout.engine.max_num_sequences)),
        group_filter=GroupFilter(max_per_step=(rollout.max_num_gen_batches - 1) * rollout.prompts_per_step)
        if rollout.filter_groups
        else None,
    )


def _admission(config: RunConfig) -> Admission:
    rollout = config.rollout
    return admission_window(
        prompts_per_step=rollout.prompts_per_step,
        samples_per_prompt=config.num_answers_per_prompt,
        max_staleness=rollout.max_staleness,
        max_samples_per_replica=rollout.engine.max_num_sequences,
    )


def _parts(
    run: RunContext,
    setup: RunSetup,
    ports: Ports,
    books: Books,
    costs: CostKeeper,
    trainers: TrainerGroup,
    weights: WeightSource,
    replicas: Replicas,
) -> Parts:
    """All that is built on trainers, weights and replicas."""
    config, pool, tracker = setup.config, setup.config.pool, setup.tracker
    book = GangBook(run, setup.gangs)
    Suspicion(run.events, book, replicas)
    measuring = Measuring(run, book, Meter())
    recovery, turns = _roles(run, setup, ports, books, book, trainers, weights, replicas)
    side = _data_side(run, setup, ports, books, trainers, replicas, turns)
    training = _training(run, setup, side.batches, trainers, weights, turns)
    load = LoadReader(books, training, client_share=config.rollout.server.max_share)
    reallocation = _reallocation(run, setup, book, recovery, trainers, load, measuring)
    display = RunDisplay(run, setup, books.router, weights, replicas, reallocation)
    need = SlotNeed(run, book, load, replicas, idle_s=pool.share.idle_s)
    departures = Departures(run, book, recovery, ports.fleet, grace_s=config.pool.notice_grace_s)
    scale_out = scale_out_side(run, setup, ports, book, departures, reallocation)
    return Parts(
        books=books,
        costs=costs,
        trainers=trainers,
        weights=weights,
        replicas=replicas,
        rollouts=side.rollouts,
        training=training,
        turns=turns,
        reallocation=reallocation,
        recovery=recovery,
        hand_moves=_hand_moves(run, setup, book, reallocation),
        notice_watch=_notice_watch(setup, ports, book, departures),
        node_watch=cluster_side(run, setup, ports, book, recovery, departures, scale_out, need),
        scale_out=scale_out,
        host_watch=None if ports.processors is None or pool.is_paced else HostWatch(run, measuring, ports.processors),
        evaluation=side.evaluation,
        front=side.front,
        heartbeat=_heartbeat(run, pool, ports.fleet, book),
        stall_guard=StallGuard(run, books, training, replicas, reallocation, timeout_s=stall_timeout_s(config)),
        display=display,
        live=LiveReporter(
            run,
            book,
            load=load,
            replicas=replicas,
            weights=weights,
            display=display,
            tracker=tracker,
            scale_out=scale_out,
        ),
        metrics=PoolMetrics(run, reallocation)
        if side.rollouts is None
        else RolloutMetrics(run, books, replicas, reallocation, measuring),
        saver=RunSaver(run, books, setup, trainers, weights, replicas, reallocation),
    )


def _heartbeat(run: RunContext, pool: PoolConfig, fleet: Fleet, book: GangBook) -> Heartbeat:
    return Heartbeat(
        fleet, book.workers, run.events, interval_s=pool.health_interval_s, timeout_s=pool.health_timeout_s
    )


def _data_side(
    run: RunContext,
    setup: RunSetup,
    ports: Ports,
    books: Books,
    trainers: TrainerGroup,
    replicas: Replicas,
    turns: Turns,
) -> DataSide:
    """What the training loop learns from, and what the policy is scored on."""
    preparation = setup.preparation
    if isinstance(preparation, SupervisedPreparation):
        assert isinstance(trainers, SupervisedTrainers)
        return supervised_side(preparation.source, trainers)
    return rollout_side(run, setup, preparation, ports, books, replicas, turns)


def _roles(
    run: RunContext,
    setup: RunSetup,
    ports: Ports,
    books: Books,
    book: GangBook,
    trainers: TrainerGroup,
    weights: WeightSource,
    replicas: Replicas,
) -> tuple[Recovery, Turns]:
    """What gives gangs roles, and whose turn it is: both depend on the placement."""
    config = setup.config
    ranks = EngineRanks(ports.fleet, switch_timeout_s=config.pool.switch_timeout_s)

    def recovery_of(roles: RoleChanges) -> Recovery:
        return Recovery(
            run,
            book,
            fleet=ports.fleet,
            trainers=trainers,
            replicas=replicas,
            roles=roles,
            nodes=ports.nodes,
            max_worker_failures=config.pool.max_worker_failures,
        )

    if not isinstance(trainers, TrainersInTurn):
        kind = TrainersOnly if isinstance(trainers, SupervisedTrainers) else RoleChanges
        return recovery_of(kind(book, ranks, trainers, replicas)), AtOnce()
    roles = RolesInTurn(book, ranks, trainers, replicas)
    recovery = recovery_of(roles)
    return recovery, InTurn(
        run,
        book,
        recovery,
        roles,
        trainers=trainers,
        weights=weights,
        books=books,
        config=config.pool.colocated,
    )


def _hand_moves(run: RunContext, setup: RunSetup, book: GangBook, reallocation: Reallocation) -> HandMoves:
    pool, requests = setup.config.pool, MoveRequests(setup.folder.requests)
    refusal = "all gangs have both roles in turn (pool.placement=colocated)" if pool.placement == "colocated" else None
    if not setup.config.algorithm.needs.rollouts:
        refusal = f"all gangs train (algorithm.name={setup.config.algorithm.name})"
    return HandMoves(run, book, reallocation, requests, hold_s=pool.move_hold_s, refusal=refusal)


def _reallocation(
    run: RunContext,
    setup: RunSetup,
    book: GangBook,
    recovery: Recovery,
    trainers: TrainerGroup,
    load: LoadReader,
    measuring: Measuring,
) -> Reallocation:
    config = setup.config
    if isinstance(config.deciding, RateMatchingConfig):
        prepare_planning(len(setup.gangs))
    return Reallocation(
        run,
        book,
        recovery,
        calls=Calls(run, book, trainers=trainers, load=load, measuring=measuring),
        policy=create_policy(config.deciding) if config.algorithm.needs.rollouts else TrainOnlyPolicy(),
        observer=Observer(
            run,
            book,
            load=load,
            measuring=measuring,
            admission=_admission(config),
            num_steps=config.num_steps,
            train_on_spot=config.pool.train_on_spot,
        ),
        measuring=measuring,
        interval_s=config.manager.interval_s,
    )


def _training(
    run: RunContext, setup: RunSetup, batches: BatchSource, trainers: TrainerGroup, weights: WeightSource, turns: Turns
) -> TrainingLoop:
    return TrainingLoop(
        run,
        num_steps=setup.config.num_steps,
        turns=turns,
        trainers=trainers,
        weights=weights,
        batches=batches,
        folder=setup.folder.path,
    )


def _notice_watch(setup: RunSetup, ports: Ports, book: GangBook, departures: Departures) -> NoticeWatch:
    config = setup.config
    path = Path(config.pool.notice_file) if config.pool.notice_file else setup.folder.path / "notices"
    return NoticeWatch(book, ports.fleet, departures, path, interval_s=config.manager.interval_s)
