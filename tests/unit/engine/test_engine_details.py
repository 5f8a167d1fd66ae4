"""What is told beyond the chosen tokens: the prompt's log-probabilities, the kept support, the spans of versions."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_builders import BOTH_WAYS, VOCAB_SIZE, make_engine, make_request, run, save_model, weights_of
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from rlserve.engine import RequestOutput, SampleOutput
from rlserve.engine.sampling.support import pack_support, unpack_support

pytestmark = BOTH_WAYS

PROMPT = tuple(random.Random(8).choices(range(VOCAB_SIZE), k=70))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), "llama")


def _assert_prompt_scored(folder: Path, output: RequestOutput, prompt: tuple[int, ...], num_top: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        log_probs_TV = model(torch.tensor([prompt])).logits[0].log_softmax(dim=-1)
    assert output.prompt_log_probs[0] is None
    expected = [float(log_probs_TV[position, token]) for position, token in enumerate(prompt[1:])]
    assert output.prompt_log_probs[1:] == pytest.approx(expected, abs=1e-4)
    if num_top == 0:
        assert output.prompt_top_log_probs == ()
        return
    assert output.prompt_top_log_probs[0] == ()
    for position, top in enumerate(output.prompt_top_log_probs[1:]):
        best = log_probs_TV[position].topk(num_top)
        assert [token for token, _ in top] == best.indices.tolist()
        assert [value for _, value in top] == pytest.approx(best.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("num_top", [0, 3])
def test_prompt_log_probabilities_in_chunks_and_past_the_prefix_cache(folder: Path, backend: str, num_top: int) -> None:
    engine = make_engine(folder, attention_backend=backend, max_num_batched_tokens=16)
    run(engine, [make_request("warms the cache", PROMPT, max_tokens=2)])
    asking = [
        make_request("long", PROMPT, n=3, max_tokens=6, prompt_log_probs=num_top),
        make_request("plain", PROMPT[:30], max_tokens=6),
        make_request("short", PROMPT[:1], max_tokens=6, prompt_log_probs=num_top),
        make_request("medium", PROMPT[:9], max_tokens=6, prompt_log_probs=num_top),
    ]
    outputs = run(engine, asking)
    assert engine.stats().num_partial_chunks > 0
    assert outputs["long"].num_cached_tokens == 0
    assert outputs["plain"].num_cached_tokens > 0
    assert outputs["plain"].prompt_log_probs == outputs["plain"].prompt_top_log_probs == ()
    assert outputs["short"].prompt_log_probs == (None,)
    for name, prompt in (("long", PROMPT), ("medium", PROMPT[:9])):
        _assert_prompt_scored(folder, outputs[name], prompt, num_top)
    again = run(engine, [make_request("again", PROMPT, max_tokens=2)])["again"]
    assert again.num_cached_tokens == 68, "what was computed for the scores is shared with requests that want none"


def test_a_prompt_computed_again_after_preemption_is_scored_once(folder: Path) -> None:
    engine = make_engine(folder, num_blocks=20, max_num_batched_tokens=8)
    requests = [make_request(str(index), PROMPT[:10], max_tokens=50, seed=index) for index in range(3)]
    for request in requests:
        engine.add(request)
    for _ in range(20):
        engine.step()
    engine.add(make_request("scored", PROMPT[:40], max_tokens=3, prompt_log_probs=1))
    before = engine.stats().num_preemptions
    outputs = run(engine)
    assert engine.stats().num_preemptions > before
    _assert_prompt_scored(folder, outputs["scored"], PROMPT[:40], 1)


def test_an_aborted_prompt_has_no_log_probabilities(folder: Path) -> None:
    engine = make_engine(folder, max_num_batched_tokens=16)
    engine.add(make_request("0", PROMPT, prompt_log_probs=2))
    engine.step()
    (output,) = engine.abort(["0"])
    assert (output.prompt_log_probs, output.prompt_top_log_probs) == ((), ())


@given(kept=st.lists(st.booleans(), min_size=1, max_size=700))
def test_a_packed_support_comes_back_whole(kept: list[bool]) -> None:
    packed = pack_support(np.array(kept))
    assert unpack_support(packed, len(kept)).tolist() == kept
    assert len(packed) <= 1 + -(-len(kept) // 8)


def test_few_kept_tokens_and_all_tokens_take_few_bytes() -> None:
    kept = np.zeros(150_000, dtype=np.bool_)
    kept[[7, 149_999]] = True
    assert len(pack_support(kept)) == 9
    assert unpack_support(pack_support(kept), 150_000).nonzero()[0].tolist() == [7, 149_999]
    assert pack_support(np.ones(150_000, dtype=np.bool_)) == b""


def test_spans_of_versions(folder: Path) -> None:
    engine = make_engine(folder)
    engine.add(make_request("0", PROMPT, max_tokens=9))
    for version, num_steps in ((3, 4), (3, 2), (8, 1)):
        for _ in range(num_steps):
            engine.step()
        engine.load_weights(version, weights_of("llama", version))
    (sample,) = run(engine)["0"].samples
    assert sample.weight_spans == ((0, 0, 3), (3, 3, 6), (8, 6, 9)), "the prompt takes two steps"
    assert SampleOutput(index=0).weight_spans == ()
