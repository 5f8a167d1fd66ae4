"""Clients of a run over HTTP, by OpenAI's own client, while the run trains, moves a slot and swaps weights."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from runs import Run, Workplace
from test_moves import assert_one_owner_always, move_by_hand

pytestmark = pytest.mark.slow

NUM_STREAMS = 20
MAX_TOKENS = 300
SETTINGS: Mapping[str, Any] = {
    "num_steps": 10_000,
    "rollout": {"engine": {"num_blocks": 1024}, "server": {"enabled": True, "name": "learning"}},
    "tracking": {"log_format": "json"},
    "pool": {"slots": [{"type": "cpu-a", "count": 3}], "num_initial_rollout": 2},
}


@dataclass
class Answer:
    """What one stream told."""

    token_ids: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    """Of each token."""
    finish_reason: str | None = None
    num_tokens: int = 0
    """By its usage."""

    def take(self, chunk: Any) -> None:
        if chunk.usage is not None:
            self.num_tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            for version, first, end in choice.model_extra["weight_versions"]:
                assert first == len(self.versions), "each span begins where the one before ends"
                self.versions += [version] * (end - first)
            self.token_ids += choice.model_extra["token_ids"]
            assert self.finish_reason is None, "nothing comes after the end"
            self.finish_reason = choice.finish_reason

    def check(self) -> None:
        assert self.finish_reason == "length"
        assert len(self.token_ids) == len(self.versions) == self.num_tokens == MAX_TOKENS
        assert self.versions == sorted(self.versions), "no token is made by older weights than the one before"


class Talkers:
    """Streams that are opened again and again until ``stop``."""

    def __init__(self, address: str) -> None:
        self.answers: list[Answer] = []
        self.stop = asyncio.Event()
        self._client = openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0, timeout=120)

    async def talk(self, number: int) -> None:
        while not self.stop.is_set():
            answer = Answer()
            stream = await self._client.completions.create(
                model="learning",
                prompt=f"{number}+{number}=",
                max_tokens=MAX_TOKENS,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True, "return_token_ids": True, "return_weight_versions": True},
            )
            async for chunk in stream:
                answer.take(chunk)
            self.answers.append(answer)

    async def until(self, condition: Any) -> None:
        while not condition():
            await asyncio.sleep(0.05)


async def talk_through_a_move(run: Run, address: str) -> list[Answer]:
    talkers = Talkers(address)
    async with asyncio.timeout(200), asyncio.TaskGroup() as tasks:
        for number in range(NUM_STREAMS):
            tasks.create_task(talkers.talk(number))
        await talkers.until(lambda: any(len(set(answer.versions)) > 1 for answer in talkers.answers))
        leaving = next(slot_id for slot_id, owner in run.owners().items() if owner == "rollout")
        await asyncio.to_thread(move_by_hand, run, leaving, "train")
        assert run.owners()[leaving] == "train"
        num_before = len(talkers.answers)
        await talkers.until(lambda: len(talkers.answers) >= num_before + NUM_STREAMS)
        await asyncio.to_thread(move_by_hand, run, leaving, "rollout")
        talkers.stop.set()
    return talkers.answers


def test_no_stream_is_broken_by_a_move_or_new_weights(workplace: Workplace) -> None:
    run = workplace.start("talked-to", SETTINGS)
    server_file = run.folder / "server.json"
    run.wait_until(lambda: run.num_steps() >= 1 and server_file.exists(), "the first step")
    address = json.loads(server_file.read_text())["address"]
    answers = asyncio.run(talk_through_a_move(run, address))
    for answer in answers:
        answer.check()
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 128 + signal.SIGINT, run.output
    assert not server_file.exists()
    published = {event["version"] for event in run.events("weights") if event["slot_id"] is None}
    assert {version for answer in answers for version in answer.versions} <= published
    steps = [line["group_ids"] for line in run.lines("samples.jsonl")]
    trained = [group_id for group_ids in steps for group_id in group_ids]
    assert len(trained) == len(set(trained)) == 4 * len(steps)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["groups_trained"] == len(trained)
    assert (summary["worker_failures"], summary["groups_dropped"]) == (0, {})
    assert summary["cost"]["uses"]["clients"]["gpu_hours"] > 0
    assert_one_owner_always(run)
    check_logs(run)


def check_logs(run: Run) -> None:
    """Each line of each process is JSON that says what the process was when it was written."""
    (told,) = {(record["role"], type(record["step"])) for record in records_of(run.folder / "rlserve.log")[1:]}
    assert told == ("controller", int)
    roles = set()
    for slot_id in run.owners():
        for record in records_of(run.folder / "logs" / f"{slot_id.replace('/', '-')}.log"):
            assert record["slot"] == slot_id
            roles.add((record.get("role"), "weight_version" in record, "step" in record))
    assert {("rollout", True, False), ("train", True, True)} <= roles


def records_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]
