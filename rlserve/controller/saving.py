"""What is kept of a run: its checkpoints, and what it comes down to."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlserve.controller.checkpoint import SavedRun, save_checkpoint
from rlserve.controller.context import Books, RunContext
from rlserve.controller.counters import Counters
from rlserve.controller.reallocation import Reallocation
from rlserve.controller.replicas import Replicas
from rlserve.controller.setup import RunSetup
from rlserve.controller.summing_up import sum_up
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.controller.weight_source import WeightSource
from rlserve.errors import CheckpointError
from rlserve.pool.base import POLICY_FOLDER
from rlserve.rollout.ledger import Ledger
from rlserve.tracking.summary import RunSummary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RunSaver:
    """Saves a run, and sums it up."""

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

    async def save(self) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: it cannot be written.
        """
        tokenizer, counters = self._setup.preparation.tokenizer, self._run.counters

        async def write_model(folder: Path) -> None:
            await self._trainers.save(folder)
            await asyncio.to_thread(save_tokenizer, tokenizer, folder / POLICY_FOLDER)

        self.check_integrity()
        run = {
            "counters": self._current_counters().to_dict(),
            "ledger": self._books.ledger.snapshot(),
            "source": self._setup.preparation.source.snapshot(),
            "elapsed_s": self._run.clock.now(),
        }
        keep = self._setup.config.checkpoint.keep
        await save_checkpoint(self._setup.folder.checkpoints, counters.num_steps, write_model, run, keep=keep)

    def summary(self, *, held_out_after: float | None) -> RunSummary:
        """The numbers that the run comes down to."""
        return sum_up(
            self._current_counters(),
            self._books.ledger,
            self._run.pacing.verdict(),
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


def restore(saved: SavedRun, ledger: Ledger, *, time_s: float) -> Counters:
    """Bring ``ledger`` to where a checkpoint was, and return its counters. The place in the data is gone back to before
    anything is started."""
    counters = Counters.from_dict(saved.content["counters"])
    ledger.restore(saved.content["ledger"], current_version=counters.num_steps, time_s=time_s)
    return counters
