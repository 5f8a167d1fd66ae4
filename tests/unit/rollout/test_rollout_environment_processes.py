"""Environments in real processes: what they answer, and what becomes of those that fail, hang, block, die or lie."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rlserve.errors import ConfigurationError, EnvironmentFailedError, WorkerLostError
from rlserve.rollout.columns import Columns
from rlserve.rollout.environments.base import EnvironmentTask, ModelTurn, Reply
from rlserve.rollout.environments.config import EnvironmentConfig
from rlserve.rollout.environments.factory import create_environments
from rlserve.rollout.environments.pool import EnvironmentPool

ENVIRONMENT = """
import asyncio, os, time

class Game:
    def __init__(self, start=0):
        self.count = start
    async def reset(self, task):
        self.task = task
    async def step(self, turn):
        await asyncio.sleep(0)
        return await getattr(self, turn.text)(turn)
    async def truncate(self):
        return {"reward": self.count, "metrics": {"cut": 1}} if self.count else None
    async def close(self):
        with open("closed", "a") as file:
            file.write(self.task.id + "\\n")

    async def count_up(self, turn):
        self.count += 1
        print("counted", self.count)
        return {"text": f"{self.task.row['name']} {self.count}", "reward": 0.5, "metrics": {"count": 1}}
    async def end(self, turn):
        return {"over": True, "reward": turn.number}
    async def raises(self, turn):
        raise KeyError("lost")
    async def hangs(self, turn):
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await asyncio.sleep(1000)
    async def blocks(self, turn):
        time.sleep(1000)
    async def dies(self, turn):
        os._exit(7)
    async def lies(self, turn):
        return {"text": "x", "reward": float("nan")}
    async def waits(self, turn):
        await asyncio.Event().wait()
"""


def config(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> EnvironmentConfig:
    """Of ``Game`` in a file of ``folder``, which is the working folder."""
    (folder / "game.py").write_text(ENVIRONMENT)
    monkeypatch.chdir(folder)
    return EnvironmentConfig(**{"name": "game.py:Game", "num_workers": 1, **settings})


def task(name: str) -> EnvironmentTask:
    return EnvironmentTask(id=name, prompt="", answer=None, row=Columns({"name": name}))


def turn(text: str, number: int = 0) -> ModelTurn:
    return ModelTurn(text=text, token_ids=(1,), number=number, finished=True, is_last=False)


def with_pool(
    config: EnvironmentConfig, work: Callable[[EnvironmentPool], Awaitable[None]], log_path: Path | None = None
) -> None:
    async def whole() -> None:
        pool = create_environments(config, log_path)
        assert pool is not None
        try:
            await pool.start()
            await work(pool)
        finally:
            pool.close()

    asyncio.run(whole())


def test_many_are_open_at_once_and_each_keeps_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(pool: EnvironmentPool) -> None:
        first, second = await pool.open(task("a")), await pool.open(task("b"))
        assert await first.step(turn("count_up")) == Reply(text="a 6", reward=0.5, metrics={"count": 1.0})
        assert (await first.step(turn("count_up"))).text == "a 7"
        assert (await second.step(turn("count_up"))).text == "b 6"
        assert await first.step(turn("end", 2)) == Reply(over=True, reward=2.0)
        assert await first.truncate() == Reply(over=True, reward=7.0, metrics={"cut": 1.0})
        assert first.duration_s > 0
        first.close()
        first.close()
        await pool.closed()
        assert (tmp_path / "closed").read_text() == "a\n"

    log_path = tmp_path / "logs" / "environment.log"
    with_pool(config(tmp_path, monkeypatch, options={"start": 5}, num_workers=2), work, log_path)
    assert "environments-0 counted 6" in log_path.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raises", r"environment game.py:Game on prompt a: step raised KeyError at .*game.py:\d+: 'lost'"),
        ("hangs", "environment game.py:Game on prompt a: step gave no answer within environment.timeout_s=2"),
        ("lies", r"game.py:Game on prompt a: step returned a reply whose reward must be a finite number: nan"),
    ],
)
def test_one_that_fails_is_named_and_does_not_disturb_others(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(pool: EnvironmentPool) -> None:
        bad, good = await pool.open(task("a")), await pool.open(task("b"))
        with pytest.raises(EnvironmentFailedError, match=message):
            await bad.step(turn(text))
        bad.close()
        assert (await good.step(turn("count_up"))).text == "b 1"

    with_pool(config(tmp_path, monkeypatch, timeout_s=2.0), work)


def test_one_that_blocks_is_to_blame_and_others_only_lose_their_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(pool: EnvironmentPool) -> None:
        bad, good = await pool.open(task("a")), await pool.open(task("b"))
        waiting = asyncio.create_task(good.step(turn("waits")))
        with pytest.raises(
            EnvironmentFailedError, match=r"a: step blocked the event loop .*game.py:\d+; .* must await"
        ):
            await bad.step(turn("blocks"))
        with pytest.raises(WorkerLostError, match="an environment blocked it"):
            await waiting
        with pytest.raises(WorkerLostError):
            await good.step(turn("count_up"))
        again = await pool.open(task("b"))
        assert (await again.step(turn("count_up"))).text == "b 1", "a new process was started"

    with_pool(config(tmp_path, monkeypatch, timeout_s=2.0), work)


def test_a_process_that_dies_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(pool: EnvironmentPool) -> None:
        with pytest.raises(WorkerLostError, match=r"environments-0: its process ended \(exit code 7\)"):
            await (await pool.open(task("a"))).step(turn("dies"))

    with_pool(config(tmp_path, monkeypatch), work)


def test_they_can_be_closed_between_two_runs_of_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with asyncio.Runner() as runner:
        pool = create_environments(config(tmp_path, monkeypatch), None)
        assert pool is not None
        runner.run(pool.start())
        session = runner.run(pool.open(task("a")))
        pool.close()
        with pytest.raises(WorkerLostError):
            runner.run(session.step(turn("count_up")))


def test_no_more_are_open_than_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(pool: EnvironmentPool) -> None:
        first = await pool.open(task("a"))
        second = asyncio.create_task(pool.open(task("b")))
        assert (await first.step(turn("count_up"))).text == "a 1"
        assert not second.done(), "it waits for room"
        first.close()
        assert (await (await second).step(turn("count_up"))).text == "b 1"

    with_pool(config(tmp_path, monkeypatch, max_concurrent=1), work)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "none.py:Game"}, "environment.name=none.py:Game: no such file: none.py"),
        ({"name": "game.py:Play"}, "game.py has no class 'Play'; it has Game"),
        ({"name": "game.py:asyncio"}, "game.py has no class 'asyncio'; it has Game"),
        ({"options": {"begin": 1}}, r"does not take environment.options \(begin\): got an unexpected keyword"),
        ({"name": "no_such_module:Game"}, "no_such_module cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_class_that_cannot_be_had_is_said_before_anything_begins(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(pool: EnvironmentPool) -> None:
        raise AssertionError("it has started")

    with pytest.raises(EnvironmentFailedError, match=message):
        with_pool(config(tmp_path, monkeypatch, **settings), work)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigurationError) as raised:
        EnvironmentConfig(name="Game", max_turns=0, timeout_s=0)
    assert [problem.key for problem in raised.value.problems] == ["name", "max_turns", "timeout_s"]
    assert create_environments(EnvironmentConfig(), None) is None
