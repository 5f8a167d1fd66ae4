"""What is kept of a run: its checkpoints, and what it comes down to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlserve.controller.checkpoint import SavedRun, checkpoint_name, note_score, save_checkpoint
from rlserve.controller.context import Books, RunContext
from rlserve.controller.counters import Counters
from rlserve.controller.group_copies import GroupCopies, MemberCopy
from rlserve.controller.reallocation import Reallocation
from rlserve.controller.replicas import Replicas
from rlserve.controller.setup import RunSetup
from rlserve.controller.summing_up import sum_up
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.controller.weight_source import WeightSource
from rlserve.errors import CheckpointError, WriterLostError
from rlserve.manager.initial_split import resumed_split
from rlserve.manager.roles import Role
from rlserve.pool.base import POLICY_FOLDER
from rlserve.pool.config import PoolConfig
from rlserve.rollout.ledger import Ledger
from rlserve.tracking.events import CheckpointEvent
from rlserve.tracking.summary import RunSummary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class _Copied:
    """A checkpoint before it is written."""

    step: int
    run: dict[str, Any]
    slot_ids: tuple[str, ...]
    """Of the workers that each have a part of the trainers' state."""


class RunSaver:
    """Saves a run, and sums it up.

    ::

        training     ── step ┤ copy ├── step ── step ── …      with their step the trainers copy what they write;
        checkpoint                  └─ write, sync, seal ─┤    training goes on while it is written
    """

    def __init__(
        self,
        run: RunContext,
        books: Books,
        setup: RunSetup,
        trainers: TrainerGroup,
        weights: WeightSource,
        replicas: Replicas,
        reallocation: Reallocation,
    ) -> None:
        self._run = run
        self._books = books
        self._setup = setup
        self._trainers = trainers
        self._weights = weights
        self._replicas = replicas
        self._reallocation = reallocation
        self._loop_start_s: float | None = None
        self._writing: asyncio.Task[None] | None = None
        """The checkpoint that was begun last, beside the training."""

    def loops_begin(self) -> None:
        """From now on is spent generating and training."""
        self._loop_start_s = self._run.clock.now()

    def loops_end(self) -> None:
        """Until now was."""
        assert self._loop_start_s is not None, "the loops have not begun"
        self._run.counters.loop_s += self._run.clock.now() - self._loop_start_s
        self._loop_start_s = None

    def check_integrity(self) -> None:
        """Assert what always holds of the owners of state: cheap beside a step, and a bug is found where it is made."""
        for owner in (self._books.ledger, self._books.router, self._books.buffer, self._reallocation.table):
            owner.check_integrity()

    async def make_room(self) -> float:
        """Before a step whose state is copied: wait for the checkpoint before, since one is written at a time; returns
        how many seconds that took."""
        begin_s = self._run.clock.now()
        if self._writing is not None and not self._writing.done():
            logger.info("training waits until the checkpoint before is written: checkpoint.every_steps is short for it")
        await self.settled()
        return self._run.clock.now() - begin_s

    def begin_save(self, copies: Sequence[MemberCopy], *, waited_s: float, held_out: float | None = None) -> float:
        """Let be written what trainers have copied of their state with the last step, after :meth:`make_room`, while
        training goes on; returns how many seconds training has stood still for it. One that cannot be written is a
        warning.

        ``held_out`` is the score that was taken after this step, if one was."""
        assert self._writing is None or self._writing.done(), "the workers' copies of the one before are gone"
        begin_s = self._run.clock.now()
        copied = self._copied(copies, held_out)
        copy_s = max(copy.copied.state_s for copy in copies)
        pause_s = waited_s + copy_s + self._run.clock.now() - begin_s
        self._writing = self._run.tasks.create_task(self._write_beside(copied, pause_s=pause_s))
        return pause_s

    async def settled(self) -> None:
        """Return when no checkpoint is being written."""
        if self._writing is not None:
            await self._writing

    async def save(self) -> None:
        """Write a checkpoint to its end; anew where a worker is lost that wrote a part of it.

        Raises:
            CheckpointError: it cannot be written.
        """
        await self.settled()
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            begin_s = self._run.clock.now()
            copied = self._copied(await self._trainers.copy(GroupCopies(state=True)))
            try:
                await self._write(copied, pause_s=self._run.clock.now() - begin_s)
            except WriterLostError as error:
                if attempt == _MAX_ATTEMPTS:
                    raise
                logger.warning("%s; it is written anew", error)
            else:
                return

    def _copied(self, copies: Sequence[MemberCopy], held_out: float | None = None) -> _Copied:
        self.check_integrity()
        run = {
            "counters": self._current_counters().to_dict(),
            "ledger": self._books.ledger.snapshot(),
            "source": self._setup.preparation.source.snapshot(),
            "split": {
                "roles": self._reallocation.roles,
                "num_initial_rollout": self._setup.config.pool.num_initial_rollout,
            },
            "elapsed_s": self._run.clock.now(),
            "held_out": held_out,
        }
        slot_ids = tuple(copy.slot_id for copy in copies)
        return _Copied(step=self._run.counters.num_steps, run=run, slot_ids=slot_ids)

    async def _write_beside(self, copied: _Copied, *, pause_s: float) -> None:
        try:
            await self._write(copied, pause_s=pause_s)
        except CheckpointError as error:  # a full disk may have room again by the next one
            logger.warning("%s; the run goes on", error)
        except asyncio.CancelledError:
            logger.warning("the checkpoint of step %d was not yet written, and is given up", copied.step)
            raise

    async def _write(self, copied: _Copied, *, pause_s: float) -> None:
        tokenizer, begin_s = self._setup.preparation.tokenizer, self._run.clock.now()

        async def write_model(folder: Path) -> None:
            await self._trainers.write_state(copied.slot_ids, folder)
            await asyncio.to_thread(save_tokenizer, tokenizer, folder / POLICY_FOLDER)

        config, folder = self._setup.config.checkpoint, self._setup.folder.checkpoints
        await save_checkpoint(
            folder, copied.step, write_model, copied.run, keep=config.keep, keep_best=config.keep_best
        )
        now_s = self._run.clock.now()
        self._run.events.emit(
            CheckpointEvent(time_s=now_s, step=copied.step, pause_s=pause_s, duration_s=now_s - begin_s)
        )

    def note_score(self, score: float) -> None:
        """Put the held-out score of the last step beside its checkpoint, if that could be written."""
        checkpoint = self._setup.folder.checkpoints / checkpoint_name(self._run.counters.num_steps)
        if not checkpoint.is_dir():
            return
        try:
            note_score(checkpoint, score)
        except OSError as error:  # the disk is full, say: the score stands in the summary too
            logger.warning("the score of %s cannot be written beside it: %s", checkpoint, error.strerror or error)

    def summary(self, *, held_out_after: float | None) -> RunSummary:
        """The numbers that the run comes down to."""
        return sum_up(
            self._current_counters(),
            self._books.ledger,
            self._run.pacing.verdict(),
            learns_from_data=not self._setup.config.algorithm.needs.rollouts,
            held_out_after=held_out_after,
            weight_version=self._weights.version,
            seconds_total=self._run.clock.now(),
        )

    def _current_counters(self) -> Counters:
        """The counters with what this process has added so far."""
        counters, now = self._run.counters, self._run.clock.now()
        running_s = 0.0 if self._loop_start_s is None else now - self._loop_start_s
        return replace(
            counters,
            num_generated_tokens=counters.num_generated_tokens + self._replicas.num_generated_tokens,
            loop_s=counters.loop_s + running_s,
        )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer beside the policy.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the tokenizers library raises nothing more particular where a disk is full
        raise CheckpointError(f"the tokenizer cannot be written to {folder}: {error}") from error


def roles_at(saved: SavedRun, pool: PoolConfig, first: Mapping[str, Role]) -> dict[str, Role]:
    """Role of each gang where a run goes on: the one that it had, unless the pool has other gangs now or another
    ``num_initial_rollout``; then its ``first`` one."""
    split = saved.content["split"]
    is_split = pool.placement != "colocated" and Role.ROLLOUT in first.values()
    if not is_split or pool.num_initial_rollout != split["num_initial_rollout"]:
        return dict(first)
    return resumed_split(first, {gang_id: Role(role) for gang_id, role in split["roles"].items()})


def restore(saved: SavedRun, ledger: Ledger, *, time_s: float) -> Counters:
    """Bring ``ledger`` to where a checkpoint was, and return its counters. The place in the data is gone back to before
    anything is started."""
    counters = Counters.from_dict(saved.content["counters"])
    ledger.restore(saved.content["ledger"], current_version=counters.num_steps, time_s=time_s)
    return counters
