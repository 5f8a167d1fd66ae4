"""Log-probabilities of given tokens between two steps: right, and without a trace in what the engine serves."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from engine_builders import (
    BOTH_WAYS,
    VOCAB_SIZE,
    engine_over_two_ranks,
    make_engine,
    make_request,
    run,
    save_model,
    weights_of,
)
from transformers import AutoModelForCausalLM

from rlserve.errors import UserError, WeightsRefusedError

pytestmark = BOTH_WAYS

_CHANCE = random.Random(3)
SEQUENCES = tuple(tuple(_CHANCE.choices(range(VOCAB_SIZE), k=length)) for length in (2, 5, 33, 64, 16, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), "qwen3")


def expected(folder: Path) -> list[list[float]]:
    """What transformers says."""
    model, found = AutoModelForCausalLM.from_pretrained(folder), []
    for sequence in SEQUENCES:
        with torch.no_grad():
            log_probs_TV = model(torch.tensor([sequence])).logits[0].log_softmax(dim=-1)
        found.append([float(log_probs_TV[place, token]) for place, token in enumerate(sequence[1:])])
    return found


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("settings", [{}, {"block_size": 16, "max_num_sequences": 2}])
def test_sequences_are_scored_as_by_transformers(folder: Path, backend: str, settings: dict[str, int]) -> None:
    engine = make_engine(folder, attention_backend=backend, **settings)
    found = engine.score(SEQUENCES)
    for log_probs, of_sequence in zip(found, expected(folder), strict=True):
        assert log_probs == pytest.approx(of_sequence, abs=1e-4)


def test_ranks_score_together(folder: Path) -> None:
    with engine_over_two_ranks(folder, overlap_scheduling=False) as engine:
        engine.add(make_request("0", SEQUENCES[2], max_tokens=8))
        engine.step()
        found = engine.score(SEQUENCES)
        alone = make_engine(folder)
        assert run(engine)["0"].samples[0].token_ids == (
            run(alone, [make_request("0", SEQUENCES[2], max_tokens=8)])["0"].samples[0].token_ids
        )
    for log_probs, of_sequence in zip(found, expected(folder), strict=True):
        assert log_probs == pytest.approx(of_sequence, abs=1e-4)


def test_requests_do_not_notice(folder: Path) -> None:
    """Scored before every step of a cache that is full, and that has prefixes to find."""
    engines = [make_engine(folder, num_blocks=40, deterministic=True) for _ in range(2)]
    requests = [
        make_request(str(number), SEQUENCES[3][: 20 + number % 3], n=2, max_tokens=40, seed=number)
        for number in range(6)
    ]
    answers = []
    for engine, scores in zip(engines, (True, False), strict=True):
        outputs = {}
        for request in requests:
            engine.add(request)
        while engine.has_work:
            if scores:
                before = engine.stats()
                first = engine.score(SEQUENCES)
                assert engine.stats() == before
                assert first == engine.score(SEQUENCES)
                engine.check_integrity()
            outputs |= {output.request_id: output for output in engine.step()}
        answers.append(outputs)
    scored, plain = (engine.stats() for engine in engines)
    assert scored.num_preemptions == plain.num_preemptions > 0
    assert scored.prefix_hits == plain.prefix_hits > 0
    for request_id, output in answers[0].items():
        for mine, other in zip(output.samples, answers[1][request_id].samples, strict=True):
            assert (mine.token_ids, mine.log_probs) == (other.token_ids, other.log_probs)


def test_new_weights_are_what_is_scored_with(folder: Path) -> None:
    engine = make_engine(folder)
    before = engine.score(SEQUENCES)
    engine.load_weights(1, weights_of("qwen3", 1))
    assert engine.score(SEQUENCES) != before
    engine.load_weights(2, weights_of("qwen3", 0))
    assert engine.score(SEQUENCES) == before


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ((1,), "must have 2 to 64 tokens, got 1"),
        ((1,) * 65, "must have 2 to 64 tokens, got 65"),
        ((1, VOCAB_SIZE), f"must have tokens below {VOCAB_SIZE}, got"),
        ((1, -1), f"must have tokens below {VOCAB_SIZE}, got"),
    ],
)
def test_what_cannot_be_scored_is_refused(folder: Path, sequence: tuple[int, ...], message: str) -> None:
    engine = make_engine(folder)
    with pytest.raises(UserError, match=message):
        engine.score([sequence])


def test_without_weights_or_memory_nothing_is_scored(folder: Path) -> None:
    engine = make_engine(folder, load_weights=False)
    with pytest.raises(WeightsRefusedError, match="load a whole version"):
        engine.score(SEQUENCES)
    engine.load_weights(0, weights_of("qwen3", 0))
    engine.release_memory()
    with pytest.raises(WeightsRefusedError, match="load a whole version"):
        engine.score(SEQUENCES)
    engine.restore_memory()
    assert engine.score(SEQUENCES)
    assert engine.score([]) == ()
