"""The long-lived process of one slot, which has one of two roles: train or rollout; or both, of which one sleeps.

Imports, compiled kernels, the engine and the trainer stay warm, so changing roles is a method call and not a
process start. The controller assigns the roles; a worker only refuses calls that do not fit its role. Calls
arrive on several threads (``CONCURRENCY_GROUPS``: the sign of life and each long poll have one to themselves, so
that nothing else can keep them waiting); the rollout role runs its engine in a thread of its own, and train calls are
serialised by a lock.

The driver describes this class to Ray, and stays without torch: whatever needs it is imported by the process itself.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from rlserve.distributed.addresses import LOOPBACK, free_port
from rlserve.distributed.base import RankPlace
from rlserve.engine import Request, RequestOutput
from rlserve.errors import WorkerFailedError
from rlserve.json_log import ProcessFields, create_formatter
from rlserve.pool.base import (
    Collected,
    Copied,
    Copies,
    Joined,
    MemoryChange,
    Profiled,
    SignOfLife,
    Stepped,
    Streamed,
    WorkerInfo,
    WorkerSpec,
)
from rlserve.pool.fork_server import ENGINE_MODULES
from rlserve.pool.imports import import_now, importing
from rlserve.pool.notices.probes.factory import find_probe
from rlserve.pool.notices.worker import WorkerNotices
from rlserve.pool.pacing.base import PacingAccount
from rlserve.pool.pacing.factory import create_pace
from rlserve.trainers import Batch, Membership
from rlserve.weights.canary import CanaryScores
from rlserve.weights.config import sends_deltas
from rlserve.weights.offer import Holding, Offer, Receipt, SentPart, TrainedWeights

if TYPE_CHECKING:
    from rlserve.pool.roles.rollout import RolloutRole

logger = logging.getLogger(__name__)

_TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CONCURRENCY_GROUPS = {"health": 2, "poll": 1, "stream": 1, "profile": 2}
"""Threads for the methods that name a group; all others share those of the default group."""


class Worker:
    """One slot's process. Created as a Ray actor by :class:`rlserve.pool.fleet.Fleet`."""

    def __init__(self, spec: WorkerSpec) -> None:
        log_fields = _configure_logging(spec)
        with importing():  # of the trainer only what every role needs: the rest takes twice as long
            import torch

            from rlserve.pool.roles.engine_rank import EngineRank
            from rlserve.pool.roles.train import TrainRole
            from rlserve.weights.contents.factory import create_contents

            import_now(ENGINE_MODULES)
        torch.set_num_threads(spec.num_threads)
        self._spec = spec
        self._pace = create_pace(spec.pacing)
        self._rank = EngineRank(spec, self._pace, timeout_s=spec.switch_timeout_s)
        self._rollout: RolloutRole | None = None
        self._contents = create_contents(spec.trainer.lora, spec.model_path, getattr(torch, spec.engine.dtype))
        self._train = TrainRole(spec, self._pace, self._contents)
        log_fields.live = self._log_fields
        self._notices = WorkerNotices()
        self._notices.receive_signals()
        if spec.notice_probe is not None:
            self._notices.poll_in_background(find_probe(spec.notice_probe))

    def info(self) -> WorkerInfo:
        """Answers once the process is up."""
        return WorkerInfo(slot_id=self._spec.slot_id, process_id=os.getpid(), host=socket.gethostname())

    @ray.method(concurrency_group="health")  # type: ignore[untyped-decorator]
    def sign_of_life(self, wait_s: float) -> SignOfLife:
        """Answers after ``wait_s``, so that whoever watches over this worker always has a call that breaks with it."""
        time.sleep(wait_s)
        rollout = self._rollout
        is_computing = self._train.is_computing or (rollout is not None and rollout.is_computing)
        return SignOfLife(is_computing=is_computing, notice=self._notices.newest())

    @ray.method(concurrency_group="health")  # type: ignore[untyped-decorator]
    def pacing_account(self) -> PacingAccount | None:
        """How the times of a paced slot have come out; None where nothing is paced."""
        return self._pace.account()

    # -- rollout role ----------------------------------------------------------------------------------------

    def start_rollout(self, place: RankPlace | None) -> None:
        """Take the rollout role. It serves from the first ``take_weights``. ``place`` is that of rank 0 in a gang of
        several; the others are called with ``follow_rollout`` at the same time."""
        assert self._rollout is None, "this worker rolls out already"
        from rlserve.pool.roles.rollout import RolloutRole
        from rlserve.weights.receiver import Receiver
        from rlserve.weights.transports.factory import create_receiving_end

        assert not self._train.is_awake, "a worker uses one role at a time"
        if self._train.active:
            self._rank.size_cache(weight_bytes=self._train.weight_bytes)
        weights = self._spec.weights
        receiver = Receiver(create_receiving_end(weights), keeps_last=sends_deltas(weights))
        engine = self._rank.lead(place)
        self._rollout = RolloutRole(engine, receiver, self._contents, self._pace, self._spec.device)
        logger.info("rollout role: started")

    def follow_rollout(self, place: RankPlace) -> None:
        """Compute a part of the model for the gang's rank 0, whenever that asks for it. Returns at once."""
        assert not self._train.is_awake, "a worker uses one role at a time"
        self._rank.follow(place)
        logger.info("rollout role: rank %d of %d", place.rank, place.num_ranks)

    def take_weights(self, offers: Sequence[Offer], *cargo: Any) -> Receipt:
        """Receive what is offered, link by link of a chain, and swap the last version in at a step boundary. ``cargo``
        is that of all parts, in their order.

        Raises:
            WeightsRefusedError: damaged, changes to what is not here, older than what is loaded, or not for this model.
            ArgumentLostError: what was sent is gone.
        """
        return self._rollout_role().take_weights(offers, cargo)

    def take_own_weights(self, version: int) -> Receipt:
        """Let the engine take the weights of the trainer that sleeps in this process.

        Raises:
            WeightsRefusedError: they are of another version, or not for this model.
        """
        return self._rollout_role().copy_in(version, self._train.weights_of(version))

    def score_canary(self, version: int) -> CanaryScores:
        """What the engine makes of the canary with this version (:meth:`RolloutRole.score_canary`)."""
        return self._rollout_role().score_canary(self._spec.canary, version)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue a batch of requests."""
        self._rollout_role().submit(list(requests))

    def submit_streamed(self, requests: Sequence[Request]) -> None:
        """Queue a batch of requests whose tokens are wanted as they come."""
        self._rollout_role().submit_streamed(list(requests))

    def abort(self, request_ids: Sequence[str]) -> None:
        """End requests that nobody waits for any more."""
        self._rollout_role().abort(request_ids)

    @ray.method(concurrency_group="poll")  # type: ignore[untyped-decorator]
    def collect(self, timeout_s: float) -> Collected:
        """Long poll for finished outputs."""
        return self._rollout_role().collect(timeout_s)

    @ray.method(concurrency_group="stream")  # type: ignore[untyped-decorator]
    def stream(self, timeout_s: float) -> Streamed:
        """Long poll for new tokens of streamed requests."""
        return self._rollout_role().stream(timeout_s)

    @ray.method(concurrency_group="profile")  # type: ignore[untyped-decorator]
    def profile_rollout(self, path: str, max_steps: int, max_s: float) -> Profiled:
        """The next steps of the engine, as a trace in a file (:meth:`RolloutRole.profile`)."""
        return self._rollout_role().profile(Path(path), max_steps, max_s)

    @ray.method(concurrency_group="profile")  # type: ignore[untyped-decorator]
    def end_profile(self) -> None:
        """End the profile of now, if there is one."""
        self._rollout_role().end_profile()

    def stop_rollout(self) -> tuple[RequestOutput, ...]:
        """Generate no more; returns the unfinished requests with the tokens they have."""
        partials = self._rollout_role().stop()
        logger.info("rollout role: stopped, %d requests unfinished", len(partials))
        return partials

    def rollout_ended(self) -> MemoryChange:
        """Give the role up once its last outputs were collected; what was freed of the engine's memory."""
        released = self._rollout_role().free()
        self._rollout = None
        return released

    def release(self) -> None:
        """Give up whatever role this worker has: its gang has lost another, and is formed anew. What it did is done
        again elsewhere."""
        if self._rollout is not None:
            self._rollout.abandon()
            self._rollout = None
        self._rank.end()
        self._train.release()
        logger.info("released: the gang has lost a worker")

    # -- train role ------------------------------------------------------------------------------------------

    def choose_port(self, on_one_machine: bool) -> tuple[str, int]:
        """Address and free port for the rendezvous store of a new group, served by this worker as rank 0."""
        host = LOOPBACK if on_one_machine else ray.util.get_node_ip_address()
        return host, free_port(host)

    def prepare_training(self) -> None:
        """Before ``join_training``: build what that fills (:meth:`TrainRole.prepare`)."""
        assert self._rollout is None, "a worker uses one role at a time"
        self._train.prepare()

    def meet_trainers(self, membership: Membership) -> None:
        """Form the group of a coming ``join_training`` beside whatever this worker does (:meth:`Trainer.meet`)."""
        self._train.meet(membership)

    def break_off_group(self, generation: int) -> None:
        """Wait no longer for the members of groups up to ``generation``, of which one is lost: those who wait fail."""
        self._train.break_off(generation)

    def join_training(self, membership: Membership, loads_model: bool, is_newcomer: bool) -> Joined:
        """Take the train role, or change the group (:meth:`TrainRole.join`)."""
        assert self._rollout is None, "a worker uses one role at a time"
        return self._train.join(membership, loads_model=loads_model, is_newcomer=is_newcomer)

    def step(self, batch: Batch, copies: Copies) -> Stepped:
        """One training step on this rank's share of the batch, and copies of what it has made: in one call, since a
        call takes longer than they do."""
        return self._train.step(batch, copies)

    def last_metrics(self) -> dict[str, float]:
        """Of the last completed training step."""
        return self._train.last_metrics()

    def evaluate(self, batch: Batch) -> dict[str, float]:
        """How well the policy does on a batch of a data set (:meth:`Trainer.evaluate`)."""
        return self._train.evaluate(batch)

    def copy_between_steps(self, copies: Copies) -> Copied:
        """Copy what the next step changes (:meth:`TrainRole.copy`)."""
        return self._train.copy(copies)

    def drop_snapshot(self, version: int) -> None:
        """Free a copy that is not going to be sent."""
        self._train.sender.drop_snapshot(version)

    @ray.method(num_returns=2)  # type: ignore[untyped-decorator]
    def send_weights(self, version: int, base: Holding | None, needed: Sequence[int]) -> tuple[Any, SentPart]:
        """Send a copy, beside whatever else this worker does (:meth:`Sender.send`). The cargo is for receivers alone:
        it stays in the object store."""
        return self._train.sender.send(version, base, needed)

    def discard_weights(self) -> None:
        """Remove all that was sent: the run is over."""
        self._train.sender.discard_all()

    def sleep_training(self) -> MemoryChange:
        """Keep the train role, and give back what it can of the device's memory (:meth:`TrainRole.sleep`)."""
        return self._train.sleep()

    def wake_training(self) -> None:
        """Take the memory again, to step on."""
        assert self._rollout is None, "a worker uses one role at a time"
        self._train.wake()

    def describe_weights(self, version: int) -> TrainedWeights:
        """What engines that take their own trainers' weights must agree with (:meth:`TrainRole.describe_weights`)."""
        return self._train.describe_weights(version)

    def leave_training(self) -> None:
        """Give the train role up and free its memory."""
        self._train.leave()

    def write_state(self, folder: Path) -> None:
        """Write the copy of the state, in whatever role (:meth:`TrainRole.write_state`)."""
        self._train.write_state(folder)

    def load_trainer(self, folder: Path) -> int:
        """Restore what ``write_state`` wrote on all ranks, bit for bit (:meth:`TrainRole.load`)."""
        return self._train.load(folder)

    def _log_fields(self) -> dict[str, Any]:
        """What its log says of it: the role that it uses, and how far that is."""
        rollout, train = self._rollout, self._train
        if rollout is not None:
            version = rollout.weight_version
            return {"role": "rollout", "weight_version": version if version >= 0 else None}
        if train.active:
            return {"role": "train", "step": train.num_steps, "weight_version": train.num_steps}
        return {}

    def _rollout_role(self) -> RolloutRole:
        if self._rollout is None:
            raise WorkerFailedError(f"{self._spec.slot_id} does not have the rollout role")
        return self._rollout


def _configure_logging(spec: WorkerSpec) -> ProcessFields:
    """Have all records written to the worker's log; what they say of it as JSON, to be filled."""
    fields = ProcessFields(slot=spec.slot_id)
    spec.log_path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(spec.log_path)
    handler.setFormatter(create_formatter(spec.log_format, fields, text=_TEXT_FORMAT))
    root: Any = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # The last words of a crash go to standard error, which is a file of Ray's that does not outlive the run. A log of
    # JSON has JSON alone, so they are beside it.
    words = spec.log_path if spec.log_format == "text" else spec.log_path.with_suffix(".stderr")
    with words.open("ab") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    faulthandler.enable(sys.stderr)
    logger.info("worker of %s, process %d, incarnation %d", spec.slot_id, os.getpid(), spec.incarnation)
    return fields
