"""Environments of the verifiers package, real ones in real processes: their data, their turns, tools and rubrics."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from verifiers_environments import write_modules

from rlserve.errors import EnvironmentFailedError
from rlserve.rollout.columns import Columns
from rlserve.rollout.dataset.base import as_plain
from rlserve.rollout.dataset.json_lines import JsonLines
from rlserve.rollout.environments.base import EnvironmentTask, ModelTurn, Reply
from rlserve.rollout.environments.config import EnvironmentConfig
from rlserve.rollout.environments.factory import create_environments
from rlserve.rollout.environments.verifiers.data import export_data
from rlserve.rollout.environments.verifiers.export import write_data
from rlserve.rollout.environments.verifiers.loading import load
from rlserve.rollout.environments.verifiers.tool_calls import Said, ToolCall, read_tool_calls

verifiers = pytest.importorskip("verifiers", reason="needs pip install 'rlserve[verifiers]'")

FAILURES = (
    "ended with an error: .*the table fell over",
    r"raised KeyError at .*vf_game.py:\d+: 'lost'",
    "changed messages that the model has read or written",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the environments' modules and a cache of its own."""
    write_modules(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLSERVE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def config(name: str, **options: Any) -> EnvironmentConfig:
    return EnvironmentConfig(name=f"verifiers:{name}", options=options, num_workers=1)


def exported(config: EnvironmentConfig, folder: Path) -> Path:
    """The folder with the data of an environment, written in this process."""
    folder = folder / "data"
    folder.mkdir(exist_ok=True)
    write_data(load(config), f"environment.name={config.name}", folder)
    return folder


def task(data: Path, index: int = 0) -> EnvironmentTask:
    """Of a row as a run reads it."""
    row = as_plain(dict(JsonLines(data).row(index)))
    messages = tuple(row["prompt"])
    return EnvironmentTask(id=f"0:{index}/0", prompt="", answer=row["answer"], messages=messages, row=Columns(row))


def turn(text: str, number: int = 0, *, finished: bool = True, is_last: bool = False) -> ModelTurn:
    return ModelTurn(text=text, token_ids=(1,), number=number, finished=finished, is_last=is_last)


def play(config: EnvironmentConfig, folder: Path, turns: Sequence[ModelTurn], index: int = 0) -> list[Reply]:
    """The replies to some turns of one conversation, in this process."""

    async def whole() -> list[Reply]:
        from rlserve.rollout.environments.verifiers.adapter import VerifiersEnvironment

        environment = VerifiersEnvironment(load(config))
        try:
            await environment.reset(task(exported(config, folder) / "train.jsonl", index))
            return [await environment.step(each) for each in turns]
        finally:
            await environment.close()

    return asyncio.run(whole())


def test_the_data_set_becomes_prompts_with_system_prompt_and_examples(folder: Path) -> None:
    data = exported(config("vf-echo", count=3), folder)
    train, held_out = JsonLines(data / "train.jsonl"), JsonLines(data / "held_out.jsonl")
    assert (len(train), len(held_out)) == (3, 4)
    row = train.row(2)
    assert row["prompt"] == [
        {"role": "system", "content": "do as told"},
        {"role": "user", "content": "say 7"},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "say 2"},
    ]
    assert (row["answer"], as_plain(row["example_id"])) == ("2", 2)


def test_a_single_turn_is_scored_by_the_rubric(folder: Path) -> None:
    one = config("vf-echo", weight=0.5)
    right = Reply(over=True, reward=1.5, metrics={"right": 1.0, "num_characters": 1.0, "num_turns": 1.0})
    assert play(one, folder, [turn("3")], index=3) == [right]
    assert play(one, folder, [turn("no", finished=False, is_last=True)], index=3)[0].reward == 0.5 * 2


def test_turns_go_on_until_a_stop_condition_of_the_environment(folder: Path) -> None:
    game = config("vf-game")
    replies = play(game, folder, [turn("9"), turn("4", 1), turn("5", 2)], index=1)
    assert replies[0] == Reply(messages=({"role": "user", "content": "lower"},))
    assert replies[1] == Reply(messages=({"role": "user", "content": "higher"},))
    assert replies[2] == Reply(over=True, reward=0.75, metrics={"found": 1.0, "num_wrong": 2.0, "num_turns": 3.0})
    ended = play(config("vf-game", max_turns=2), folder, [turn("9"), turn("9", 1)])[1]
    assert (ended.over, ended.reward) == (True, -0.125)
    assert (folder / "cleaned").read_text().split() == ["found", "max_turns_reached"]


def test_a_conversation_that_the_run_cuts_is_scored_as_it_is(folder: Path) -> None:
    replies = play(config("vf-game"), folder, [turn("9"), turn("9", 1, is_last=True)])
    assert replies[1].reward == -0.25
    assert not replies[1].over, "it counts as cut"

    assert (folder / "cleaned").read_text() == "prompt_too_long\n"


def test_one_that_is_given_up_is_cleaned_up(folder: Path) -> None:
    play(config("vf-game"), folder, [turn("9")])
    assert (folder / "cleaned").read_text() == "None\n"


def test_tools_are_called_with_their_state(folder: Path) -> None:
    calculator = config("vf-calculator")
    tools = json.loads((exported(calculator, folder) / "about.json").read_text())["tools"]
    assert [tool["function"]["name"] for tool in tools] == ["add"]
    assert sorted(tools[0]["function"]["parameters"]["properties"]) == ["a", "b"], "the caller is not for the model"
    calls = '<tool_call>\n{"name": "add", "arguments": {"a": 20, "b": 22}}\n</tool_call>'
    replies = play(
        calculator, folder, [turn(f"well {calls}{calls}"), turn('<tool_call>{"name": "no"}', 1), turn("42!", 2)]
    )
    said = replies[0].messages or ()
    assert [(each["role"], each["content"]) for each in said] == [("tool", "42 (1)"), ("tool", "42 (2)")]
    assert len({each["tool_call_id"] for each in said}) == 2
    assert "no" in (replies[1].messages or ())[0]["content"]
    assert replies[2].reward == 1.0
    assert {"total_tool_calls": 3.0, "add_calls": 2.0}.items() <= replies[2].metrics.items()


def test_conversations_run_in_processes_and_failures_name_environment_and_place(folder: Path) -> None:
    game = config("vf-game")
    data = export_data(game)
    assert (data.held_out, data.tools, data.max_turns) == (None, [], 4)
    assert not list((folder / "cache").glob("*.partial"))

    async def whole() -> None:
        pool = create_environments(game, None)
        assert pool is not None
        try:
            await pool.start()
            sessions = [await pool.open(task(data.train)) for _ in range(4)]
            await sessions[0].step(turn("9"))
            assert (await sessions[0].truncate()).reward == -0.125
            place = "environment verifiers:vf-game on prompt 0:0/0: step"
            for session, said, what in zip(sessions[1:], ("fail", "break", "rewrite"), FAILURES, strict=True):
                with pytest.raises(EnvironmentFailedError, match=rf"{place} {what}"):
                    await session.step(turn(said))
            for session in sessions:
                session.close()
            await pool.closed()
        finally:
            pool.close()

    asyncio.run(whole())
    assert sorted((folder / "cleaned").read_text().split()) == ["None", "None", "has_error", "prompt_too_long"]


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("group", "cannot be run here, since it scores a group of answers together"),
        ("unscored", "cannot be run here, since it has score_rollouts=False"),
        ("evaluation", "has no data set to train on"),
        ("tools", "row 0: has tools of its own"),
        ("many", r"cannot be run here, since it is a group with tools in one of its environments"),
        ("nothing", r"cannot be loaded: LookupError at .*vf_refused.py:\d+: nothing"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_data(folder: Path, kind: str, what: str) -> None:
    with pytest.raises(EnvironmentFailedError, match=rf"environment.name=verifiers:vf-refused: .*{what}|{what}"):
        exported(config("vf-refused", kind=kind), folder)


def test_one_that_asks_something_else_is_refused_before_its_first_turn(folder: Path) -> None:
    with pytest.raises(EnvironmentFailedError, match=r"^asks something else than the prompt of its data set"):
        play(config("vf-refused", kind="asks"), folder, [])


def test_an_environment_that_is_not_there_is_named_by_the_process_that_reads_its_data(folder: Path) -> None:
    with pytest.raises(EnvironmentFailedError, match=r"^environment.name=verifiers:me/no-such: .* no module no_such"):
        export_data(config("me/no-such"))


def test_signals_stay_with_who_runs_the_process(folder: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    load(config("vf-echo"))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", Said(content="plain")),
        (
            'a <tool_call>{"name": "f", "arguments": {"x": "ü"}}</tool_call>',
            Said(content="a", tool_calls=(ToolCall(name="f", arguments='{"x": "ü"}'),)),
        ),
        (
            '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>\n<tool_call>{"name": "g"}',
            Said(content=None, tool_calls=(ToolCall(name="f", arguments="{}"), ToolCall(name="g", arguments="{}"))),
        ),
        ('<tool_call>{"name": 3}</tool_call>', Said(content='<tool_call>{"name": 3}</tool_call>')),
        ("<tool_call>f(3)</tool_call> b", Said(content="<tool_call>f(3)</tool_call> b")),
    ],
)
def test_tool_calls_are_read_or_left_as_text(text: str, expected: Said) -> None:
    assert read_tool_calls(text) == expected
