"""``rlserve serve`` as its clients see it: real processes, OpenAI's own client."""

from __future__ import annotations

import asyncio
import itertools
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from model_folders import ALPHABET
from served import SMALL_ENGINE, ServedModel, events, served, served_twice

from rlserve.engine import Engine, EngineConfig, Request, SamplingParams
from rlserve.tasks.character_tokenizer import character_tokenizer

ROOT = Path(__file__).parents[2]
PROMPT = "12+34="
TOKENIZER = character_tokenizer(ALPHABET)
KEY = "a-key-for-tests"


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    with served_twice(tiny_model, tmp_path_factory.mktemp("template"), key=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServedModel) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    """The same model, without a server around it."""
    return Engine(tiny_model, EngineConfig(device="cpu", dtype="float32", num_blocks=256, deterministic=True))


def generate(engine: Engine, prompt: str, sampling: SamplingParams) -> list[list[int]]:
    tokens = tuple(TOKENIZER.encode(prompt))
    assert engine.add(Request(id="test", prompt_token_ids=tokens, sampling=sampling))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return [list(sample.token_ids) for sample in outputs[0].samples]


def lives(process: psutil.Process) -> bool:
    """One that has ended and was not waited for does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "rlserve"


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 7, "top_p": 0.9}])
def test_answers_are_those_of_the_engine(client: openai.OpenAI, engine: Engine, sampling: dict[str, Any]) -> None:
    answer = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=40, n=3, extra_body={"return_token_ids": True}, **sampling
    )
    expected = generate(engine, PROMPT, SamplingParams(max_tokens=40, n=3, **sampling))
    assert [choice.model_extra["token_ids"] for choice in answer.choices] == expected
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(PROMPT)
    assert answer.usage.completion_tokens == sum(map(len, expected))


def test_a_stream_says_what_the_whole_answer_does(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "3+4"}],
        "max_completion_tokens": 60,
        "n": 2,
        "seed": 3,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**asked)
    texts, log_probs = ["", ""], [[], []]
    finish_reasons: list[Any] = [None, None]
    usage = None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.logprobs is not None:
                log_probs[choice.index] += choice.logprobs.content or []
            finish_reasons[choice.index] = choice.finish_reason or finish_reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert log_probs == [choice.logprobs.content for choice in whole.choices if choice.logprobs is not None]
    assert finish_reasons == [choice.finish_reason for choice in whole.choices]
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_echo_tells_the_likelihood_of_a_prompt(client: openai.OpenAI, engine: Engine) -> None:
    tokens = list(TOKENIZER.encode("12+34=46"))
    asked: dict[str, Any] = {"model": "tiny", "prompt": [tokens], "echo": True, "logprobs": 1, "temperature": 0}
    answer = client.completions.create(**asked, max_tokens=1)
    (choice,) = answer.choices
    assert choice.text.startswith("12+34=46")
    assert choice.logprobs is not None
    told = choice.logprobs.token_logprobs or []
    (expected,) = engine.score([tokens])
    assert told[0] is None
    assert told[1 : len(tokens)] == pytest.approx(list(expected), abs=1e-5)
    assert len(told) == len(tokens) + 1
    none_generated = client.completions.create(**asked, max_tokens=0)
    assert none_generated.choices[0].text == "12+34=46"
    assert len(none_generated.choices[0].logprobs.tokens or []) == len(tokens)  # type: ignore[union-attr]


def test_log_probabilities_of_a_prompt(client: openai.OpenAI, engine: Engine) -> None:
    tokens = list(TOKENIZER.encode("12+34=46"))
    answer = client.completions.create(
        model="tiny", prompt=tokens, max_tokens=1, extra_body={"prompt_logprobs": 2, "return_token_ids": True}
    )
    (choice,) = answer.choices
    assert choice.model_extra is not None
    assert choice.model_extra["prompt_token_ids"] == tokens
    first, *others = choice.model_extra["prompt_logprobs"]
    assert first is None
    (expected,) = engine.score([tokens])
    told = [position[str(token)]["logprob"] for token, position in zip(tokens[1:], others, strict=True)]
    assert told == pytest.approx(list(expected), abs=1e-5)
    assert all(len(position) in (2, 3) for position in others)


def test_several_prompts_are_answered_in_their_order(client: openai.OpenAI) -> None:
    prompts = ["1+1=", "2+2=", "3+3="]
    alone = [
        client.completions.create(model="tiny", prompt=prompt, max_tokens=10, temperature=0).choices[0].text
        for prompt in prompts
    ]
    together = client.completions.create(model="tiny", prompt=prompts, max_tokens=10, temperature=0, n=2)
    assert [choice.text for choice in together.choices] == [text for text in alone for _ in range(2)]
    assert [choice.index for choice in together.choices] == list(range(6))


def test_a_stop_string_is_cut_off(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 60, "temperature": 0}
    text = client.completions.create(**asked).choices[0].text
    stop = text[10:13]
    cut = client.completions.create(**asked, stop=[stop, "never there"]).choices[0]
    assert cut.text == text[: text.index(stop)]
    assert (cut.finish_reason, cut.model_extra["stop_reason"]) == ("stop", stop)
    streamed = client.completions.create(**asked, stop=[stop, "never there"], stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == cut.text
    kept = client.completions.create(**asked, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].text.endswith(stop)


def test_cached_tokens_and_versions_are_told(client: openai.OpenAI) -> None:
    prompt = "1+" * 40
    for _ in range(4):  # both replicas have it after two
        answer = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=4, extra_body={"return_weight_versions": True, "ignore_eos": True}
        )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 64
    assert answer.choices[0].model_extra["weight_versions"] == [[0, 0, 4]]


def test_prompts_are_not_found_by_who_does_not_know_their_salt(client: openai.OpenAI) -> None:
    def num_cached(salt: str) -> int:
        answer = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "3+" * 40}],
            max_completion_tokens=4,
            extra_body={"cache_salt": salt},
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert num_cached("ours") == 0
    assert max(num_cached("ours") for _ in range(3)) > 0, "both replicas have it after two"
    assert num_cached("theirs") == 0


@pytest.mark.parametrize(
    ("parameters", "param", "status"),
    [
        ({"n": 1000}, "n", 400),
        ({"max_tokens": 100_000}, "max_tokens", 400),
        ({"max_tokens": -1}, "max_tokens", 400),
        ({"temperature": -1.0}, "temperature", 400),
        ({"top_p": 0.0}, "top_p", 400),
        ({"logprobs": 1000}, "logprobs", 400),
        ({"stop": ["x"] * 100}, "stop", 400),
        ({"best_of": 3}, "best_of", 400),
        ({"suffix": "x"}, "suffix", 400),
        ({"presence_penalty": 9.0}, "presence_penalty", 400),
        ({"logit_bias": {"999999": 1.0}}, "logit_bias", 400),
        ({"stream_options": {"include_usage": True}}, "stream_options", 400),
        ({"min_tokens": 17}, "min_tokens", 400),
        ({"prompt": []}, "prompt", 400),
        ({"prompt": [999_999]}, "prompt", 400),
        ({"prompt": "1" * 600}, "prompt", 400),
        ({"model": "another"}, "model", 404),
        ({"a_new_parameter": 1}, "a_new_parameter", 400),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(
    server: ServedModel, parameters: dict[str, Any], param: str, status: int
) -> None:
    with server.http() as client:
        answer = client.post("/v1/completions", json={"prompt": PROMPT, **parameters})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["code"] == status


def test_a_client_that_leaves_frees_its_blocks(server: ServedModel) -> None:
    num_prompts, n, max_tokens = 8, 64, 450
    asked = {"prompt": [PROMPT] * num_prompts, "max_tokens": max_tokens, "ignore_eos": True, "n": n, "stream": True}
    num_before = server.metric("vllm:generation_tokens_total")
    with server.http() as client, client.stream("POST", "/v1/completions", json=asked) as response:
        next(events(response))
        replicas = server.replica_processes()
        for replica in replicas:  # however busy this machine is, the client leaves before the answer has ended
            replica.suspend()
    server.wait_for(lambda: server.metric("rlserve:live_samples") == 0, "the stream is forgotten")
    for replica in replicas:
        replica.resume()
    server.wait_for(lambda: server.metric("vllm:generation_tokens_total") > num_before, "the engine tells of it")
    server.wait_for(lambda: server.metric("vllm:num_requests_running") == 0, "the engines are idle")
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    assert 0 < server.metric("vllm:generation_tokens_total") - num_before < num_prompts * n * max_tokens


def test_streams_go_on_token_for_token_when_a_replica_is_killed(server: ServedModel, engine: Engine) -> None:
    num_streams = 20
    asked: dict[str, Any] = {"max_tokens": 400, "ignore_eos": True, "return_token_ids": True, "stream": True}
    # Half greedy, half drawn; four samples each; those with penalties and details of draws too.
    samplings = [
        {"n": 4, "seed": number, "temperature": float(number % 2), **({"presence_penalty": 0.5} if number % 3 else {})}
        for number in range(num_streams)
    ]
    expected = [
        generate(engine, PROMPT, SamplingParams(max_tokens=400, ignore_eos=True, **sampling)) for sampling in samplings
    ]
    lost_before, victim = server.metric("rlserve:lost_replicas_total"), server.replica_processes()[0]

    def stream(sampling: dict[str, Any]) -> Iterator[list[list[int]]]:
        """First nothing, once the stream has begun; then all tokens."""
        tokens: list[list[int]] = [[] for _ in range(4)]
        with (
            server.http() as client,
            client.stream("POST", "/v1/completions", json={"prompt": PROMPT, **asked, **sampling}) as response,
        ):
            for number, chunk in enumerate(events(response)):
                for choice in chunk["choices"]:
                    tokens[choice["index"]] += choice["token_ids"]
                if number == 0:
                    yield []
        yield tokens

    streams = [stream(sampling) for sampling in samplings]
    with ThreadPoolExecutor(num_streams) as threads:
        begun = [threads.submit(next, stream) for stream in streams]
        for first in itertools.islice(as_completed(begun), 8):  # the others are a moment behind
            assert first.result() == []
        victim.send_signal(signal.SIGKILL)
        assert [first.result() for first in begun] == [[]] * num_streams
        assert list(threads.map(next, streams)) == expected
    assert server.metric("rlserve:lost_replicas_total") == lost_before + 1
    assert server.metric("rlserve:failovers_total") > 0
    server.wait_for(lambda: server.metric("rlserve:ready_replicas") == 2, "the replica has come back")


def test_whole_answers_are_the_same_when_a_replica_is_killed(server: ServedModel, engine: Engine) -> None:
    samplings: list[dict[str, Any]] = [
        {"n": 2, "seed": number, "temperature": float(number % 2)} for number in range(8)
    ]
    expected = [
        generate(engine, PROMPT, SamplingParams(max_tokens=400, ignore_eos=True, **sampling)) for sampling in samplings
    ]
    num_before, victim = server.metric("vllm:generation_tokens_total"), server.replica_processes()[0]

    def ask(sampling: dict[str, Any]) -> list[list[int]]:
        asked = {"prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "return_token_ids": True, **sampling}
        with server.http() as client:
            choices = client.post("/v1/completions", json=asked).json()["choices"]
        return [choice["token_ids"] for choice in choices]

    with ThreadPoolExecutor(len(samplings)) as threads:
        answers = [threads.submit(ask, sampling) for sampling in samplings]
        server.wait_for(lambda: server.metric("vllm:generation_tokens_total") > num_before, "they have begun")
        victim.send_signal(signal.SIGKILL)
        assert [answer.result() for answer in answers] == expected
    server.wait_for(lambda: server.metric("rlserve:ready_replicas") == 2, "the replica has come back")


def test_a_replica_that_stands_still_is_passed_over_and_returns(tiny_model: Path) -> None:
    overrides = ("num_replicas=2", "health.suspect_after_s=0.6", "health.lost_after_s=60", *SMALL_ENGINE)
    with served(tiny_model, *overrides) as server, server.client() as client:
        server.wait_for(lambda: server.metric("rlserve:ready_replicas") == 2, "both replicas are ready")
        stopped = server.replica_processes()[0]
        stopped.suspend()
        server.wait_for(lambda: server.metric("rlserve:ready_replicas") == 1, "one is passed over")
        for _ in range(4):
            assert client.completions.create(model=str(tiny_model), prompt=PROMPT).choices
        stopped.resume()
        server.wait_for(lambda: server.metric("rlserve:ready_replicas") == 2, "it has returned")
        assert server.metric("rlserve:lost_replicas_total") == 0
        replicas = server.replica_processes()
        server.process.kill()
        server.wait_for(lambda: not any(map(lives, replicas)), "no replica outlives the front")


def test_the_server_ends_when_its_streams_have(tiny_model: Path) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "stream": True, "return_token_ids": True}
    with served(tiny_model, *SMALL_ENGINE) as server, server.http() as client:
        assert client.get("/ready").status_code == 200
        with client.stream("POST", "/v1/completions", json=asked) as response:
            stream = events(response)
            tokens = next(stream)["choices"][0]["token_ids"]
            for process in (*server.replica_processes(), server.process):  # as who ends a service does
                process.send_signal(signal.SIGTERM)
            server.wait_for(lambda: any("ending" in line for line in server.log), "the signal is heard")
            tokens += [token for chunk in stream for token in chunk["choices"][0]["token_ids"]]
        assert len(tokens) == 400
        assert server.process.wait(60) == 0


def test_tokens_and_health(server: ServedModel) -> None:
    with server.http() as client:
        made = client.post("/tokenize", json={"prompt": "12+", "return_token_strs": True}).json()
        assert (made["count"], made["token_strs"]) == (3, ["1", "2", "+"])
        assert client.post("/detokenize", json={"tokens": made["tokens"]}).json() == {"prompt": "12+"}
        chat = client.post("/tokenize", json={"messages": [{"role": "user", "content": "1"}]}).json()
        assert chat["count"] == len("user: 1_assistant: ")
        assert client.get("/health?generate=1").status_code == 200
        assert client.head("/metrics").status_code == 200
        assert client.get("/version").json()["version"]


def test_metrics_that_the_guide_names_are_there(server: ServedModel) -> None:
    table = (ROOT / "docs/serving.md").read_text(encoding="utf-8").partition("| metric | |")[2].partition("\n\n")[0]
    named = re.findall(r"`([\w:]+)`", table)
    assert len(named) > 15
    with server.client() as client:
        client.completions.create(model="tiny", prompt=PROMPT)
    with server.http() as http:
        lines = http.get("/metrics").text.splitlines()
    found = {line.split()[2] for line in lines if line.startswith("# TYPE ")}
    assert [name for name in named if name not in found] == []


def test_many_clients_at_once(server: ServedModel) -> None:
    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        stream = await client.completions.create(
            model="tiny", prompt=f"{number}+1=", max_tokens=30, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            return list(await asyncio.gather(*(ask(client, number % 10) for number in range(100))))

    texts = asyncio.run(ask_all())
    assert texts == texts[:10] * 10
