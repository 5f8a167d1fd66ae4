"""Adapters by the name of a model: what routes tell the engine, and what operators can do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_fakes import KEY, FakeOperations, FakePool, fake_context, fake_key_files
from test_serving_operations import operated

from rlserve.errors import ConfigurationError, WorkerLostError
from rlserve.serving.config import ServeConfig, ServedModelConfig
from rlserve.serving.front.app import create_admin_app, create_app
from rlserve.serving.front.context import ServerContext
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.replicas.messages import Start
from rlserve.serving.replicas.wire import MessageReader, pack

ADAPTERS = {"sums": "/adapters/sums", "poems": "/adapters/poems"}


class KnownOperations(FakeOperations):
    """Load every folder but one."""

    async def load_adapter(self, name: str, folder: Path) -> None:
        if folder == Path("/bad"):
            raise ApiError(400, "the adapter is refused: it is none", "lora_path")

    async def unload_adapter(self, name: str) -> None:
        """Nothing to do."""


def _context(pool: FakePool | None = None) -> ServerContext:
    context = fake_context(pool=pool)
    context.adapters.update(ADAPTERS)
    return context


async def _ask(app: Any, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, json=body, headers={"Authorization": f"Bearer {KEY}"})


def ask(app: Any, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    return asyncio.run(_ask(app, method, path, body))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "one", "max_tokens": 5}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "one"}], "max_tokens": 5}),
    ],
)
@pytest.mark.parametrize(("model", "adapter"), [(None, None), ("fake", None), ("sums", "sums"), ("poems", "poems")])
def test_the_model_of_a_request_is_its_adapter(
    path: str, body: dict[str, Any], model: str | None, adapter: str | None
) -> None:
    pool = FakePool()
    answer = ask(create_app(_context(pool)), "POST", path, body | ({"model": model} if model else {}))

    assert answer.status_code == 200
    assert [request.adapter for request in pool.requests] == [adapter]
    assert answer.json()["model"] == (model or "fake")


def test_another_name_is_told_what_there_is() -> None:
    answer = ask(create_app(_context()), "POST", "/v1/completions", {"prompt": "one", "model": "other"})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "there is no model 'other'; there is 'fake', 'sums', 'poems'"
    assert answer.json()["error"]["param"] == "model"


def test_models_are_listed_with_their_parent() -> None:
    app = create_app(_context())
    cards = ask(app, "GET", "/v1/models").json()["data"]
    assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
        ("fake", "/models/fake", None),
        ("sums", "/adapters/sums", "fake"),
        ("poems", "/adapters/poems", "fake"),
    ]
    assert ask(app, "GET", "/v1/models/poems").json() == cards[2]
    assert ask(app, "GET", "/v1/models/novels").status_code == 404


def test_operators_load_and_unload_by_the_routes_of_vllm() -> None:
    context = _context()
    app = create_admin_app(context, KnownOperations(), fake_key_files())

    loaded = ask(app, "POST", "/v1/load_lora_adapter", {"lora_name": "new", "lora_path": "/new"})
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'new' added successfully.")
    assert context.check_model("new") == "new"
    again = ask(app, "POST", "/v1/load_lora_adapter", {"lora_name": "new", "lora_path": "/newer"})
    assert again.status_code == 400
    assert "set load_inplace" in again.json()["error"]["message"]
    in_place = {"lora_name": "new", "lora_path": "/newer", "load_inplace": True}
    assert ask(app, "POST", "/v1/load_lora_adapter", in_place).status_code == 200
    assert context.adapters["new"] == "/newer"
    base = ask(app, "POST", "/v1/load_lora_adapter", {"lora_name": "fake", "lora_path": "/new", "load_inplace": True})
    assert base.status_code == 400
    bad = ask(app, "POST", "/v1/load_lora_adapter", {"lora_name": "bad", "lora_path": "/bad"})
    assert bad.status_code == 400
    assert "bad" not in context.adapters

    unloaded = ask(app, "POST", "/v1/unload_lora_adapter", {"lora_name": "new"})
    assert (unloaded.status_code, unloaded.text) == (200, "Success: LoRA adapter 'new' removed successfully.")
    assert ask(app, "POST", "/v1/unload_lora_adapter", {"lora_name": "new"}).status_code == 404
    assert context.adapters == ADAPTERS


def test_servers_that_cannot_say_so_and_keep_what_they_have() -> None:
    context = _context()
    app = create_admin_app(context, FakeOperations(), fake_key_files())
    refused = ask(app, "POST", "/v1/load_lora_adapter", {"lora_name": "new", "lora_path": "/new"})
    assert refused.status_code == 501
    assert "a run's server has no adapters" in refused.json()["error"]["message"]
    assert ask(app, "POST", "/v1/unload_lora_adapter", {"lora_name": "sums"}).status_code == 501
    assert context.adapters == ADAPTERS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ServedModelConfig(path="base", adapters={"base": "/a"})}, "no adapter can be called 'base'"),
        ({"model": ServedModelConfig(path="base", adapters={"": "/a"})}, "adapters must have names"),
    ],
)
def test_names_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ServeConfig(**changes)


def test_a_replica_is_told_its_adapters() -> None:
    start = Start(
        model_path="/m",
        engine=ServeConfig(model=ServedModelConfig(path="m")).engine,
        beat_interval_s=1.0,
        max_pieces_per_s=1e3,
    )
    told = Start(model_path="/m", engine=start.engine, beat_interval_s=1.0, max_pieces_per_s=1e3, adapters=ADAPTERS)
    assert list(MessageReader().feed(pack(told))) == [told]


def test_an_adapter_that_one_replica_refuses_is_unloaded_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with operated(monkeypatch) as (operations, ordered, replicas):
            ordered.fail = {("1", "load_adapter"): "it is none"}
            with pytest.raises(ApiError, match="the adapter is refused: it is none"):
                await operations.load_adapter("sums", Path("/sums"))
            assert ("0", "unload_adapter") in ordered.done
            assert all(not replica.start.adapters for replica in replicas)
            assert ordered.ended == []

    asyncio.run(check())


def test_an_adapter_that_one_replica_refuses_leaves_the_one_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with operated(monkeypatch) as (operations, ordered, replicas):
            await operations.load_adapter("sums", Path("/old"))
            ordered.fail = {("1", "load_adapter"): "it is none"}
            ordered.done.clear()
            with pytest.raises(ApiError, match="the adapter is refused: it is none"):
                await operations.load_adapter("sums", Path("/new"))
            assert ordered.done.count(("0", "load_adapter")) == 2, "the new one, and the old one again"
            assert ("0", "unload_adapter") not in ordered.done
            assert [dict(replica.start.adapters) for replica in replicas] == [{"sums": "/old"}] * 2

    asyncio.run(check())


@pytest.mark.parametrize("session", ["me", None])
def test_a_conversation_with_another_adapter_is_routed_for_itself(session: str | None) -> None:
    pool = FakePool()
    for model in ("fake", "sums", "poems", "sums"):
        body = {"prompt": "one", "max_tokens": 5, "model": model} | ({"user": session} if session else {})
        ask(create_app(_context(pool)), "POST", "/v1/completions", body)
    first, second, third, fourth = pool.affinities
    assert len({first, second, third}) == 3
    assert second == fourth


def test_replicas_that_did_not_hear_of_it_start_anew_with_the_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with operated(monkeypatch) as (operations, ordered, replicas):
            ordered.fail = {("1", "load_adapter"): WorkerLostError}
            await operations.load_adapter("sums", Path("/sums"))
            assert ordered.ended == ["1"]
            assert [dict(replica.start.adapters) for replica in replicas] == [{"sums": "/sums"}] * 2
            await operations.unload_adapter("sums")
            assert all(not replica.start.adapters for replica in replicas)

    asyncio.run(check())
