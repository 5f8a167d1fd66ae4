"""A reward by HTTP, against real servers on this machine: those that fail, hang, lie or recover, and good ones."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from test_rollout_reward_function import make_sample

from rlserve.errors import RewardError
from rlserve.rollout.columns import Columns
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import RewardSample, Score
from rlserve.rollout.rewards.config import HttpRewardConfig
from rlserve.rollout.rewards.factory import create_reward
from rlserve.rollout.rewards.http import HttpReward
from rlserve.rollout.rewards.probe import RewardProbe

Reply = tuple[int, bytes]
SAMPLES = tuple(make_sample(str(index), sample_id=f"0:5/{index}") for index in range(5))
NO_WAIT = HttpRewardConfig(retry_delay_s=0.0, timeout_s=20.0)


class Server:
    """A server on a free port that answers with what ``reply`` makes of a request; it notes what it was asked."""

    def __init__(self, reply: Callable[[dict[str, Any]], Reply]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.released = threading.Event()
        """Who hangs waits for this."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.asked.append(body)
                    server.tokens.append(self.headers["Authorization"])
                    server._at_once += 1
                    server.most_at_once = max(server.most_at_once, server._at_once)
                try:
                    status, answer = reply(body)
                finally:
                    with server._lock:
                        server._at_once -= 1
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                except (BrokenPipeError, ConnectionResetError):  # whoever asked did not wait
                    self.close_connection = True

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/score"

    @contextmanager
    def running(self) -> Iterator[Server]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()


def good(body: dict[str, Any]) -> Reply:
    """Ten times the number that is the response, in the reverse order."""
    scores = [{"id": sample["id"], "score": 10 * int(sample["response"]), "acc": 1} for sample in body["samples"]]
    return 200, json.dumps({"scores": scores[::-1]}).encode()


def ask(
    server: Server,
    config: HttpRewardConfig = NO_WAIT,
    *,
    samples: tuple[RewardSample, ...] = SAMPLES,
    timeout_s: float = 60,
) -> list[Score]:
    reward = HttpReward(server.url, config, timeout_s=timeout_s)
    try:
        return reward.score(samples)
    finally:
        reward.close()


def the_error(scores: list[Score]) -> str:
    """The one error that all scores have."""
    (error,) = {score.error for score in scores}
    assert error is not None
    return error


def test_scores_come_back_to_the_answers_that_they_are_of() -> None:
    rich = replace(
        SAMPLES[0],
        answer={"a": [1]},
        row=Columns({"level": 3}),
        messages=({"role": "user", "content": "x"},),
        turns=("0", "1"),
        environment_reward=0.25,
    )
    with Server(good).running() as server:
        scores = ask(server, replace(NO_WAIT, max_samples_per_request=2), samples=(rich, *SAMPLES[1:]))
    assert scores == [Score(value=10.0 * index, parts={"acc": 1.0}) for index in range(5)]
    assert sorted(len(body["samples"]) for body in server.asked) == [1, 2, 2]
    (sent,) = [sample for body in server.asked for sample in body["samples"] if sample["id"] == "0:5/0"]
    assert sent == {
        "id": "0:5/0",
        "prompt": "1+1=",
        "response": "0",
        "answer": {"a": [1]},
        "finished": True,
        "messages": [{"role": "user", "content": "x"}],
        "row": {"level": 3},
        "turns": ["0", "1"],
        "environment_reward": 0.25,
    }


def test_no_more_requests_at_once_than_allowed() -> None:
    both = threading.Barrier(2)

    def slow(body: dict[str, Any]) -> Reply:
        both.wait(20)  # passed only where two are there at once
        return good(body)

    config = replace(NO_WAIT, max_samples_per_request=1, max_concurrent_requests=2)
    with Server(slow).running() as server:
        scores = ask(server, config, samples=SAMPLES[:4])
    assert [score.value for score in scores] == [0.0, 10.0, 20.0, 30.0]
    assert server.most_at_once == 2


def test_null_leaves_an_answer_out() -> None:
    answer = b'{"scores": [{"id": "0:5/0", "score": null, "why": "no verdict"}]}'
    with Server(lambda body: (200, answer)).running() as server:
        assert ask(server, samples=SAMPLES[:1]) == [Score()]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_recovers_is_asked_again(status: int) -> None:
    replies = iter([(status, b"busy"), (status, b"busy")])
    with Server(lambda body: next(replies, None) or good(body)).running() as server:
        assert [score.value for score in ask(server)] == [0.0, 10.0, 20.0, 30.0, 40.0]
    assert len(server.asked) == 3
    assert server.asked[0] == server.asked[2]


def test_one_that_fails_each_time_is_named_with_what_it_said() -> None:
    with Server(lambda body: (500, b"out of memory" + b"!" * 1000)).running() as server:
        error = the_error(ask(server, replace(NO_WAIT, num_retries=2)))
    assert error.startswith(
        f"reward {server.url} on 5 answers from 0:5/0 on: failed 3 times, the last time: status 500"
    )
    assert "b'out of" not in error
    assert "'out of memory!!!" in error
    assert "is the server up and reachable" in error
    assert len(error) < 600
    assert len(server.asked) == 3


def test_a_failure_is_that_of_its_own_batch() -> None:
    def picky(body: dict[str, Any]) -> Reply:
        return (400, b"no") if body["samples"][0]["id"] == "0:5/2" else good(body)

    with Server(picky).running() as server:
        scores = ask(server, replace(NO_WAIT, max_samples_per_request=1))
    assert [score.value for score in scores] == [0.0, 10.0, None, 30.0, 40.0]
    assert scores[2].error is not None
    assert "status 400 Bad Request, which is not tried again: 'no'" in scores[2].error
    assert len(server.asked) == 5


def test_nobody_there() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/score"
        reward = HttpReward(url, replace(NO_WAIT, num_retries=1), timeout_s=60)
        error = the_error(reward.score(SAMPLES))
        reward.close()
    assert error.startswith(
        f"reward {url} on 5 answers from 0:5/0 on: failed 2 times, the last time: ClientConnectorError"
    )


def hanging() -> Server:
    def hang(body: dict[str, Any]) -> Reply:
        server.released.wait(60)
        return good(body)

    server = Server(hang)
    return server


def test_one_that_hangs_is_given_up_and_named() -> None:
    with hanging().running() as server:
        error = the_error(ask(server, replace(NO_WAIT, num_retries=1, timeout_s=0.2)))
    assert "failed 2 times, the last time: no answer within reward.http.timeout_s=0.2" in error


def test_all_attempts_together_end_before_the_deadline_of_scoring() -> None:
    with hanging().running() as server:
        error = the_error(ask(server, replace(NO_WAIT, num_retries=100, timeout_s=0.2), timeout_s=0.6))
    assert re.search(
        r"no scores within 0\.54 s; the last failure: no answer within reward\.http\.timeout_s=0\.2", error
    )
    assert "raise reward.timeout_s" in error


def answer_with(*scores: object) -> bytes:
    return json.dumps({"scores": scores}).encode()


ONE, OTHER = {"id": "0:5/0", "score": 1.0}, {"id": "0:5/1", "score": 0.0}
LIES = [
    (b"<html>", "the answer is no JSON"),
    (b"[" * 100_000, "the answer is no JSON"),
    (b"\xff\xfe", "the answer is no JSON"),
    (b"[1, 2]", 'the answer is no object with a list under "scores"'),
    (b'{"scores": {"0:5/0": 1}}', 'the answer is no object with a list under "scores"'),
    (answer_with(ONE), "the answer has 1 scores for 2 samples"),
    (answer_with(ONE, OTHER, ONE), "the answer has 3 scores for 2 samples"),
    (answer_with(ONE, ONE), "an id is there twice: '0:5/0'"),
    (answer_with(ONE, {"id": "7", "score": 1}), "lacks the id 0:5/1, and has one that was not asked for: 7"),
    (answer_with(ONE, {"id": 1, "score": 1}), "an id is no text: 1"),
    (answer_with(ONE, 0.5), 'a score is no object with "id" and "score": 0.5'),
    (answer_with(ONE, {"id": "0:5/1"}), 'a score is no object with "id" and "score"'),
    (answer_with(ONE, {"id": "0:5/1", "score": "high"}), "the score of 0:5/1 must be a number or null, but is 'high'"),
    (answer_with(ONE, {"id": "0:5/1", "score": float("nan")}), "score of 0:5/1 must be finite, but is nan"),
    (answer_with(ONE, {"id": "0:5/1", "score": float("inf")}), "score of 0:5/1 must be finite, but is inf"),
    (answer_with(ONE, {"id": "0:5/1", "score": 10**400}), "score of 0:5/1 must be finite, but is 1000"),
    (answer_with(ONE, {"id": "0:5/1", "score": 1, "acc": float("nan")}), "acc of 0:5/1 must be finite, but is nan"),
]


@pytest.mark.parametrize(("answer", "message"), LIES, ids=[message[:40] for _, message in LIES])
def test_one_that_lies_is_told_what_is_wrong_and_not_asked_again(answer: bytes, message: str) -> None:
    with Server(lambda body: (200, answer)).running() as server:
        error = the_error(ask(server, samples=SAMPLES[:2]))
    assert error.startswith(f"reward {server.url} on 2 answers from 0:5/0 on: ")
    assert message in error
    assert "docs/rewards.md" in error
    assert len(server.asked) == 1


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlserve.rollout.rewards.http._MAX_ANSWER_BYTES", 1 << 20)
    with Server(lambda body: (200, b" " * (1 << 21))).running() as server:
        error = the_error(ask(server))
    assert "the answer is longer than 1 MiB" in error
    assert len(error) < 600


def test_a_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(NO_WAIT, token_variable="JUDGE_TOKEN")
    with Server(good).running() as server:
        monkeypatch.setenv("JUDGE_TOKEN", "secret")
        assert [score.error for score in ask(server, config)] == [None] * 5
        monkeypatch.delenv("JUDGE_TOKEN")
        with pytest.raises(
            RewardError, match=r"http\.token_variable=JUDGE_TOKEN: the environment has no such variable"
        ):
            ask(server, config)
    assert server.tokens == ["Bearer secret"]


def test_a_url_makes_the_reward_and_is_tried_before_a_run() -> None:
    with Server(good).running() as server:
        config = RewardConfig(url=server.url, http=NO_WAIT)
        reward = create_reward(config)
        assert isinstance(reward, HttpReward)
        assert [score.value for score in reward.score(SAMPLES)] == [0.0, 10.0, 20.0, 30.0, 40.0]
        reward.close()
        with RewardProbe(config, None) as probe:
            probe.load()
            assert probe.try_on(SAMPLES[1:2], samples_per_prompt=8) == Score(value=10.0, parts={"acc": 1.0})
    with RewardProbe(replace(config, http=replace(NO_WAIT, num_retries=0)), None) as probe:
        probe.load()
        with pytest.raises(RewardError, match=rf"{re.escape(server.url)} .*failed once, the last time: .*tried before"):
            probe.try_on(SAMPLES[1:2], samples_per_prompt=8)
