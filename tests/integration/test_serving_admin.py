"""What operators do to a server while its clients' streams go on: real processes."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from model_folders import ALPHABET, write_model
from served import SMALL_ENGINE, ServedModel, events, served

from rlserve.engine import Engine, EngineConfig, Request, SamplingParams
from rlserve.serving.admin.routes import MAX_PROFILED
from rlserve.tasks.character_tokenizer import character_tokenizer

ADMIN_KEY = "a-key-of-operators"
PROMPT = "12+34="
NUM_STREAMS = 12
NUM_TOKENS = 300
NUM_ROUNDS = 20


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for traces, which the server makes."""
    return tmp_path_factory.mktemp("traces") / "profiles"


@pytest.fixture(scope="module")
def server(tiny_model: Path, profiles: Path) -> Iterator[ServedModel]:
    overrides = ("num_replicas=2", "model.name=tiny", "admin.port=0", f"admin.profile_folder={profiles}", *SMALL_ENGINE)
    with served(tiny_model, *overrides, environment={"RLSERVE_ADMIN_KEYS": ADMIN_KEY}) as running:
        running.wait_for(lambda: running.metric("rlserve:ready_replicas") == 2, "both replicas are ready")
        yield running


@pytest.fixture
def operator(server: ServedModel) -> Iterator[httpx.Client]:
    with server.operator(ADMIN_KEY) as client:
        yield client


def status(operator: httpx.Client) -> dict[str, Any]:
    answer = operator.get("/admin/status")
    assert answer.status_code == 200
    content: dict[str, Any] = answer.json()
    return content


def stream(server: ServedModel, max_tokens: int, seed: int = 0) -> list[int]:
    """The version of each token of an answer."""
    body = {
        "prompt": PROMPT,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        "seed": seed,
        "return_token_ids": True,
        "return_weight_versions": True,
    }
    versions: list[int] = []
    with server.http() as client, client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        for content in events(response):
            for version, start, end in content["choices"][0]["weight_versions"]:
                assert start == len(versions)
                versions += [version] * (end - start)
    return versions


def greedy(server: ServedModel) -> list[int]:
    body = {"prompt": PROMPT, "max_tokens": 20, "ignore_eos": True, "temperature": 0, "return_token_ids": True}
    with server.http() as client:
        content = client.post("/v1/completions", json=body).json()
    tokens: list[int] = content["choices"][0]["token_ids"]
    return tokens


def greedy_alone(model: Path) -> list[int]:
    engine = Engine(model, EngineConfig(device="cpu", dtype="float32", num_blocks=64, deterministic=True))
    tokens = tuple(character_tokenizer(ALPHABET).encode(PROMPT))
    sampling = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
    assert engine.add(Request(id="test", prompt_token_ids=tokens, sampling=sampling))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return list(outputs[0].samples[0].token_ids)


def test_new_weights_break_no_stream(server: ServedModel, operator: httpx.Client, tmp_path: Path) -> None:
    folders = [write_model(tmp_path / f"model-{seed}", seed=seed) for seed in (1, 2)]
    version = max(each["weight_version"] for each in status(operator)["replicas"])
    has_mixed = False
    for number in range(NUM_ROUNDS):
        with ThreadPoolExecutor(NUM_STREAMS) as clients:
            answers = [clients.submit(stream, server, NUM_TOKENS, seed) for seed in range(NUM_STREAMS)]
            taken = operator.post("/admin/weights", json={"path": str(folders[number % 2])})
            found = [answer.result() for answer in answers]
        version += 1
        assert taken.status_code == 200, taken.text
        assert taken.json()["weight_version"] == version
        assert taken.json()["num_replicas"] == 2
        for versions in found:
            assert len(versions) == NUM_TOKENS
            assert versions == sorted(versions)
            assert {version - 1, version} >= set(versions)
        has_mixed = any(len(set(versions)) == 2 for versions in found)
        if has_mixed:
            break
    assert has_mixed, "the weights never came in the middle of an answer"
    assert greedy(server) == greedy_alone(folders[number % 2])


def test_bad_folders_change_nothing(
    server: ServedModel, operator: httpx.Client, tiny_model: Path, tmp_path: Path
) -> None:
    before, tokens = status(operator)["replicas"], greedy(server)
    other = write_model(tmp_path / "other", family="llama")
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_model, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for folder in (other, damaged, tmp_path / "none"):
        refused = operator.post("/admin/weights", json={"path": str(folder)})
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["param"] == "path"
    after = status(operator)["replicas"]
    assert [each["weight_version"] for each in after] == [each["weight_version"] for each in before]
    assert [each["process_id"] for each in after] == [each["process_id"] for each in before]
    assert greedy(server) == tokens


def test_a_pause_holds_streams_and_does_not_break_them(server: ServedModel, operator: httpx.Client) -> None:
    paused = operator.post("/admin/pause").json()
    assert (paused["is_paused"], paused["is_ready"]) == (True, False)
    with server.http() as client:
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
    with ThreadPoolExecutor(NUM_STREAMS) as clients:
        answers: list[Future[list[int]]] = [
            clients.submit(stream, server, NUM_TOKENS, seed) for seed in range(NUM_STREAMS)
        ]
        server.wait_for(lambda: status(operator)["num_live_samples"] == NUM_STREAMS, "all streams wait")
        assert not any(answer.done() for answer in answers)
        assert operator.post("/admin/resume").json()["is_ready"]
        assert all(len(answer.result()) == NUM_TOKENS for answer in answers)


def test_a_drained_replica_gets_nothing_new(server: ServedModel, operator: httpx.Client) -> None:
    assert operator.post("/admin/drain", json={"replica": "7"}).status_code == 404
    drained = operator.post("/admin/drain", json={"replica": "0"}).json()
    assert [each["is_drained"] for each in drained["replicas"]] == [True, False]
    operator.post("/admin/pause")  # so that all answers are under way when they are counted
    with ThreadPoolExecutor(4) as clients:
        answers = [clients.submit(stream, server, 5, seed) for seed in range(4)]
        server.wait_for(lambda: status(operator)["num_live_samples"] == 4, "all streams wait")
        assert [each["num_samples"] for each in status(operator)["replicas"]] == [0, 4]
        operator.post("/admin/resume")
        assert all(len(answer.result()) == 5 for answer in answers)
    undrained = operator.post("/admin/undrain", json={"replica": "0"}).json()
    assert [each["is_drained"] for each in undrained["replicas"]] == [False, False]


def test_a_drained_server_takes_nothing_and_goes_on(server: ServedModel, operator: httpx.Client) -> None:
    assert operator.post("/admin/drain", json={}).json()["is_drained"]
    with server.http() as client:
        assert client.get("/ready").status_code == 503
        refused = client.post("/v1/completions", json={"prompt": PROMPT})
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
        assert operator.post("/admin/undrain", json={}).json()["is_ready"]
        assert client.post("/v1/completions", json={"prompt": PROMPT}).status_code == 200


def test_a_replica_that_is_lost_starts_with_the_newest_weights(
    server: ServedModel, operator: httpx.Client, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model", seed=3)
    version = operator.post("/admin/weights", json={"path": str(folder)}).json()["weight_version"]
    lost = status(operator)["replicas"][0]["process_id"]
    server.replica_processes()[0].kill()

    def has_returned() -> bool:
        first = status(operator)["replicas"][0]
        return bool(first["process_id"] != lost and first["state"] == "ready" and first["weight_version"] == version)

    server.wait_for(has_returned, "the replica is back with the new weights")
    operator.post("/admin/drain", json={"replica": "1"})
    assert greedy(server) == greedy_alone(folder)
    operator.post("/admin/undrain", json={"replica": "1"})


def test_moves_are_of_runs(operator: httpx.Client) -> None:
    refused = operator.post("/admin/move", json={"gang": "a", "role": "train"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (501, "NotImplementedError")


def trace_of(answer: httpx.Response) -> set[str]:
    """The names of the ranges in a profile's file."""
    assert answer.status_code == 200, answer.text
    with gzip.open(answer.json()["path"]) as file:
        return {event["name"] for event in json.load(file)["traceEvents"] if event["ph"] == "X"}


def test_steps_are_profiled_while_streams_go_on(server: ServedModel, operator: httpx.Client, profiles: Path) -> None:
    operator.post("/admin/pause")  # so that the profile begins before them
    with ThreadPoolExecutor(NUM_STREAMS) as clients:
        answers = [clients.submit(stream, server, NUM_TOKENS, seed) for seed in range(NUM_STREAMS)]
        server.wait_for(lambda: status(operator)["num_live_samples"] == NUM_STREAMS, "all streams wait")
        assert operator.post("/start_profile").status_code == 200
        assert operator.post("/admin/resume").status_code == 200
        assert all(len(answer.result()) == NUM_TOKENS for answer in answers)
    profiled = operator.post("/stop_profile")
    ranges, most = trace_of(profiled), MAX_PROFILED.num_steps
    assert {f"engine step {number}" for number in range(most)} | {"schedule", "compute", "draw", "collect"} <= ranges
    assert f"engine step {most}" not in ranges, "it has ended by itself"
    content = profiled.json()
    assert content["num_steps"] == most
    assert Path(content["path"]).parent == profiles
    assert Path(content["path"]).stat().st_size == content["num_bytes"]
    assert [each["state"] for each in status(operator)["replicas"]] == ["ready", "ready"]


def test_a_profile_is_ended_by_hand_and_there_is_one_at_a_time(server: ServedModel, operator: httpx.Client) -> None:
    operator.post("/admin/pause")  # so that no steps end it
    try:
        assert operator.post("/start_profile").status_code == 200
        for path in ("/start_profile", "/admin/profile"):
            assert operator.post(path, json={}).status_code == 409
        ended = operator.post("/stop_profile")
        assert ended.json()["num_steps"] == 0
        trace_of(ended)
    finally:
        operator.post("/admin/resume")
    assert operator.post("/admin/profile", json={"replica": "7"}).status_code == 404
    for wrong in ({"num_steps": 10**6}, {"seconds": 1e6}, {"path": "/etc/passwd"}):
        assert operator.post("/admin/profile", json=wrong).status_code == 400


def test_a_trace_that_cannot_be_written_is_an_error_and_no_harm(
    server: ServedModel, operator: httpx.Client, profiles: Path
) -> None:
    away = profiles.with_name("away")
    profiles.rename(away)
    try:
        refused = operator.post("/admin/profile", json={"seconds": 0.01})
        assert refused.status_code == 500
        assert str(profiles) in refused.json()["error"]["message"]
    finally:
        away.rename(profiles)
    trace_of(operator.post("/admin/profile", json={"seconds": 0.01}))
