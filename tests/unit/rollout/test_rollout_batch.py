"""Scored groups as the trainer's flat arrays."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rollout_builders import make_group, make_sample, make_scored

from rlserve.engine.requests.request import FinishReason, RequestOutput
from rlserve.rollout.batch import build_batch
from rlserve.rollout.groups import Conversation, GeneratedGroup, GreedyAnswer
from rlserve.rollout.rewards.base import Score
from rlserve.rollout.scored_groups import scored_group


def test_samples_lie_end_to_end() -> None:
    first = make_scored(make_group(4, prompt_token_ids=(1, 2, 3)), [[5, 6], [6]], attempt=2)
    second = make_scored(make_group(9, prompt_token_ids=(8,)), [[7], [7, 7, 8]])
    batch = build_batch([first, second])
    assert batch.sample_ids == ("0:4/0#2", "0:4/1#2", "0:9/0#0", "0:9/1#0")
    assert batch.group_ids == ("0:4", "0:4", "0:9", "0:9")
    assert batch.group_index.tolist() == [0, 0, 1, 1]
    assert batch.loss_mask.tolist() == [True] * 7
    assert batch.prompt_lengths.tolist() == [3, 3, 1, 1]
    assert batch.response_lengths.tolist() == [2, 1, 1, 3]
    assert batch.token_ids.tolist() == [1, 2, 3, 0, 1, 1, 2, 3, 100, 8, 0, 8, 100, 101, 102]
    assert batch.log_probs.tolist() == [0, -0.0625, -1, 0, -1, -1.0625, -1.125]
    assert batch.behaviour_log_probs.tolist() == [0, -0.125, -1, 0, -1, -1.125, -1.25]
    assert batch.weight_versions.tolist() == [5, 6, 6, 7, 7, 7, 8]
    assert batch.rewards.tolist() == [0, 1, 0, 1]


def test_the_greedy_answer_of_a_group_is_a_column_and_no_sample() -> None:
    groups = []
    for position, (num_tokens, reason) in enumerate([(3, FinishReason.STOP), (2, FinishReason.LENGTH)]):
        samples = (make_sample(0, [1]), make_sample(1, [1, 1]), make_sample(2, [1] * num_tokens, finish=reason))
        generated = GeneratedGroup(
            group=make_group(position), output=RequestOutput(request_id="0", samples=samples), conversations=()
        )
        scores = [Score(value=float(10 * position + index), parts={"part": index}) for index in range(3)]
        groups.append(scored_group(generated, scores, attempt=0, has_greedy_answer=True))
    batch = build_batch(groups)
    assert batch.rewards.tolist() == [0, 1, 10, 11]
    assert batch.reward_components["part"].tolist() == [0, 1, 0, 1]
    assert batch.response_lengths.tolist() == [1, 2, 1, 2]
    assert batch.greedy_answers is not None
    assert batch.greedy_answers.rewards.tolist() == [2, 2, 12, 12]
    assert batch.greedy_answers.lengths.tolist() == [3, 3, 2, 2]
    assert batch.greedy_answers.finish_reasons == ("stop", "stop", "length", "length")
    part = batch.select(np.array([0, 3])).greedy_answers
    assert part is not None
    assert part.rewards.tolist() == [2, 12]


def test_of_a_greedy_conversation_the_models_tokens_count() -> None:
    spoken = [
        Conversation(
            loss_mask=np.array([True, False, True]), num_turns=2, turn_rewards=(0.0, 0.0), metrics={}, environment_s=0.0
        )
        for _ in range(2)
    ]
    samples = (make_sample(0, [1, 1, 1]), make_sample(1, [1, 1, 1]))
    generated = GeneratedGroup(
        group=make_group(0), output=RequestOutput(request_id="0", samples=samples), conversations=tuple(spoken)
    )
    scored = scored_group(generated, [Score(value=1.0), Score(value=0.5)], attempt=3, has_greedy_answer=True)
    assert scored.greedy == GreedyAnswer(reward=0.5, num_tokens=2, finish_reason="stop")
    assert (scored.conversations, scored.rewards, scored.attempt) == (tuple(spoken[:1]), (1.0,), 3)


def test_the_reward_of_a_turn_is_at_its_last_token() -> None:
    mask = np.array([True, True, False, True, False, False, True])
    conversation = Conversation(
        loss_mask=mask, num_turns=3, turn_rewards=(0.25, -1.0, 2.0), metrics={}, environment_s=0.0
    )
    generated = GeneratedGroup(
        group=make_group(0),
        output=RequestOutput(request_id="0", samples=(make_sample(0, [1] * 7),)),
        conversations=(conversation,),
    )
    batch = build_batch([scored_group(generated, [Score(value=4.25)], attempt=0, has_greedy_answer=False)])
    assert batch.turn_rewards is not None
    assert batch.turn_rewards.tolist() == [0, 0.25, 0, -1, 0, 0, 2]
    assert (batch.rewards.tolist(), conversation.reward) == ([4.25], 1.25)
    assert batch.select(np.array([0])).turn_rewards is not None
    assert build_batch([make_scored(make_group(0), [[1]])]).turn_rewards is None


def test_the_arrays_have_the_declared_types() -> None:
    batch = build_batch([make_scored(make_group(0), [[1]])])
    integers = (batch.group_index, batch.prompt_lengths, batch.response_lengths, batch.token_ids, batch.weight_versions)
    assert {array.dtype for array in integers} == {np.dtype(np.int32)}
    assert {array.dtype for array in (batch.log_probs, batch.behaviour_log_probs, batch.rewards)} == {
        np.dtype(np.float32)
    }


@given(
    groups=st.lists(
        st.tuples(
            st.integers(1, 4), st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=3)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_every_sample_can_be_cut_out_again(groups: list[tuple[int, list[list[int]]]]) -> None:
    scored_groups = [
        make_scored(make_group(position, prompt_token_ids=tuple(range(length))), versions)
        for position, (length, versions) in enumerate(groups)
    ]
    batch = build_batch(scored_groups)
    token_start = response_start = place = 0
    for scored in scored_groups:
        for sample in scored.output.samples:
            num_prompt, num_response = batch.prompt_lengths[place], batch.response_lengths[place]
            tokens = batch.token_ids[token_start : token_start + num_prompt + num_response]
            assert tokens.tolist() == [*scored.group.prompt_token_ids, *sample.token_ids]
            versions = batch.weight_versions[response_start : response_start + num_response]
            assert versions.tolist() == list(sample.weight_versions)
            token_start += num_prompt + num_response
            response_start += num_response
            place += 1
    assert (place, token_start, response_start) == (batch.num_samples, len(batch.token_ids), batch.num_response_tokens)


def test_further_numbers_of_the_reward_stand_beside_the_total() -> None:
    parts = ({"format": 1.0}, {"format": 0.5, "style": 0.25})
    with_parts = dataclasses.replace(make_scored(make_group(0), [[1], [1]]), reward_parts=parts)
    batch = build_batch([with_parts, make_scored(make_group(1), [[1]])])
    np.testing.assert_array_equal(batch.reward_components["format"], [1.0, 0.5, np.nan])
    np.testing.assert_array_equal(batch.reward_components["style"], [np.nan, 0.25, np.nan])
    assert build_batch([make_scored(make_group(1), [[1]])]).reward_components == {}
