"""Prompts and ledger of a run that stops at the end of an epoch, or within a step, and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rollout_builders import make_scored
from rollout_data_files import load, sums, write_jsonl

from rlserve.rollout.buffer import SampleBuffer
from rlserve.rollout.ledger import Ledger
from rlserve.rollout.prompt_source import PromptSource

PROMPTS_PER_STEP = 4


class FakeRun:
    """Admits whatever the ledger has room for, generates at once, and trains step by step."""

    def __init__(self, source: PromptSource, max_staleness: int) -> None:
        self.source = source
        self.ledger = Ledger(prompts_per_step=PROMPTS_PER_STEP, max_staleness=max_staleness)
        self.buffer = SampleBuffer(self.ledger, prompts_per_step=PROMPTS_PER_STEP)
        self.version = 0

    def restore(self, saved: str) -> None:
        """Begin where :meth:`save` was called."""
        state = json.loads(saved)
        self.version = state["version"]
        self.source.restore(state["source"])
        self.ledger.restore(state["ledger"], current_version=self.version, time_s=0.0)
        for record in self.ledger.live():
            self._generate(self.source.get(record.id, position=record.position).id)

    def save(self) -> str:
        """What a checkpoint holds of it."""
        return json.dumps({"version": self.version, "source": self.source.snapshot(), "ledger": self.ledger.snapshot()})

    def admit(self) -> None:
        """Fill the ledger."""
        while self.ledger.room > 0:
            group = self.source.next()
            self.ledger.admit(group.id, position=group.position, current_version=self.version, time_s=0.0)
            self._generate(group.id)

    def train(self, num_steps: int) -> list[str]:
        """Ids of the groups that are trained on."""
        trained = []
        for _ in range(num_steps):
            self.admit()
            batch = self.buffer.take(self.version)
            assert batch is not None
            trained += [scored.group.id for scored in batch]
            self.buffer.commit(time_s=0.0)
            self.version += 1
        return trained

    def _generate(self, group_id: str) -> None:
        record = self.ledger.get(group_id)
        group = self.source.get(group_id, position=record.position)
        self.ledger.start(group_id, version=self.version, time_s=0.0)
        self.ledger.score(group_id, time_s=0.0)
        scored = make_scored(group, [[self.version]], attempt=record.attempt)
        self.buffer.put(scored, time_s=0.0)


@pytest.mark.parametrize("in_mid_step", [False, True])
@pytest.mark.parametrize("max_staleness", [0, 1, 2])
@pytest.mark.parametrize("num_steps_before", [1, 2, 3, 4])
def test_every_row_is_trained_once_an_epoch_over_a_resume(
    tmp_path: Path, num_steps_before: int, max_staleness: int, in_mid_step: bool
) -> None:
    """Of 8 rows, two steps are an epoch. A stop in mid-step has admitted groups that were not trained on."""
    path = write_jsonl(tmp_path / "a.jsonl", sums(8))
    run = FakeRun(load(path, held_out_path=str(path)).source, max_staleness)
    trained = run.train(num_steps_before)
    if in_mid_step:
        run.admit()
    saved = run.save()
    resumed = FakeRun(load(path, held_out_path=str(path)).source, max_staleness)
    resumed.restore(saved)
    trained += resumed.train(6 - num_steps_before)
    assert sorted(trained) == sorted(f"{epoch}:{row}" for epoch in range(3) for row in range(8))
