"""The train role of a worker: one rank of the trainers' group."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError

from rlserve.engine.device.memory import free_device_memory
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import CheckpointError, WeightsRefusedError, WorkerFailedError
from rlserve.pool.base import POLICY_FOLDER, Copied, Copies, Joined, MemoryChange, Stepped, WorkerSpec
from rlserve.pool.fork_server import trainer_modules
from rlserve.pool.imports import import_now
from rlserve.pool.pacing.base import Pace
from rlserve.pool.roles.memory import used_bytes
from rlserve.trainers import Batch, Membership, Trainer
from rlserve.trainers.base import StateCopy
from rlserve.weights.canary import CanaryScores, batch_of
from rlserve.weights.config import sends_deltas
from rlserve.weights.contents.base import Contents
from rlserve.weights.offer import FINGERPRINT_MASK, TrainedWeights
from rlserve.weights.sender import Sender
from rlserve.weights.transports.factory import create_sending_end

logger = logging.getLogger(__name__)

TRAINER_FOLDER = "trainer"
"""Of a checkpoint: what the ranks wrote of their state."""
_NOTHING = Copies()


class TrainRole:
    """Steps one rank's trainer; calls are serialised by a lock.

    The trainer object outlives a spell of training: a worker that returns to it joins with the same, warm object.
    """

    def __init__(self, spec: WorkerSpec, pace: Pace, contents: Contents) -> None:
        self._spec = spec
        self._pace = pace
        self._contents = contents
        self._num_ranks = 0
        """Of the group that it was in last."""
        self._trainer: Trainer | None = None
        self._lock = threading.Lock()
        end, keeps_last = create_sending_end(spec.weights), sends_deltas(spec.weights)
        self.sender = Sender(spec.slot_id, end, contents, keeps_last=keeps_last)
        """Sends what was copied of the weights, also while this rank steps, and after it has left the trainers."""
        self._state_copy: StateCopy | None = None
        """To be written, also when this worker trains no more."""
        self._is_stepping = False
        self.active = False
        """Whether the worker has the role now."""
        self.num_steps: int | None = None
        """That its trainer has done, as of the last boundary between two steps; None before it had one."""
        self._sleeps = False
        self._is_prepared = False
        """Model and optimizer are built, and hold nothing."""

    @property
    def is_awake(self) -> bool:
        """Whether the worker has the role, and uses it."""
        return self.active and not self._sleeps

    @property
    def is_computing(self) -> bool:
        """Whether this rank is in the middle of its own part of a training step, and waits for no other. Waits for
        nothing."""
        trainer = self._trainer
        return self._is_stepping and trainer is not None and not trainer.waits_for_others

    def prepare(self) -> None:
        """Before the role is taken: build what joining fills, so that the other members do not wait for it."""
        with self._lock:
            assert not self.active, "this worker trains already"
            if self._trainer is None:
                self._trainer = self._create_trainer(loads_model=False)
            else:
                self._trainer.leave()
                self._trainer.prepare()
            self._is_prepared = True

    def meet(self, membership: Membership) -> None:
        """Form the group that is joined next, beside a step, for which this does not wait."""
        assert self._trainer is not None, "this worker neither trains nor is prepared to"
        self._trainer.meet(membership)

    def break_off(self, generation: int) -> None:
        """Wait no longer for the members of groups up to ``generation``, wherever this role does."""
        if self._trainer is not None:
            self._trainer.break_off(generation)

    def join(self, membership: Membership, *, loads_model: bool, is_newcomer: bool) -> Joined:
        """Take the role, or change the group. All members call this together.

        Args:
            loads_model: for the first rank of a run, which loads the model from its folder.
            is_newcomer: the rank receives everything from the members, whatever it may hold from a group that went
                on without it.
        """
        with self._lock:
            if self._trainer is None:
                self._trainer = self._create_trainer(loads_model=loads_model)
            elif is_newcomer and not self._is_prepared:
                self._trainer.leave()
            elif self._sleeps:
                self._trainer.wake()
            self._sleeps = self._is_prepared = False
            num_before = self._num_ranks if self.active else membership.num_ranks - 1
            with self._pace.resharding(num_ranks=membership.num_ranks, num_before=num_before):
                traffic = self._trainer.resize(membership)
            self.active, self._num_ranks = True, membership.num_ranks
            num_steps = self.num_steps = self._trainer.num_steps
        logger.info("train role: rank %d of %d", membership.rank, membership.num_ranks)
        return Joined(num_steps=num_steps, traffic=traffic)

    def step(self, batch: Batch, copies: Copies = _NOTHING) -> Stepped:
        """One training step on this rank's share of the batch, and copies of what it has made."""
        with self._lock:
            with self._pace.stepping(num_ranks=self._num_ranks, num_tokens=len(batch.token_ids)), self._computing():
                metrics = self._active_trainer().step(batch)
            self.num_steps = self._active_trainer().num_steps
            return Stepped(metrics=metrics, copied=self._copy(copies))

    def evaluate(self, batch: Batch) -> dict[str, float]:
        """How well the policy does on a batch of a data set, between two steps. All members do so together."""
        with self._lock, self._computing():
            return self._active_trainer().evaluate(batch)

    def last_metrics(self) -> dict[str, float]:
        """Of the last completed step."""
        with self._lock:
            return self._active_trainer().last_metrics

    def copy(self, copies: Copies) -> Copied:
        """Copy, between two steps, what the next one changes: of the weights, for the sender and in the type that they
        travel in, all that this rank has; of the state, what it writes of a checkpoint, to host memory and in place of
        any copy before. All members copy the state between the same two steps."""
        with self._lock:
            return self._copy(copies)

    def weights_of(self, version: int) -> dict[str, torch.Tensor]:
        """What a version of the policy's weights consists of, in the type that it travels in, at a step boundary, also
        of a trainer that sleeps. Views, where that is the trainer's own type: the next step changes them.

        Raises:
            WeightsRefusedError: the trainer holds another version.
        """
        with self._lock:
            return self._weights_of(version)

    def describe_weights(self, version: int) -> TrainedWeights:
        """What every engine must agree with that takes the weights of the trainer beside it, at a step boundary.

        Raises:
            WeightsRefusedError: the trainer holds another version.
        """
        with self._lock:
            weights = self._weights_of(version)
            found = fingerprint(weights.items()) + self._contents.unsent_fingerprint & FINGERPRINT_MASK
            return TrainedWeights(fingerprint=found, canary=self._score_canary(version))

    @property
    def weight_bytes(self) -> int:
        """Of the policy in the engines' type."""
        return self._contents.num_engine_bytes(self._held_trainer().weights())

    def sleep(self) -> MemoryChange:
        """Keep the role, and give back what it can of the device's memory, until :meth:`wake` or :meth:`join`."""
        with self._lock, self._pace.freeing():
            trainer, before_bytes = self._active_trainer(), used_bytes(self._spec.device)
            trainer.sleep(offload=self._spec.offloads_trainer)
            free_device_memory(torch.device(self._spec.device))
            self._sleeps = True
            return MemoryChange(before_bytes=before_bytes, after_bytes=used_bytes(self._spec.device))

    def wake(self) -> None:
        """Take the memory again."""
        with self._lock, self._pace.waking():
            self._held_trainer().wake()
            self._sleeps = False

    def leave(self) -> None:
        """Give the role up and free its memory."""
        with self._lock, self._pace.freeing():
            self._held_trainer().leave()
            self.sender.retire()
            self.active = self._sleeps = False
        logger.info("left the trainers")

    def release(self) -> None:
        """Free the memory, whether the worker has the role or was only prepared for it."""
        if self.active:
            self.leave()
        elif self._is_prepared:
            with self._lock:
                assert self._trainer is not None, "it was prepared"
                self._trainer.leave()
                self._is_prepared = False

    def write_state(self, folder: Path) -> None:
        """Write the copy, and let go of it: the rank's file, and on rank 0 the policy as a Hugging Face folder, or on
        each rank a file of that (:meth:`StateCopy.write`). Waits for no step, no change of roles and no other rank.

        Raises:
            CheckpointError: the folder cannot be written.
            WorkerFailedError: there is no copy.
        """
        copied, self._state_copy = self._state_copy, None
        if copied is None:
            raise WorkerFailedError(f"{self._spec.slot_id} has no copy of a trainer's state to write")
        try:
            copied.write(folder / TRAINER_FOLDER, policy_folder=folder / POLICY_FOLDER)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"checkpoint {folder} cannot be written: {error}") from error

    def load(self, folder: Path) -> int:
        """Restore what the members of a group, of any size, wrote, bit for bit; returns how many steps it holds. All
        members call this."""
        with self._lock:
            trainer = self._active_trainer()
            trainer.load_files(folder / TRAINER_FOLDER)
            self.num_steps = trainer.num_steps
            return self.num_steps

    @contextmanager
    def _computing(self) -> Iterator[None]:
        self._is_stepping = True
        try:
            yield
        finally:
            self._is_stepping = False

    def _copy(self, copies: Copies) -> Copied:
        begin_s = self._pace.now_s()
        canary: CanaryScores = ()
        if copies.version is not None:
            with self._pace.copying():
                self.sender.take_snapshot(copies.version, self._active_trainer().weights())
                canary = self._score_canary(copies.version)
        weights_s = self._pace.now_s()
        if copies.state:
            with self._pace.copying():
                self._state_copy = None
                self._state_copy = self._active_trainer().copy_state()
        return Copied(canary=canary, weights_s=weights_s - begin_s, state_s=self._pace.now_s() - weights_s)

    def _weights_of(self, version: int) -> dict[str, torch.Tensor]:
        trainer = self._held_trainer()
        if trainer.num_steps != version:
            raise WeightsRefusedError(
                f"{self._spec.slot_id} holds version {trainer.num_steps} of the weights, asked for was {version}"
            )
        return {name: tensor.to(self._contents.dtype) for name, tensor in trainer.weights().items()}

    def _score_canary(self, version: int) -> CanaryScores:
        prompts = self._spec.canary
        if not prompts or not self._spec.weights.canary.is_due(version):
            return ()
        # Where the weights are spread, all members copy them, and score together.
        alone = not self._spec.trainer.weights_are_spread
        log_probs = iter(self._active_trainer().log_probs(batch_of(prompts), alone=alone).tolist())
        return tuple(tuple(islice(log_probs, len(prompt) - 1)) for prompt in prompts)

    def _create_trainer(self, *, loads_model: bool) -> Trainer:
        import_now(trainer_modules(self._spec.trainer))
        from rlserve.trainers.factory import create_trainer

        return create_trainer(
            self._spec.trainer,
            self._spec.algorithm,
            model_path=self._spec.model_path,
            seed=self._spec.seed,
            temperature=self._spec.temperature,
            device=self._spec.device,
            load_weights=loads_model,
        )

    def _active_trainer(self) -> Trainer:
        trainer = self._held_trainer()
        assert not self._sleeps, "the trainer sleeps: wake it first"
        return trainer

    def _held_trainer(self) -> Trainer:
        if self._trainer is None or not self.active:
            raise WorkerFailedError(f"{self._spec.slot_id} does not have the train role")
        return self._trainer
