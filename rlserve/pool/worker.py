"""The long-lived process of one slot, which wears one of two hats: train or rollout.

Imports, compiled kernels, the engine and the trainer stay warm, so changing hats is a method call and not a
process start. The controller decides who wears what; a worker only refuses what does not fit its hat. Calls
arrive on several threads (``CONCURRENCY_GROUPS``: the sign of life and the long poll have one each to themselves, so
that nothing else can keep them waiting); the rollout hat runs its engine in one thread of its own, and train calls are
serialised by a lock.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rlserve.engine import Engine, EngineConfig, Request, RequestOutput
from rlserve.errors import CheckpointError, UserError, WorkerFailedError
from rlserve.pool.base import Collected, WorkerInfo, WorkerSpec
from rlserve.pool.rollout_hat import RolloutHat
from rlserve.trainers import Batch, Membership, Trainer, create_trainer
from rlserve.weights.base import Receipt
from rlserve.weights.snapshot import WeightSnapshot, pack

logger = logging.getLogger(__name__)

POLICY_FOLDER = "policy"
TRAINER_FILE = "trainer.safetensors"
CONCURRENCY_GROUPS = {"health": 1, "poll": 1}
"""Threads for the methods that name a group; all others share those of the default group."""


class Worker:
    """One slot's process. Created as a Ray actor by :class:`rlserve.pool.fleet.Fleet`."""

    def __init__(self, spec: WorkerSpec) -> None:
        _configure_logging(spec)
        torch.set_num_threads(spec.num_threads)
        self._spec = spec
        self._engine: Engine | None = None
        self._rollout: RolloutHat | None = None
        self._trainer: Trainer | None = None
        self._training = False
        self._train_lock = threading.Lock()

    def info(self) -> WorkerInfo:
        """Answers once the process is up."""
        return WorkerInfo(slot_id=self._spec.slot_id, process_id=os.getpid(), host=socket.gethostname())

    @ray.method(concurrency_group="health")  # type: ignore[untyped-decorator]
    def ping(self) -> None:
        """A sign of life."""

    # -- rollout hat -----------------------------------------------------------------------------------------

    def start_rollout(self) -> None:
        """Put the rollout hat on. It serves from the first ``load_weights``."""
        assert self._rollout is None, "this worker rolls out already"
        assert not self._training, "a worker wears one hat at a time"
        if self._engine is None:
            self._engine = Engine(self._spec.model_path, _engine_config(self._spec), load_weights=False)
        else:
            self._engine.restore_memory()
        self._rollout = RolloutHat(self._engine)
        logger.info("rollout hat on")

    def load_weights(self, snapshot: WeightSnapshot) -> Receipt:
        """Swap in a version of the weights at a step boundary.

        Raises:
            WeightsRefusedError: damaged, older than what is loaded, or not for this model.
        """
        return self._worn_rollout().load_weights(snapshot)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue a batch of requests."""
        self._worn_rollout().submit(list(requests))

    @ray.method(concurrency_group="poll")  # type: ignore[untyped-decorator]
    def collect(self, timeout_s: float) -> Collected:
        """Long poll for finished outputs."""
        return self._worn_rollout().collect(timeout_s)

    def stop_rollout(self) -> tuple[RequestOutput, ...]:
        """Take the rollout hat off; returns the unfinished requests with the tokens they have."""
        partials = self._worn_rollout().stop()
        logger.info("rollout hat off, %d requests unfinished", len(partials))
        return partials

    def rollout_ended(self) -> None:
        """Forget the hat once its last outputs were collected."""
        self._rollout = None

    # -- train hat -------------------------------------------------------------------------------------------

    def choose_port(self, on_one_machine: bool) -> tuple[str, int]:
        """Address and free port for the rendezvous store of a new group, served by this worker as rank 0."""
        host = "127.0.0.1" if on_one_machine else ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return host, int(probe.getsockname()[1])

    def join_training(self, membership: Membership, holds_state: bool) -> None:
        """Put the train hat on, or change the group. All members call this together.

        ``holds_state`` is for the rank 0 of a run's first group, which loads the model from its folder; every
        other newcomer receives everything from rank 0.
        """
        assert self._rollout is None, "a worker wears one hat at a time"
        with self._train_lock:
            if self._trainer is None:
                self._trainer = create_trainer(
                    self._spec.trainer,
                    self._spec.algorithm,
                    model_path=self._spec.model_path,
                    seed=self._spec.seed,
                    temperature=self._spec.temperature,
                    device=self._spec.device,
                    load_weights=holds_state,
                )
            self._trainer.resize(membership)
            self._training = True
        logger.info("train hat on: rank %d of %d", membership.rank, membership.world_size)

    def step(self, batch: Batch) -> dict[str, float]:
        """One training step on this rank's share of the batch."""
        with self._train_lock:
            return self._worn_trainer().step(batch)

    def rollback(self) -> None:
        """Take back a step that a lost rank broke off."""
        with self._train_lock:
            self._worn_trainer().rollback()

    def pack_weights(self, version: int) -> tuple[WeightSnapshot, int]:
        """The policy's weights in the engines' type, and their fingerprint. Rank 0 only."""
        with self._train_lock:
            snapshot = pack(version, self._worn_trainer().weights(), getattr(torch, self._spec.engine.dtype))
        return snapshot, snapshot.fingerprint

    def leave_training(self) -> None:
        """Take the train hat off and free its memory."""
        with self._train_lock:
            self._worn_trainer().leave()
            self._training = False
        logger.info("train hat off")

    def save_trainer(self, folder: Path) -> None:
        """Write the policy as a Hugging Face folder and everything else as one safetensors file.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        with self._train_lock:
            trainer = self._worn_trainer()
            try:
                trainer.save_pretrained(folder / POLICY_FOLDER)
                save_file(trainer.state(), folder / TRAINER_FILE)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"checkpoint {folder} cannot be written: {error}") from error

    def load_trainer(self, folder: Path) -> None:
        """Restore what ``save_trainer`` wrote, bit for bit."""
        with self._train_lock:
            self._worn_trainer().load_state(load_file(folder / TRAINER_FILE))

    def _worn_rollout(self) -> RolloutHat:
        if self._rollout is None:
            raise WorkerFailedError(f"{self._spec.slot_id} does not wear the rollout hat")
        return self._rollout

    def _worn_trainer(self) -> Trainer:
        if self._trainer is None or not self._training:
            raise WorkerFailedError(f"{self._spec.slot_id} does not wear the train hat")
        return self._trainer


def _engine_config(spec: WorkerSpec) -> EngineConfig:
    """Where the run does not say, the engine computes on the slot's device: a process can see GPUs that are
    not its own.

    Raises:
        UserError: the engine wants more GPUs than the slot has.
    """
    if spec.device == "cuda" and spec.engine.tensor_parallel_size > 1:
        raise UserError(
            f"rollout.engine.tensor_parallel_size must be 1 where slots are GPUs ({spec.slot_id}): a replica has one "
            f"slot, got {spec.engine.tensor_parallel_size}"
        )
    return replace(spec.engine, device=spec.device) if spec.engine.device == "auto" else spec.engine


def _configure_logging(spec: WorkerSpec) -> None:
    spec.log_path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(spec.log_path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root: Any = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # The last words of a crash go to standard error, which is a file of Ray's that does not outlive the run.
    assert handler.stream is not None
    os.dup2(handler.stream.fileno(), sys.stderr.fileno())
    faulthandler.enable(sys.stderr)
    logger.info("worker of %s, process %d, incarnation %d", spec.slot_id, os.getpid(), spec.incarnation)
