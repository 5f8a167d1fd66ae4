"""What is asked: drawn workloads and those of files, and the bodies that become of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.bench.client.request import Endpoint, History, RequestSettings, request_body
from rlserve.bench.lengths import FixedLengths, UniformLengths
from rlserve.bench.prompts.exact import TokenIdWriter
from rlserve.bench.prompts.words import WordWriter
from rlserve.bench.workloads.base import Turn
from rlserve.bench.workloads.factory import WorkloadKind, WorkloadSettings, create_workload
from rlserve.bench.workloads.recorded import BLOCK_TOKENS, TraceWorkload
from rlserve.errors import DataError, UserError

WORDS = WordWriter()
IDS = TokenIdWriter(range(1000))


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def settings_of(kind: WorkloadKind, **more: Any) -> WorkloadSettings:
    return WorkloadSettings(kind=kind, **more)


class TestDrawn:
    @pytest.mark.parametrize("kind", [WorkloadKind.RANDOM, WorkloadKind.PREFIX, WorkloadKind.CONVERSATION])
    @given(index=st.integers(0, 10_000), seed=st.integers(0, 5))
    def test_a_conversation_follows_from_seed_and_index_alone(self, kind: WorkloadKind, index: int, seed: int) -> None:
        settings = settings_of(kind, seed=seed, input_tokens=UniformLengths(1, 9), prefix_tokens=3)
        first, again = create_workload(settings, WORDS), create_workload(settings, WORDS)
        again.conversation(index + 1)
        assert first.conversation(index) == again.conversation(index)

    def test_prompts_have_the_lengths_that_were_drawn(self) -> None:
        workload = create_workload(settings_of(WorkloadKind.RANDOM, input_tokens=UniformLengths(5, 8)), IDS)
        turns = [workload.conversation(index).turns[0] for index in range(200)]
        assert {len(turn.prompt) for turn in turns} == {5, 6, 7, 8}
        assert all(turn.max_tokens == 128 and turn.ignores_end for turn in turns)
        assert len({turn.prompt for turn in turns}) == 200

    def test_prefixes_are_shared_and_what_follows_is_not(self) -> None:
        settings = settings_of(WorkloadKind.PREFIX, num_prefixes=3, prefix_tokens=40, input_tokens=FixedLengths(10))
        workload = create_workload(settings, IDS)
        prompts = [workload.conversation(index).turns[0].prompt for index in range(90)]
        assert all(len(prompt) == 50 for prompt in prompts)
        assert len({prompt[:40] for prompt in prompts}) == 3
        assert len({prompt[40:] for prompt in prompts}) == 90

    def test_only_later_turns_wait_for_the_user_to_think(self) -> None:
        settings = settings_of(WorkloadKind.CONVERSATION, num_turns=FixedLengths(3), think_s=1.5)
        turns = create_workload(settings, WORDS).conversation(0).turns
        assert [turn.wait_s for turn in turns] == [0.0, 1.5, 1.5]

    def test_answers_may_end_where_the_model_ends_them(self) -> None:
        workload = create_workload(settings_of(WorkloadKind.RANDOM, ignores_end=False), WORDS)
        assert not workload.conversation(0).turns[0].ignores_end


class TestPromptFile:
    def test_rows_are_asked_as_they_stand_and_from_the_first_again(self, tmp_path: Path) -> None:
        messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
        rows = [{"prompt": "say a", "max_tokens": 5}, "", {"prompt": [3, 4]}, {"messages": messages}]
        settings = settings_of(WorkloadKind.JSONL, file=write_lines(tmp_path / "p.jsonl", rows))
        workload = create_workload(settings, WORDS)
        assert (workload.num_conversations, workload.has_messages) == (3, True)
        turns = [workload.conversation(index).turns[0] for index in range(4)]
        assert turns[0] == Turn(prompt="say a", max_tokens=5) == turns[3]
        assert turns[1] == Turn(prompt=(3, 4), max_tokens=128)
        assert turns[2] == Turn(messages=tuple(messages), max_tokens=128)

    @pytest.mark.parametrize(
        ("row", "what"),
        [
            ("{broken", "no JSON"),
            ([1], "an object"),
            ({}, "either prompt or messages"),
            ({"prompt": "a", "messages": [{"role": "user"}]}, "either prompt or messages"),
            ({"prompt": ""}, "not empty"),
            ({"prompt": [1, -2]}, "token ids"),
            ({"prompt": "a", "max_tokens": 0}, "at least 1"),
            ({"prompt": "a", "max_tokens": True}, "whole number"),
            ({"messages": ["hi"]}, "role"),
        ],
    )
    def test_a_bad_row_is_named_before_anything_is_sent(self, tmp_path: Path, row: Any, what: str) -> None:
        path = write_lines(tmp_path / "p.jsonl", [{"prompt": "fine"}, row])
        with pytest.raises(DataError, match=rf"p\.jsonl:2: .*{what}"):
            create_workload(settings_of(WorkloadKind.JSONL, file=path), WORDS)

    def test_a_file_that_is_not_there_or_empty_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="--file"):
            create_workload(settings_of(WorkloadKind.JSONL), WORDS)
        with pytest.raises(DataError, match="cannot be read"):
            create_workload(settings_of(WorkloadKind.JSONL, file=tmp_path / "none"), WORDS)
        with pytest.raises(DataError, match="no lines"):
            create_workload(settings_of(WorkloadKind.JSONL, file=write_lines(tmp_path / "e", [""])), WORDS)


class TestTrace:
    def trace(self, path: Path, rows: list[Any], **more: Any) -> TraceWorkload:
        file = write_lines(path / "t.jsonl", rows)
        workload = create_workload(settings_of(WorkloadKind.TRACE, file=file, **more), IDS)
        assert isinstance(workload, TraceWorkload)
        return workload

    def test_arrivals_are_as_recorded_from_the_first_and_as_fast_as_asked(self, tmp_path: Path) -> None:
        rows = [{"timestamp": stamp, "input_length": 4, "output_length": 6} for stamp in (1000, 1500, 3000)]
        workload = self.trace(tmp_path, rows, speed=2.0)
        found = [workload.conversation(index) for index in range(5)]
        # The second round begins one mean gap, of 1 s, after the last of the first.
        assert [each.arrival_s for each in found] == [0.0, 0.25, 1.0, 1.5, 1.75]
        assert [(len(each.turns[0].prompt), each.turns[0].max_tokens) for each in found] == [(4, 6)] * 5

    def test_blocks_are_shared_as_they_were_and_the_rest_is_not(self, tmp_path: Path) -> None:
        length = 2 * BLOCK_TOKENS + 100
        rows = [
            {"timestamp": 0, "input_length": length, "output_length": 1, "hash_ids": [7, 8, 9]},
            {"timestamp": 1, "input_length": length, "output_length": 1, "hash_ids": [7, 8, 10]},
            {"timestamp": 2, "input_length": 700, "output_length": 1, "hash_ids": [7]},
        ]
        first, second, third = (self.trace(tmp_path, rows).conversation(i).turns[0].prompt for i in range(3))
        assert (len(first), len(second), len(third)) == (length, length, 700)
        assert first[: 2 * BLOCK_TOKENS] == second[: 2 * BLOCK_TOKENS]
        assert first[:BLOCK_TOKENS] == third[:BLOCK_TOKENS]
        assert first[2 * BLOCK_TOKENS :] != second[2 * BLOCK_TOKENS :]

    def test_a_trace_may_have_texts(self, tmp_path: Path) -> None:
        workload = self.trace(tmp_path, [{"timestamp": 5, "prompt": "hi", "max_tokens": 3}])
        turn = workload.conversation(0).turns[0]
        assert (turn.prompt, turn.max_tokens) == ("hi", 3)

    @pytest.mark.parametrize(
        ("row", "what"),
        [
            ({"prompt": "a"}, "timestamp"),
            ({"timestamp": float("nan"), "prompt": "a"}, "timestamp"),
            ({"timestamp": 4, "prompt": "a"}, "earlier"),
            ({"timestamp": 9}, "either prompt or messages"),
            ({"timestamp": 9, "input_length": 3, "hash_ids": 7}, "hash_ids"),
            ({"timestamp": 9, "input_length": 3, "output_length": -1}, "output_length"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path: Path, row: Any, what: str) -> None:
        with pytest.raises(DataError, match=rf"t\.jsonl:2: .*{what}"):
            self.trace(tmp_path, [{"timestamp": 5, "prompt": "a"}, row])


class TestBodies:
    def test_a_completion_asks_for_usage_and_for_all_tokens(self) -> None:
        settings = RequestSettings(model="m", endpoint=Endpoint.COMPLETIONS, extra={"temperature": 0})
        turn = Turn(prompt=(1, 2), max_tokens=9, ignores_end=True)
        assert request_body(settings, History().asked(turn, settings.endpoint), turn) == {
            "model": "m",
            "prompt": (1, 2),
            "max_tokens": 9,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
        }

    def test_nothing_that_openai_does_not_know_is_sent_where_nothing_of_it_is_asked(self) -> None:
        settings = RequestSettings(model="m", endpoint=Endpoint.CHAT, is_streamed=False)
        turn = Turn(prompt="hi", max_tokens=9)
        assert request_body(settings, History().asked(turn, settings.endpoint), turn) == {
            "model": "m",
            "messages": ({"role": "user", "content": "hi"},),
            "max_completion_tokens": 9,
        }

    def test_a_later_turn_has_all_that_was_said(self) -> None:
        first, second = Turn(prompt="a"), Turn(prompt="c")
        chat = History().asked(first, Endpoint.CHAT).answered("b", Endpoint.CHAT).asked(second, Endpoint.CHAT)
        assert [message["content"] for message in chat.messages] == ["a", "b", "c"]
        text = History().asked(first, Endpoint.COMPLETIONS).answered("b", Endpoint.COMPLETIONS)
        assert text.asked(second, Endpoint.COMPLETIONS).prompt == "abc"

    def test_what_an_endpoint_does_not_take_is_refused(self) -> None:
        with pytest.raises(UserError, match="completions"):
            History().asked(Turn(prompt=(1,)), Endpoint.CHAT)
        with pytest.raises(UserError, match="chat"):
            History().asked(Turn(messages=({"role": "user"},)), Endpoint.COMPLETIONS)
        with pytest.raises(UserError, match="token-ids"):
            History(prompt=(1,)).answered("a", Endpoint.COMPLETIONS)
