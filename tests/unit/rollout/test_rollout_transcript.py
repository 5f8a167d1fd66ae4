"""A conversation's tokens: none is lost, doubled or made anew, and the mask tells whose each is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_builders import make_group, make_sample

from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.requests.request import FinishReason, RequestOutput, SampleOutput
from rlserve.errors import IllegalTransitionError
from rlserve.rollout.batch import build_batch
from rlserve.rollout.conversations.transcript import LEGAL_MOVES, ConversationLimits, Transcript, TurnState
from rlserve.rollout.environments.base import Reply
from rlserve.rollout.groups import ScoredGroup

LIMITS = ConversationLimits(max_turns=3, max_tokens=12, max_turn_tokens=4)
MORE = Reply(text="more", reward=0.5, metrics={"calls": 1.0})
OVER = Reply(over=True, reward=1.0)


def turn(token_ids: list[int], *, version: int = 0, finish: FinishReason = FinishReason.STOP) -> SampleOutput:
    """Of the model, with log-probabilities that tell tokens apart."""
    number = len(token_ids)
    tokens = GeneratedTokens.of(token_ids, [-0.5] * number, [-0.25] * number, [version] * number)
    return SampleOutput(index=0, tokens=tokens, finish_reason=finish)


def test_turns_and_replies_lie_end_to_end() -> None:
    transcript = Transcript((7, 8), LIMITS)
    assert (transcript.token_ids, transcript.max_tokens, transcript.last_prompt) == ((7, 8), 4, ())
    transcript.take_turn(turn([1, 2, 3], version=4))
    transcript.take_reply(MORE, [90, 91])
    assert transcript.token_ids == (7, 8, 1, 2, 3, 90, 91)
    assert (transcript.last_prompt, transcript.newest_version, transcript.max_tokens) == ((7, 8), 4, 4)
    transcript.take_turn(turn([4], version=5))
    transcript.take_reply(OVER, ())
    sample, conversation = transcript.ended(index=3, environment_s=1.5)
    assert (sample.index, sample.finish_reason) == (3, FinishReason.STOP)
    assert sample.token_ids == (1, 2, 3, 90, 91, 4)
    assert conversation.loss_mask.tolist() == [True, True, True, False, False, True]
    assert sample.weight_versions == (4, 4, 4, 4, 4, 5), "what the environment said is no older than what it answers"
    assert sample.log_probs == (-0.5, -0.5, -0.5, 0, 0, -0.5)
    assert conversation.turn_spans() == [(0, 3), (5, 6)]
    assert (conversation.reward, conversation.metrics, conversation.num_turns) == (1.5, {"calls": 1.0}, 2)


def test_a_conversation_ends_where_no_turn_can_follow() -> None:
    cut = Transcript((7,), LIMITS)
    cut.take_turn(turn([1], finish=FinishReason.LENGTH))
    assert cut.is_last
    cut.take_reply(OVER, ())
    assert cut.ended(index=0, environment_s=0)[0].finish_reason is FinishReason.LENGTH, (
        "cut, whatever the environment says"
    )

    full = Transcript((7,), LIMITS)
    full.take_turn(turn([1, 2, 3, 4]))
    full.take_reply(MORE, list(range(8)))
    assert full.state is TurnState.OVER
    sample, _ = full.ended(index=0, environment_s=0)
    assert (sample.token_ids, sample.finish_reason) == ((1, 2, 3, 4), FinishReason.LENGTH), "no token more would fit"

    last = Transcript((7,), LIMITS)
    for number in range(LIMITS.max_turns):
        last.take_turn(turn([number]))
        assert last.is_last is (number == LIMITS.max_turns - 1)
        last.take_reply(MORE, () if last.is_last else [9])
    sample, conversation = last.ended(index=0, environment_s=0)
    assert sample.token_ids == (0, 9, 1, 9, 2)
    assert (sample.finish_reason, conversation.reward) == (FinishReason.LENGTH, 1.5), "the last reply's reward counts"


@pytest.mark.parametrize("state", TurnState)
def test_only_legal_moves_are_made(state: TurnState) -> None:
    transcript = Transcript((7,), LIMITS)
    if state is not TurnState.MODEL:
        transcript.take_turn(turn([1]))
    if state is TurnState.OVER:
        transcript.take_reply(OVER, ())
    if TurnState.ENVIRONMENT not in LEGAL_MOVES[state]:
        with pytest.raises(IllegalTransitionError):
            transcript.take_turn(turn([1]))
    if TurnState.OVER not in LEGAL_MOVES[state]:
        with pytest.raises(IllegalTransitionError):
            transcript.take_reply(OVER, ())
    if state is not TurnState.OVER:
        with pytest.raises(IllegalTransitionError):
            transcript.ended(index=0, environment_s=0)


@given(st.data())
def test_whatever_is_said_no_token_is_lost_and_the_mask_lines_up(data: st.DataObject) -> None:
    limits = ConversationLimits(
        max_turns=data.draw(st.integers(1, 4)), max_tokens=data.draw(st.integers(1, 20)), max_turn_tokens=5
    )
    transcript, said, version = Transcript((7, 8), limits), list[tuple[int, bool]](), 0
    while transcript.state is not TurnState.OVER:
        assert transcript.token_ids == (7, 8, *(token for token, _ in said)), "the next prompt is what was said"
        assert 1 <= transcript.max_tokens <= 5
        length = data.draw(st.integers(1, transcript.max_tokens))
        is_cut = length == transcript.max_tokens and data.draw(st.booleans())
        version = data.draw(st.integers(version, version + 1))
        token_ids = data.draw(st.lists(st.integers(0, 99), min_size=length, max_size=length))
        finish = FinishReason.LENGTH if is_cut else FinishReason.STOP
        transcript.take_turn(turn(token_ids, version=version, finish=finish))
        said += [(token, True) for token in token_ids]
        over, reply = data.draw(st.booleans()), data.draw(st.lists(st.integers(100, 199), min_size=1, max_size=6))
        transcript.take_reply(Reply(over=over, text="more"), () if over or transcript.is_last else reply)
        if transcript.state is TurnState.MODEL:
            said += [(token, False) for token in reply]
    sample, conversation = transcript.ended(index=0, environment_s=0)
    assert list(zip(sample.token_ids, conversation.loss_mask.tolist(), strict=True)) == said
    assert len(sample.tokens) <= limits.max_tokens
    assert said[-1][1], "a sample ends with the model's token"
    assert sample.weight_versions == tuple(sorted(sample.weight_versions))


def test_the_batch_masks_what_the_environment_said() -> None:
    transcript = Transcript((7, 3), LIMITS)
    transcript.take_turn(turn([1, 2], version=1))
    transcript.take_reply(MORE, [90])
    transcript.take_turn(turn([3], version=2))
    transcript.take_reply(OVER, ())
    sample, conversation = transcript.ended(index=0, environment_s=0)
    with_environment = ScoredGroup(
        group=make_group(3),
        output=RequestOutput(request_id="0:3", samples=(sample,)),
        conversations=(conversation,),
        rewards=(1.5,),
        attempt=0,
    )
    plain = ScoredGroup(
        group=make_group(4),
        output=RequestOutput(request_id="0:4", samples=(make_sample(0, (2, 2)),)),
        rewards=(0.0,),
        attempt=0,
    )
    batch = build_batch([with_environment, plain])
    assert batch.token_ids.tolist() == [7, 3, 1, 2, 90, 3, 7, 4, 0, 1]
    assert batch.loss_mask.tolist() == [True, True, False, True, True, True]
    assert batch.trained_lengths.tolist() == [3, 2]
    assert batch.turn_rewards is not None
    assert batch.turn_rewards.tolist() == [0, MORE.reward, 0, OVER.reward, 0, 0]
    assert batch.log_probs[~batch.loss_mask].tolist() == [0.0]
    assert with_environment.oldest_version == 1
    np.testing.assert_array_equal(batch.is_finite(), [True, True])
