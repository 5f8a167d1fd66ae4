"""The contract of a trainer: one object per rank, all ranks call the same methods in the same order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlserve.distributed.base import RankPlace
from rlserve.trainers.batch import Batch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Membership(RankPlace):
    """A place in a group of ranks, which is formed anew, with the next generation, whenever a rank joins or leaves.

    The port is a fresh one for every generation: a late rank of the old group must not find the new store.
    """

    generation: int
    """Counts the groups of a run, so that a late member of an old group cannot join a new one."""
    num_leaving: int = 0
    """The last ranks that only hand over what no other rank holds, to leave afterwards."""
    gang_size: int = 1
    """Consecutive ranks that come, leave and are lost together: the second holder of what a rank holds is in another
    gang, where there is one."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What the ranks of a new group send each other so that each has what it is to hold."""

    moved_bytes: int = 0
    least_bytes: int = 0
    """Of what ranks are to hold and did not: no plan sends less."""

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            moved_bytes=self.moved_bytes + other.moved_bytes, least_bytes=self.least_bytes + other.least_bytes
        )

    def __mul__(self, times: int) -> Traffic:
        return Traffic(moved_bytes=self.moved_bytes * times, least_bytes=self.least_bytes * times)


class StateCopy(ABC):
    """What one rank writes of a checkpoint, in host memory. It depends on its trainer no more, which may step on,
    change its group, or leave."""

    @abstractmethod
    def write(self, folder: Path, *, policy_folder: Path) -> None:
        """Write this rank's file. Rank 0 also writes the index, and the policy as a Hugging Face folder, of which each
        rank writes its own tensors where weights are spread (:meth:`Trainer.weights`).

        Raises:
            OSError, SafetensorError: something cannot be written.
        """


class Trainer(ABC):
    """Steps a policy on batches, as one rank of a group that can change at step boundaries.

    In the backend ``torch`` every rank has all weights. The optimizer's state is cut into shards, and each shard is
    held by two ranks, so that nothing is lost with any one rank, and a run has the same bits on any number of ranks.
    With ``sharding=full`` weights are cut up too, and each rank alone has its shard of everything. In ``deepspeed``
    what ZeRO cuts up is on one rank alone. What one rank alone has is lost with it.
    """

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Steps taken since the initial weights: the version of the weights that this trainer holds."""

    @property
    @abstractmethod
    def last_metrics(self) -> dict[str, float]:
        """Of the last completed step; none before the first, and after ``load_state``."""

    @property
    @abstractmethod
    def waits_for_others(self) -> bool:
        """Whether this rank is in the middle of an operation of its group, in which others may keep it waiting. May be
        read by any thread."""

    @abstractmethod
    def step(self, batch: Batch) -> dict[str, float]:
        """Train on one batch and return its metrics, the same on every rank.

        Every rank is given the whole batch and computes its share of the logical shards. Samples whose rewards or
        log-probabilities are not all finite are left out, and counted in ``training/num_nonfinite_samples``.

        Raises:
            NonFiniteLossError: on all ranks; the loss or the gradient is not finite, or no sample is; nothing of the
                step stays applied.
            UserError: this rank ran out of memory; the message names what to lower.
            WorkerFailedError: a rank died or did not answer in time. The group is broken: ``resize`` into a new one,
                which takes the step back or completes it, or ``leave``.
        """

    @abstractmethod
    def evaluate(self, batch: Batch) -> dict[str, float]:
        """How well the policy does on samples of a data set: what a supervised algorithm calls ``loss`` and so on, the
        same on every rank. Every rank is given the whole batch, and computes its share.

        Raises:
            UserError: the algorithm is not a supervised one; or, as ``step``, memory ran out.
            WorkerFailedError: as ``step``.
        """

    @abstractmethod
    def weights(self) -> dict[str, torch.Tensor]:
        """The policy's trained weights under their Hugging Face names, detached, on the trainer's device, float32. With
        LoRA these are the adapters, under the names of peft's files.

        Views: the next step changes them. A tied output head is not listed apart from the embedding. Any rank has all
        of them, except where ``weights_are_spread`` (``trainers/backends/config.py``): there each rank of several has
        some, each tensor on one rank alone, as a copy in host memory.
        """

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """Write the policy as a Hugging Face model folder (config.json, model.safetensors), without a tokenizer; with
        LoRA, its adapters as a folder of peft (adapter_config.json, adapter_model.safetensors). Rank 0 writes; on other
        ranks nothing happens. Where weights are spread over several ranks, all are called, in any order, and each
        writes a file of its own: the folder is whole once all have returned."""

    @abstractmethod
    def meet(self, membership: Membership) -> None:
        """Form the group of ``membership`` ahead, for the ``resize`` into that generation; until then the group of now
        stays. May be called in another thread while this rank steps. All members of the new group call this together.

        Raises:
            DeadlineExceededError: not all members came in time; the message names who is missing.
            WorkerFailedError: a member came and was lost again.
        """

    @abstractmethod
    def break_off(self, generation: int) -> None:
        """Let ``meet`` and ``resize`` wait no longer for the members of groups up to ``generation``, of which one is
        lost: they raise ``WorkerFailedError``. Called in another thread."""

    @abstractmethod
    def resize(self, membership: Membership) -> Traffic:
        """Join the group of ``membership`` and leave any other. All ranks call this together; newcomers receive the
        state in memory, from all who hold it, and everybody sends what has a new holder. Where the group has met, and
        ranks join between two steps, that goes on beside the next step; what needs all of it waits. Returns what all
        ranks send, or will have sent: the same on each.

        A step that a lost rank broke off is settled on all ranks alike: it is completed where a survivor has completed
        it, and taken back otherwise, which ``num_steps`` tells.

        Raises:
            DeadlineExceededError: not all members came in time; the message names who is missing.
            WorkerFailedError: a member came and was lost again.
            StateLostError: no member holds some part of the state.
        """

    @abstractmethod
    def sleep(self, *, offload: bool) -> None:
        """Between two steps: free what only a step needs, and stay in the group. With ``offload`` parameters and the
        optimizer's state go to host memory, where that is another than the device's. Until ``wake``, only ``weights``,
        ``num_steps`` and ``leave`` may be called."""

    @abstractmethod
    def wake(self) -> None:
        """Be where ``sleep`` was called."""

    @abstractmethod
    def prepare(self) -> None:
        """After ``leave``: build what ``resize`` fills, beforehand, so that the others do not wait for it there."""

    @abstractmethod
    def leave(self) -> None:
        """Leave the group and free the memory of model and optimizer; ``resize`` brings the rank back."""

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a checkpoint needs, as named tensors: policy, critic, optimizer, counters, reference. All
        ranks call this together, and each gets all of it.

        Views, as far as this rank holds a tensor: the next step changes them.
        """

    @abstractmethod
    def copy_state(self) -> StateCopy:
        """Copy to host memory what this rank writes of a checkpoint: its share of what ``state`` returns. All ranks of
        a group do so between the same two steps; none waits for another, unless the state of one that joined still
        comes in.

        Raises:
            WorkerFailedError: a rank was lost, while others waited for it.
        """

    @abstractmethod
    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what ``state`` returned, bit for bit, on any number of ranks and in any backend; each takes its own
        part. All ranks of a group call this.

        Raises:
            WeightsRefusedError: names, shapes or types do not fit; nothing was changed.
        """

    @abstractmethod
    def load_files(self, folder: Path) -> None:
        """As ``load_state``, of what all ranks of a group, of any size, wrote by ``copy_state``. Reads only what this
        rank holds.

        Raises:
            WeightsRefusedError: names, shapes or types do not fit; nothing was changed.
        """

    @abstractmethod
    def log_probs(self, batch: Batch, *, alone: bool = False) -> NDArray[np.float32]:
        """[A] raw log-probabilities of the trained response tokens under the current policy; 0 at all others.

        ``alone``: this rank computes all of them, and no other rank is asked. Not where ``weights_are_spread``.
        """

    @abstractmethod
    def values(self, batch: Batch) -> NDArray[np.float32]:
        """[A] the values of the critic, or of a model that scores, at the trained response tokens: of the state before
        each is made; 0 at all others.

        Raises:
            UserError: the algorithm has no critic.
        """
