"""The client of the load generator, against a real server on this machine, whose clock is set by hand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from bench_server import (
    Script,
    ScriptedServer,
    Step,
    chat_chunk,
    event,
    serving,
    streamed,
    text_chunk,
    usage_chunk,
    whole,
)

from rlserve.bench.client import failures
from rlserve.bench.client.client import Client, ServerAddress, open_session
from rlserve.bench.client.request import Endpoint
from rlserve.bench.client.server import ask_pieces, find_model
from rlserve.bench.results.record import RequestRecord, TokenSource
from rlserve.errors import UserError


@dataclass
class Signal:
    """A watcher that tells the server when a token was seen."""

    seen: asyncio.Event
    events: list[str] = field(default_factory=list)

    def sent(self) -> None:
        self.events.append("sent")

    def received(self) -> None:
        self.events.append("received")
        self.seen.set()

    def ended(self, record: RequestRecord) -> None:
        self.events.append("ended")


def ask(
    script: Script,
    *,
    endpoint: Endpoint = Endpoint.COMPLETIONS,
    timeout_s: float = 30.0,
    count_tokens: Callable[[str], int] | None = None,
    events: list[str] | None = None,
) -> tuple[RequestRecord, str]:
    """One request to a server that answers by ``script``."""
    server = ScriptedServer(lambda body: script)

    async def main() -> tuple[RequestRecord, str]:
        async with serving(server) as url:
            address = ServerAddress(url=url, timeout_s=timeout_s)
            async with open_session(address) as session:
                watcher = Signal(server.token_seen, [] if events is None else events)
                client = Client(
                    session, address, endpoint, now=server.clock, watcher=watcher, count_tokens=count_tokens
                )
                return await client.ask({"model": "m"}, due_s=0.0)

    return asyncio.run(main())


def failure_of(script: Script, **more: Any) -> tuple[str, str]:
    record, _ = ask(script, **more)
    assert record.failure is not None
    return record.failure.kind, record.failure.message


def timed(*pieces: tuple[float, str]) -> list[Step]:
    return [Step(event(text_chunk(text)), at_s=at_s, waits_for_token=True) for at_s, text in pieces]


def test_times_of_pieces_are_those_at_which_they_arrived() -> None:
    events: list[str] = []
    script = Script(
        [
            Step(b": keep-alive\n\n", at_s=1.0),
            *timed((2.0, "a"), (2.5, "b"), (4.5, "c")),
            Step(event(text_chunk("", "length")) + event(usage_chunk(11, 3, num_cached=8)) + event("[DONE]"), at_s=5.0),
        ]
    )
    record, text = ask(script, events=events)
    assert record.failure is None
    assert text == "abc"
    assert (record.sent_s, record.ttft_s, record.latency_s) == (0.0, 2.0, 5.0)
    assert record.itl_s == [0.5, 2.0]
    assert record.tpot_s == 1.25
    assert (record.num_input_tokens, record.num_cached_tokens, record.num_output_tokens) == (11, 8, 3)
    assert (record.token_source, record.finish_reason) == (TokenSource.USAGE, "length")
    assert events == ["sent", "received", "received", "received", "ended"]


def test_several_tokens_in_a_piece_are_counted_by_usage() -> None:
    end = Step(event(usage_chunk(5, 9)) + event("[DONE]"))
    record, _ = ask(Script([*timed((1.0, "a b c"), (3.0, "d e f g h i")), end]))
    assert (record.num_output_tokens, len(record.chunk_times_s)) == (9, 2)
    assert record.tpot_s == 2.0 / 8


def test_without_usage_pieces_are_counted_or_a_tokenizer_asked() -> None:
    script = Script([*timed((1.0, "a b c"), (3.0, " d")), Step(event("[DONE]"))])
    counted, _ = ask(script)
    assert (counted.num_output_tokens, counted.token_source) == (2, TokenSource.CHUNKS)
    tokenised, _ = ask(script, count_tokens=lambda text: len(text.split()))
    assert (tokenised.num_output_tokens, tokenised.token_source) == (4, TokenSource.TOKENIZER)


def test_a_chat_answer_has_its_role_first_its_reasoning_and_its_content() -> None:
    script = Script(
        [
            Step(event(chat_chunk({"role": "assistant", "content": ""})), at_s=1.0),
            Step(event(chat_chunk({"reasoning": "hm"})), at_s=2.0, waits_for_token=True),
            Step(event(chat_chunk({"content": "yes"})), at_s=3.0, waits_for_token=True),
            Step(event(chat_chunk({}, "stop")) + event("[DONE]"), at_s=4.0),
        ]
    )
    record, text = ask(script, endpoint=Endpoint.CHAT, count_tokens=len)
    assert (record.ttft_s, record.itl_s, record.finish_reason) == (2.0, [1.0], "stop")
    assert text == "yes"
    assert record.num_output_tokens == len("hmyes")


def test_a_token_may_have_no_text() -> None:
    steps = [
        Step(event(text_chunk("", token_ids=[240])), at_s=1.0, waits_for_token=True),
        *timed((2.0, "😀")),
        Step(event("[DONE]")),
    ]
    record, _ = ask(Script(steps))
    assert record.ttft_s == 1.0


def test_events_may_be_cut_anywhere() -> None:
    data = event(text_chunk("grüße")) + event(text_chunk("", "stop")) + event("[DONE]")
    record, text = ask(Script([Step(data[index : index + 1]) for index in range(len(data))]))
    assert record.failure is None
    assert text == "grüße"


@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_a_whole_answer_has_no_time_to_first_token(endpoint: Endpoint) -> None:
    spoken: dict[str, Any] = {"message": {"content": "four"}} if endpoint is Endpoint.CHAT else {"text": "four"}
    choice = {"index": 0, "finish_reason": "stop", **spoken}
    record, text = ask(whole({"choices": [choice], "usage": usage_chunk(3, 4)["usage"]}), endpoint=endpoint)
    assert (record.failure, text) == (None, "four")
    assert (record.ttft_s, record.tpot_s, record.num_output_tokens) == (None, None, 4)


def test_a_status_is_a_kind_of_failure_with_the_servers_words() -> None:
    kind, message = failure_of(whole({"error": {"message": "queue full"}}, status=503))
    assert kind == "status 503"
    assert "queue full" in message


def test_a_redirect_is_not_followed_since_it_would_take_the_key_along() -> None:
    assert failure_of(Script(status=307))[0] == "status 307"


def test_an_error_in_the_stream_is_told_from_its_end() -> None:
    steps = [*timed((1.0, "a")), Step(event({"error": {"message": "engine died", "code": 500}}))]
    assert failure_of(Script(steps)) == (failures.SERVER_ERROR, "engine died")


def test_a_connection_that_breaks_is_a_failure_and_its_tokens_are_kept() -> None:
    record, _ = ask(Script([*timed((1.0, "a"), (2.0, "b")), Step(breaks=True)]))
    assert record.failure is not None
    assert record.failure.kind == failures.DISCONNECTED
    assert record.chunk_times_s == (1.0, 2.0)


def test_a_stream_that_ends_without_a_reason_is_cut_off() -> None:
    assert failure_of(Script(timed((1.0, "a"))))[0] == failures.CUT_OFF


def test_an_answer_without_tokens_is_a_failure() -> None:
    assert failure_of(Script([Step(event(text_chunk("", "stop")) + event("[DONE]"))]))[0] == failures.NO_TOKENS


@pytest.mark.parametrize(
    "data",
    [
        b"data: {not json\n\n",
        b"data: [1]\n\n",
        b'data: {"no": "choices"}\n\n',
        b'data: {"choices": [3]}\n\n',
        b'data: {"choices": [{"delta": "x"}]}\n\n',
        b"data: \xff\xfe\n\n",
        b"data: " + b"x" * (9 << 20),
    ],
    ids=["no JSON", "no object", "no choices", "choice is a number", "delta is text", "no UTF-8", "endless"],
)
def test_pieces_that_are_none_are_failures(data: bytes) -> None:
    assert failure_of(Script([Step(data)]))[0] == failures.MALFORMED


def test_a_page_of_a_proxy_is_no_answer() -> None:
    assert failure_of(Script([Step(b"<html>")], content_type="text/html"))[0] == failures.MALFORMED


def test_a_server_that_hangs_is_given_up() -> None:
    assert failure_of(Script([*timed((1.0, "a")), Step(hangs=True)]), timeout_s=0.2)[0] == failures.TIMED_OUT


def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))

        async def main() -> RequestRecord:
            address = ServerAddress(url=f"http://127.0.0.1:{unused.getsockname()[1]}")
            async with open_session(address) as session:
                watcher = Signal(asyncio.Event())
                client = Client(session, address, Endpoint.CHAT, now=lambda: 0.0, watcher=watcher)
                return (await client.ask({}, due_s=0.0))[0]

        record = asyncio.run(main())
    assert record.failure is not None
    assert record.failure.kind == failures.NOT_CONNECTED


def asked_of(server: ScriptedServer, question: Callable[..., Any]) -> Any:
    async def main() -> Any:
        async with serving(server) as url, open_session(address := ServerAddress(url=url)) as session:
            return await question(session, address)

    return asyncio.run(main())


def test_the_only_model_of_a_server_is_found() -> None:
    assert asked_of(ScriptedServer(lambda body: streamed("a"), models=["tiny"]), find_model) == "tiny"


@pytest.mark.parametrize("models", [[], ["a", "b"]])
def test_which_of_several_models_must_be_said(models: list[str]) -> None:
    with pytest.raises(UserError, match="--model"):
        asked_of(ScriptedServer(lambda body: streamed("a"), models=models), find_model)


def test_words_that_are_one_token_to_the_server() -> None:
    def tokens_of(text: str) -> list[int]:
        return [int.from_bytes(text.encode())] if len(text) <= 4 else list(text.encode())

    server = ScriptedServer(lambda body: streamed("a"), tokens_of=tokens_of)
    pieces = asked_of(server, lambda session, address: ask_pieces(session, address, "m"))
    assert pieces[" the"] == int.from_bytes(b" the")
    assert all(len(piece) <= 4 for piece in pieces)


def test_characters_where_no_word_is_one_token() -> None:
    server = ScriptedServer(lambda body: streamed("a"), tokens_of=lambda text: [min(ord(each), 100) for each in text])
    pieces = asked_of(server, lambda session, address: ask_pieces(session, address, "m"))
    assert pieces["a"] == ord("a")
    assert sorted(set(pieces.values())) == sorted(pieces.values())


def test_a_server_without_a_tokenizer_knows_no_pieces() -> None:
    server = ScriptedServer(lambda body: streamed("a"))
    assert asked_of(server, lambda session, address: ask_pieces(session, address, "m")) == {}
