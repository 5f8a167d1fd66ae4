"""The OpenAPI document says what the server does: bodies it takes, answers it gives, errors, keys."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel
from serving_fakes import FakeOperations, FakePool, fake_context, fake_key_files
from starlette.testclient import TestClient

from rlserve.serving.front.app import create_admin_app, create_app
from rlserve.serving.keys import KeyOwner, Keys
from rlserve.serving.protocol import answer_schemas as schemas
from rlserve.serving.protocol import message_schemas, response_schemas

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TOLD = {"return_token_ids": True, "return_weight_versions": True}
DETAILS = {"details": True, "decoder_input_details": True, "top_n_tokens": 1}


@pytest.fixture
def client() -> TestClient:
    return TestClient(create_app(fake_context(pool=FakePool("hello"))))


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def test_it_has_every_schema_that_it_refers_to(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    names = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names >= {"CompletionRequest", "ChatRequest", "TokenizeRequest", "DetokenizeRequest", "GenerateRequest"}
    assert names <= set(document["components"]["schemas"])


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/v1/completions", {"prompt": "ab"}, schemas.CompletionAnswer),
        ("/v1/completions", {"prompt": "ab", "logprobs": 1, **TOLD}, schemas.CompletionAnswer),
        ("/v1/chat/completions", CHAT, schemas.ChatAnswer),
        ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 1, **TOLD}, schemas.ChatAnswer),
        ("/invocations", {"prompt": "ab"}, schemas.CompletionAnswer),
        ("/invocations", CHAT, schemas.ChatAnswer),
        ("/v1/responses", {"input": "ab"}, response_schemas.ResponseAnswer),
        ("/v1/responses", {"input": []}, schemas.ErrorAnswer),
        ("/v1/messages", {"model": "fake", "max_tokens": 5, **CHAT}, message_schemas.MessageAnswer),
        ("/v1/messages", {"model": "other", "max_tokens": 5, **CHAT}, message_schemas.MessagesErrorAnswer),
        ("/v1/messages/count_tokens", {"model": "fake", **CHAT}, message_schemas.TokenCount),
        ("/tokenize", {"prompt": "ab", "return_token_strs": True}, schemas.TokenizeAnswer),
        ("/tokenize", CHAT, schemas.TokenizeAnswer),
        ("/detokenize", {"tokens": [5, 6]}, schemas.DetokenizeAnswer),
        ("/generate", {"inputs": "ab"}, schemas.TgiAnswerContent),
        ("/generate", {"inputs": "ab", "parameters": DETAILS}, schemas.TgiAnswerContent),
        ("/generate", {"inputs": ""}, schemas.TgiErrorAnswer),
        ("/v1/completions", {"prompt": ""}, schemas.ErrorAnswer),
        ("/v1/models", None, schemas.ModelList),
        ("/v1/models/fake", None, schemas.ModelCard),
        ("/version", None, schemas.VersionAnswer),
        ("/info", None, schemas.TgiInfo),
    ],
)
def test_answers_are_as_it_says(
    client: TestClient, document: dict[str, Any], path: str, body: dict[str, Any] | None, model: type[BaseModel]
) -> None:
    answer = client.get(path) if body is None else client.post(path, json=body)
    model.model_validate_json(answer.content, strict=True)
    operation = document["paths"][path.replace("fake", "{name}")]["get" if body is None else "post"]
    schema = operation["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
    assert {"$ref": f"#/components/schemas/{model.__name__}"} in (schema, *schema.get("anyOf", ()))


def test_ranges_are_those_of_the_server(client: TestClient, document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["CompletionRequest"]["properties"]
    largest = fields["n"]["anyOf"][0]["maximum"]
    for number, status in ((largest, 200), (largest + 1, 400)):
        assert client.post("/v1/completions", json={"prompt": "a", "n": number}).status_code == status
    tokens = document["components"]["schemas"]["DetokenizeRequest"]["properties"]["tokens"]["items"]
    for token, status in ((tokens["maximum"], 200), (tokens["maximum"] + 1, 400), (tokens["minimum"] - 1, 400)):
        assert client.post("/detokenize", json={"tokens": [token]}).status_code == status


@pytest.mark.parametrize("value", [0, True, 1])
def test_a_number_is_no_truth(client: TestClient, value: object) -> None:
    answer = client.post("/v1/completions", json={"prompt": "a", "store": value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "store")
    assert client.post("/v1/completions", json={"prompt": "a", "store": False}).status_code == 200


@pytest.mark.parametrize("parameters", [{"best_of": True}, {"watermark": 0}, {"typical_p": 2}])
def test_a_truth_is_no_number(client: TestClient, parameters: dict[str, object]) -> None:
    assert client.post("/generate", json={"inputs": "a", "parameters": parameters}).status_code == 400


def test_keys_are_told_where_there_are_some(client: TestClient) -> None:
    context = fake_context()
    assert len(context.keys) > 0
    keyed = create_app(context).openapi()
    assert keyed["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
    assert {} in keyed["paths"]["/health"]["get"]["security"]
    assert keyed["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_limits_of_keys_are_told_where_there_are_some() -> None:
    limited = {b"0" * 32: KeyOwner(name="ci", requests_per_minute=1)}
    for known, is_told in ((limited, True), ({b"0" * 32: KeyOwner(name="ci")}, False)):
        paths = create_app(fake_context(keys=Keys(known))).openapi()["paths"]
        assert ("429" in paths["/v1/completions"]["post"]["responses"]) == is_told
        assert "429" not in paths["/v1/models"]["get"]["responses"], "it is no POST"
    told = create_app(context := fake_context(keys=Keys(limited)))
    refusals = told.openapi()["paths"]["/v1/completions"]["post"]["responses"]
    assert {"401", "403", "429", "503"} <= set(refusals)
    assert "Retry-After" in refusals["429"]["headers"]
    context.keys.replace(Keys(()))
    assert "401" not in told.openapi()["paths"]["/v1/completions"]["post"]["responses"], "keys were read anew"


def test_operators_always_need_a_key() -> None:
    key_files = fake_key_files()
    key_files.operators.replace(Keys({b"0" * 32: KeyOwner(name="op", requests_per_minute=5)}))
    described = create_admin_app(fake_context(keys=Keys(())), FakeOperations(), key_files).openapi()
    responses = described["paths"]["/admin/pause"]["post"]["responses"]
    assert {"401", "403", "429", "503"} <= set(responses)
