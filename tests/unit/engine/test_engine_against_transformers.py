"""The same model in transformers is the oracle: greedy tokens identical, log-probabilities within 1e-4."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from engine_builders import FAMILIES, VOCAB_SIZE, build_model, make_engine, make_request, run

from rlserve.engine import Engine, Request, RequestOutput
from rlserve.engine.decoder import cpu_program

NUM_PROMPTS = 100


def _requests() -> list[Request]:
    """Prompts of 1 to 90 tokens; every second one starts with one of three common beginnings."""
    rng = random.Random(7)
    beginnings = [rng.choices(range(VOCAB_SIZE), k=20) for _ in range(3)]
    requests = []
    for index in range(NUM_PROMPTS):
        own = rng.choices(range(VOCAB_SIZE), k=rng.randint(1, 70))
        prompt = beginnings[index % 3] + own if index % 2 else own
        requests.append(
            make_request(str(index), prompt, n=1 + (index % 5 == 0), temperature=0.0, max_tokens=rng.randint(1, 20))
        )
    return requests


def _reference(model: object, requests: list[Request]) -> list[tuple[list[int], list[float]]]:
    """Greedy tokens and their log-probabilities, all prompts in one left-padded batch."""
    longest = max(len(request.prompt_token_ids) for request in requests)
    ids = torch.zeros(len(requests), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, request in enumerate(requests):
        ids[row, longest - len(request.prompt_token_ids) :] = torch.tensor(request.prompt_token_ids)
        mask[row, longest - len(request.prompt_token_ids) :] = 1
    generated = model.generate(  # type: ignore[attr-defined]
        ids,
        attention_mask=mask,
        max_new_tokens=max(request.sampling.max_tokens for request in requests),
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    log_probs = torch.stack(generated.logits, dim=1).float().log_softmax(dim=-1)
    tokens = generated.sequences[:, longest:]
    chosen = log_probs.gather(2, tokens[:, :, None]).squeeze(2)
    return [
        (tokens[row, : request.sampling.max_tokens].tolist(), chosen[row, : request.sampling.max_tokens].tolist())
        for row, request in enumerate(requests)
    ]


def _assert_same(outputs: dict[str, RequestOutput], requests: list[Request], model: object) -> None:
    for request, (token_ids, log_probs) in zip(requests, _reference(model, requests), strict=True):
        output = outputs[request.id]
        assert output.error is None
        assert len(output.samples) == request.sampling.n
        for sample in output.samples:
            assert list(sample.token_ids) == token_ids
            assert sample.log_probs == pytest.approx(log_probs, abs=1e-4)
            assert set(sample.behaviour_log_probs) == {0.0}


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_with_sharing_chunks_forks_and_preemption(
    family: str, backend: str, tmp_path: Path
) -> None:
    model = build_model(family)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").exists(), "the folder was to be sharded"
    engine = make_engine(
        tmp_path, num_blocks=48, max_num_sequences=24, max_num_batched_tokens=60, attention_backend=backend
    )
    requests = _requests()

    outputs = run(engine, requests)

    stats = engine.stats()
    assert stats.num_preemptions > 10
    assert stats.num_partial_chunks > 10
    assert stats.prefix_hits + stats.num_recovered_tokens > 500
    assert stats.num_forks > 10
    assert stats.num_block_copies > 10
    assert stats.num_used_blocks == 0
    _assert_same(outputs, requests, model)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_without_prefix_cache_in_large_blocks(family: str, tmp_path: Path) -> None:
    model = build_model(family, seed=3)
    model.save_pretrained(tmp_path)
    engine = make_engine(
        tmp_path, block_size=32, num_blocks=60, enable_prefix_caching=False, max_num_batched_tokens=512
    )
    requests = _requests()[:60]

    outputs = run(engine, requests)

    assert engine.stats().prefix_hits == engine.stats().num_recovered_tokens == 0
    _assert_same(outputs, requests, model)


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_greedy_equals_transformers_operation_by_operation(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on processors whose products of bfloat16 are left to oneDNN."""
    monkeypatch.setattr(cpu_program, "is_chosen", lambda *arguments: False)
    model = build_model(family, seed=4)
    model.save_pretrained(tmp_path)
    requests = _requests()[:60]

    outputs = run(make_engine(tmp_path, num_blocks=60, max_num_batched_tokens=60), requests)

    _assert_same(outputs, requests, model)


def test_llama_3_rope_scaling_matters_and_is_applied(tmp_path: Path) -> None:
    model = build_model("llama")
    model.save_pretrained(tmp_path / "scaled")
    build_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 500.0}).save_pretrained(
        tmp_path / "plain"
    )
    request = make_request("0", range(1, 80), temperature=0.0, max_tokens=1)

    scaled, plain = (
        run(make_engine(tmp_path / name), [request])["0"].samples[0].log_probs for name in ("scaled", "plain")
    )

    assert scaled != pytest.approx(plain, abs=1e-3)


def test_bfloat16_is_close_to_transformers_in_bfloat16(tmp_path: Path) -> None:
    model = build_model("qwen3", initializer_range=0.1).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    prompt = random.Random(0).choices(range(VOCAB_SIZE), k=60)
    engine: Engine = make_engine(tmp_path, dtype="bfloat16")

    sample = run(engine, [make_request("0", prompt, temperature=0.0, max_tokens=20)])["0"].samples[0]

    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *sample.token_ids]])).logits[0, len(prompt) - 1 : -1].float()
    expected = logits.log_softmax(dim=-1).gather(1, torch.tensor(sample.token_ids)[:, None]).squeeze(1)
    assert sample.log_probs == pytest.approx(expected.tolist(), abs=0.1)
