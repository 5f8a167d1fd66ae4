"""``rlserve bench`` as a user types it, against a server on this machine that answers by a script."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from bench_server import Script, ScriptedServer, Step, event, serving_in_thread, streamed, text_chunk, whole
from PIL import Image

from rlserve.cli import main
from rlserve.tasks.character_tokenizer import character_tokenizer

ANSWER = streamed(["a", "b", "c"])


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    return tmp_path


def bench(server: ScriptedServer, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what was written as JSON."""
    with serving_in_thread(server) as url:
        exit_code = main(["bench", url, "--json", "result.json", *options])
    return exit_code, json.loads(Path("result.json").read_text())


def test_a_run_is_printed_written_and_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    server = ScriptedServer(lambda body: ANSWER)
    options = ("--num-requests", "12", "--concurrency", "3", "--goodput", "ttft:60000", "tpot:60000", "--png", "a.png")
    exit_code, data = bench(server, *options)
    assert exit_code == 0
    (run,) = data["runs"]
    assert (run["num_answered"], run["num_failed"], run["num_output_tokens"]) == (12, 0, 36)
    assert run["num_input_tokens"] == 12 * 7
    assert run["goodput"]["num_good"] == 12
    assert run["token_sources"] == {"usage": 12}
    assert len(run["requests"]) == 12
    assert len(server.asked) == 13, "with one to warm up"
    with Image.open("a.png") as picture:
        assert picture.size[0] > 1000
    printed = capsys.readouterr().out
    for expected in ("TTFT", "TPOT", "ITL", "requests/s", "goodput", "as the server's usage says", "of a processor"):
        assert expected in printed


def test_failures_are_counted_by_kind_and_are_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([ANSWER, *([whole({"error": {"message": "queue full"}}, status=503)] * 2), ANSWER, cut_off()])
    exit_code, data = bench(
        ScriptedServer(lambda body: next(answers)),
        *("--num-requests", "4", "--concurrency", "1", "--goodput", "e2el:60000", "--png", "a.svg"),
    )
    assert exit_code == 1
    (run,) = data["runs"]
    assert {kind: each["number"] for kind, each in run["failures"].items()} == {"status 503": 2, "cut off": 1}
    assert run["goodput"]["share"] == 0.25
    printed = capsys.readouterr().out
    assert "queue full" in printed
    assert "cut off" in printed


def cut_off() -> Script:
    return Script([Step(event(text_chunk("a")))])


def test_a_sweep_has_a_run_each_with_prompts_of_its_own() -> None:
    server = ScriptedServer(lambda body: ANSWER)
    options = ("--rate", "1000,inf", "--num-requests", "5", "--input-tokens", "20", "--warm-up", "0", "--png", "a.png")
    exit_code, data = bench(server, *options)
    assert exit_code == 0
    assert [run["load"] for run in data["runs"]] == ["rate 1000/s", "rate inf/s"]
    assert len({body["prompt"] for body in server.asked}) == 10
    assert all(run["client"]["late_s"]["number"] == 5 for run in data["runs"])


def test_turns_follow_one_another_with_the_answers_in_between() -> None:
    server = ScriptedServer(lambda body: streamed(["yes"]))
    options = ("--workload", "conversation", "--turns", "3", "--num-requests", "1", "--warm-up", "0")
    exit_code, data = bench(server, *options, "--endpoint", "completions", "--input-tokens", "2")
    assert exit_code == 0
    prompts = [body["prompt"] for body in server.asked]
    assert prompts[1].startswith(prompts[0] + "yes")
    assert prompts[2].startswith(prompts[1] + "yes")
    assert [request["turn"] for request in data["runs"][0]["requests"]] == [0, 1, 2]


def test_a_conversation_ends_with_a_turn_that_fails() -> None:
    server = ScriptedServer(lambda body: whole({}, status=500))
    options = ("--workload", "conversation", "--num-requests", "2", "--warm-up", "0")
    exit_code, data = bench(server, *options)
    assert (exit_code, data["runs"][0]["num_failed"], len(server.asked)) == (1, 2, 2)
    assert server.paths == ["/v1/chat/completions"] * 2


def test_a_file_is_asked_once_and_a_key_is_sent_but_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-canary")
    Path("p.jsonl").write_text('{"prompt": "one", "max_tokens": 3}\n{"prompt": "two"}\n')
    server = ScriptedServer(lambda body: ANSWER)
    options = ("--workload", "jsonl", "--file", "p.jsonl", "--api-key-env", "MY_KEY", "--warm-up", "0")
    exit_code, _ = bench(server, *options, "--body", '{"temperature": 0}')
    assert exit_code == 0
    assert sorted(body["prompt"] for body in server.asked) == ["one", "two"]
    assert all(body["temperature"] == 0 and "ignore_eos" not in body for body in server.asked)
    assert set(server.keys) == {"Bearer sk-canary"}
    assert "sk-canary" not in Path("result.json").read_text()


def test_a_recorded_trace_is_played_at_its_times() -> None:
    rows = [{"timestamp": stamp, "input_length": 9, "output_length": 3} for stamp in (0, 2000, 4000)]
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--workload", "trace", "--file", "t.jsonl", "--speed", "100", "--warm-up", "0")
    exit_code, data = bench(ScriptedServer(lambda body: ANSWER), *options)
    assert exit_code == 0
    assert data["runs"][0]["load"] == "as recorded, 100 times as fast"
    assert sorted(request["due_s"] for request in data["runs"][0]["requests"]) == [0.0, 0.02, 0.04]


def test_a_tokenizer_makes_lengths_exact_and_counts_answers_without_usage(place: Path) -> None:
    character_tokenizer("0123456789abc").save_pretrained(place / "model")
    script = Script([Step(event(text_chunk("ab"))), Step(event(text_chunk("c", "stop")))])
    server = ScriptedServer(lambda body: script)
    options = ("--tokenizer", "model", "--input-tokens", "25", "--num-requests", "2", "--concurrency", "1")
    exit_code, data = bench(server, *options)
    assert exit_code == 0
    assert [len(body["prompt"]) for body in server.asked] == [25, 25, 25]
    assert data["runs"][0]["num_output_tokens"] == 6
    assert data["runs"][0]["token_sources"] == {"tokenizer": 2}


def test_a_server_that_tokenises_is_asked_for_token_ids() -> None:
    server = ScriptedServer(lambda body: ANSWER, tokens_of=lambda text: [sum(map(ord, text))])
    options = ("--token-ids", "--input-tokens", "9", "--num-requests", "2", "--warm-up", "0")
    assert bench(server, *options)[0] == 0
    assert all(len(body["prompt"]) == 9 and all(type(id_) is int for id_ in body["prompt"]) for body in server.asked)


def test_a_time_limit_lets_those_under_way_end() -> None:
    server = ScriptedServer(lambda body: ANSWER)
    exit_code, data = bench(server, "--duration", "0.05", "--concurrency", "2")
    assert exit_code == 0
    assert data["runs"][0]["num_failed"] == 0
    assert data["runs"][0]["num_answered"] == len(server.asked) - 1 > 0


def test_whole_answers_have_no_time_to_first_token(capsys: pytest.CaptureFixture[str]) -> None:
    answer = whole({"choices": [{"text": "abc", "finish_reason": "stop"}]})
    exit_code, data = bench(ScriptedServer(lambda body: answer), "--no-stream", "--num-requests", "2", "--png", "a.png")
    assert exit_code == 0
    assert data["runs"][0]["ttft_s"] is None
    assert "not known: not streamed" in capsys.readouterr().out


def test_whoever_interrupts_gets_what_was_measured_so_far() -> None:
    calls = iter(range(100))

    def answer(body: dict[str, Any]) -> Script:
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            return Script([Step(hangs=True)])
        return ANSWER

    exit_code, data = bench(ScriptedServer(answer), "--concurrency", "1", "--warm-up", "0")
    assert exit_code == 130
    (run,) = data["runs"]
    assert (run["num_answered"], run["is_interrupted"]) == (3, True)
    assert run["failures"]["interrupted"]["number"] == 1


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--rate", "0"), "--rate"),
        (("--concurrency", "2,x"), "--concurrency"),
        (("--input-tokens", "many"), "distribution of lengths"),
        (("--goodput", "ttft"), "--goodput"),
        (("--body", "[]"), "--body"),
        (("--api-key-env", "NOT_SET_ANYWHERE"), "NOT_SET_ANYWHERE"),
        (("--token-ids",), "/tokenize"),
        (("--workload", "trace"), "--file"),
        (("--tokenizer", "nowhere"), "nowhere"),
        (("--model", "m", "--png", "a.docx", "--num-requests", "1"), "a.docx"),
    ],
)
def test_what_does_not_work_is_said(options: tuple[str, ...], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving_in_thread(ScriptedServer(lambda body: ANSWER)) as url:
        assert main(["bench", url, *options]) == 2
    assert what in capsys.readouterr().err


def test_messages_are_for_the_chat_endpoint(capsys: pytest.CaptureFixture[str]) -> None:
    Path("p.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    options = ("--workload", "jsonl", "--file", "p.jsonl", "--endpoint", "completions")
    with serving_in_thread(ScriptedServer(lambda body: ANSWER)) as url:
        assert main(["bench", url, *options]) == 2
    assert "--endpoint chat" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a/v1?x=1"])
def test_what_is_no_url_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", url]) == 2
    assert "http://HOST:PORT" in capsys.readouterr().err


def test_a_server_that_fails_the_first_request_is_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with serving_in_thread(
        ScriptedServer(lambda body: whole({"error": {"message": "no such model"}}, status=404))
    ) as url:
        assert main(["bench", url]) == 2
    assert "no such model" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with serving_in_thread(ScriptedServer(lambda body: ANSWER)) as url:
        pass
    assert main(["bench", url]) == 2
    assert "is the server up?" in capsys.readouterr().err
