"""LoRA adapters behind ``rlserve serve``, through OpenAI's own client; the models that peft merges are the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from served import SMALL_ENGINE, TEMPLATE, ServedModel, served
from transformers import AutoModelForCausalLM

from rlserve.engine import Engine, EngineConfig, Request, SamplingParams

ADMIN_KEY = "a-key-of-operators"
PROMPT = list(range(3, 23))
NUM_TOKENS = 24
MODELS = ("tiny", "first", "second")


def _save_adapter(model: Path, folder: Path, seed: int) -> Path:
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.5 * torch.randn_like(parameter))
    adapted.save_pretrained(str(folder))
    return folder


def _greedy(folder: Path) -> list[int]:
    config = EngineConfig(device="cpu", dtype="float32", kv_cache_bytes=2**24, deterministic=True)
    engine = Engine(folder, config)
    sampling = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    engine.add(Request(id="r", prompt_token_ids=tuple(PROMPT), sampling=sampling))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return list(outputs[0].samples[0].token_ids)


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: _save_adapter(tiny_model, folder / name, seed) for seed, name in enumerate(("first", "second"))}


@pytest.fixture(scope="module")
def expected(
    tiny_model: Path, adapters: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[int]]:
    """Greedy tokens by the name of the model."""
    found = {"tiny": _greedy(tiny_model)}
    for name, folder in adapters.items():
        merged = tmp_path_factory.mktemp(f"merged-{name}")
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        PeftModel.from_pretrained(base, str(folder)).merge_and_unload().save_pretrained(merged)
        found[name] = _greedy(merged)
    assert len({tuple(tokens) for tokens in found.values()}) == len(MODELS), "adapters were to change the answers"
    return found


@pytest.fixture(scope="module")
def server(
    tiny_model: Path, adapters: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedModel]:
    template = tmp_path_factory.mktemp("template") / "chat.jinja"
    template.write_text(TEMPLATE)
    overrides = (
        f"model.chat_template={template}",
        "model.name=tiny",
        f"model.adapters={{first: {adapters['first']}}}",
        "admin.port=0",
        *SMALL_ENGINE,
    )
    with served(tiny_model, *overrides, environment={"RLSERVE_ADMIN_KEYS": ADMIN_KEY}) as running:
        yield running


@pytest.fixture
def operator(server: ServedModel) -> Iterator[httpx.Client]:
    with server.operator(ADMIN_KEY) as client:
        yield client


def _tokens(client: openai.OpenAI, model: str) -> list[int]:
    answer = client.completions.create(
        model=model,
        prompt=PROMPT,
        temperature=0.0,
        max_tokens=NUM_TOKENS,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    assert answer.model == model
    tokens: list[int] = answer.choices[0].token_ids  # type: ignore[attr-defined]
    return tokens


def test_models_answer_as_those_that_are_merged_and_come_and_go(
    server: ServedModel, operator: httpx.Client, adapters: Mapping[str, Path], expected: Mapping[str, list[int]]
) -> None:
    client = server.client()
    assert [(card.id, card.parent) for card in client.models.list()] == [("tiny", None), ("first", "tiny")]  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError, match="there is no model 'second'; there is 'tiny', 'first'"):
        _tokens(client, "second")

    asked = {"lora_name": "second", "lora_path": str(adapters["second"])}
    assert operator.post("/v1/load_lora_adapter", json=asked).status_code == 200
    names = MODELS * 4
    with ThreadPoolExecutor(len(names)) as threads:
        for name, tokens in zip(names, threads.map(lambda name: _tokens(client, name), names), strict=True):
            assert tokens == expected[name]
    chat = client.chat.completions.create(
        model="second", messages=[{"role": "user", "content": "12+34="}], max_tokens=4, stream=True
    )
    assert {chunk.model for chunk in chat} == {"second"}

    bad = operator.post("/v1/load_lora_adapter", json={"lora_name": "bad", "lora_path": str(adapters["second"] / "no")})
    assert bad.status_code == 400
    assert "is no adapter: it has no adapter_config.json" in bad.json()["error"]["message"]
    assert operator.post("/v1/unload_lora_adapter", json={"lora_name": "second"}).status_code == 200
    with pytest.raises(openai.NotFoundError):
        _tokens(client, "second")
    assert _tokens(client, "first") == expected["first"]


def test_a_replica_that_starts_anew_has_its_adapters(server: ServedModel, expected: Mapping[str, list[int]]) -> None:
    (process,) = server.replica_processes()
    process.kill()

    def is_new() -> bool:
        return server.replica_processes() not in ([], [process]) and server.metric("rlserve:ready_replicas") == 1

    server.wait_for(is_new, "another process in its place")
    assert _tokens(server.client(), "first") == expected["first"]
