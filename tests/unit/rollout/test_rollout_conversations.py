"""Playing conversations with scripted environments and a model that says what it is told to."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from rollout_builders import make_group
from rollout_environments import Script, ScriptedEnvironments

from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.requests.request import FinishReason, RequestOutput, SampleOutput, SamplingParams
from rlserve.errors import EnvironmentFailedError, WorkerLostError
from rlserve.rollout.answer_text import AnswerText
from rlserve.rollout.conversations.player import ConversationPlayer
from rlserve.rollout.conversations.reply_tokens import ReplyTokens
from rlserve.rollout.conversations.scores import with_environment
from rlserve.rollout.conversations.transcript import ConversationLimits
from rlserve.rollout.environments.base import EnvironmentTask, ModelTurn, Reply
from rlserve.rollout.groups import Conversation, GeneratedGroup
from rlserve.rollout.requests.base import RequestId, RequestKind, RequestSpec
from rlserve.rollout.requests.training import TrainingRequests
from rlserve.rollout.requests.turns import TurnRequests, turns_in_training
from rlserve.rollout.rewards.base import Score
from rlserve.rollout.rewards.samples import reward_samples
from rlserve.tasks.character_tokenizer import character_tokenizer

ALPHABET = "0123456789+=abcdefghijklmnopqrstuvwxyz <>"
TOKENIZER: Any = character_tokenizer(ALPHABET)
END = TOKENIZER.eos_token_id
DECODE = AnswerText(TOKENIZER, end_token_ids=(END,), skip_special_tokens=True)
GROUP = make_group(3, prompt_token_ids=tuple(TOKENIZER("1+1=").input_ids))
SAMPLING = SamplingParams(n=2, max_tokens=20, temperature=0.5)


def said(text: str, *, index: int = 0, version: int = 0) -> SampleOutput:
    """A turn of the model, with its end token."""
    token_ids = [*TOKENIZER(text).input_ids, END]
    zeros = [0.0] * len(token_ids)
    tokens = GeneratedTokens.of(token_ids, zeros, zeros, [version] * len(token_ids))
    return SampleOutput(index=index, tokens=tokens, finish_reason=FinishReason.STOP)


class Model:
    """Says its lines in order, and remembers what it was asked."""

    def __init__(self, *lines: SampleOutput | str) -> None:
        self.lines = list(lines)
        self.asked: list[RequestSpec] = []

    async def __call__(self, spec: RequestSpec) -> RequestOutput:
        self.asked.append(spec)
        line = self.lines.pop(0)
        if isinstance(line, str):
            return RequestOutput(request_id=str(spec.id), samples=(), error=line)
        return RequestOutput(request_id=str(spec.id), samples=(line,))


def player(environments: ScriptedEnvironments, model: Model, *, max_turns: int = 4) -> ConversationPlayer:
    port: Any = environments
    return ConversationPlayer(
        port,
        name="game.py:Game",
        ask=model,
        decode=DECODE,
        reply_tokens=ReplyTokens(TOKENIZER, end_token_ids=(END,), applies_template=False, template_arguments={}),
        limits=ConversationLimits(max_turns=max_turns, max_tokens=60, max_turn_tokens=20),
    )


def turns_of(index: int) -> TurnRequests:
    requests = TrainingRequests(sampling=SAMPLING, run_seed=5)
    return turns_in_training(requests, GROUP, index, min_version=2)


def test_a_greedy_first_turn_is_followed_by_greedy_ones() -> None:
    requests = TrainingRequests(sampling=dataclasses.replace(SAMPLING, n=3, num_greedy=1), run_seed=5)
    asked = [
        turns_in_training(requests, GROUP, index, min_version=0)
        .of((1,), number=1, max_tokens=4, newest_version=0, continues=())
        .sampling
        for index in range(3)
    ]
    assert [(sampling.n, sampling.temperature_of(0)) for sampling in asked] == [(1, 0.5), (1, 0.5), (1, 0.0)]


def play(script: Script, model: Model, *first: SampleOutput) -> tuple[GeneratedGroup, ScriptedEnvironments]:
    environments = ScriptedEnvironments(script)
    answered = RequestOutput(request_id="training/0:3#0", samples=first)
    return asyncio.run(player(environments, model).play(GROUP, answered, turns_of)), environments


def echo(task: EnvironmentTask, turn: ModelTurn) -> Reply:
    """Says what it heard until it hears ``end``."""
    return Reply(over=True, reward=1.0) if turn.text == "end" else Reply(text=f" {turn.text} ", reward=0.25)


def test_the_next_prompt_is_all_that_was_said_token_for_token() -> None:
    model = Model(said("b", version=6), said("end", version=7))
    played, environments = play(echo, model, said("a", index=1, version=4))
    ids = TOKENIZER("1+1=").input_ids
    first, second = model.asked
    assert first.prompt_token_ids == (*ids, *TOKENIZER("a").input_ids, END, *TOKENIZER(" a ").input_ids)
    assert second.prompt_token_ids == (
        *first.prompt_token_ids,
        *TOKENIZER("b").input_ids,
        END,
        *TOKENIZER(" b ").input_ids,
    )
    assert (first.continues, second.continues) == (GROUP.prompt_token_ids, first.prompt_token_ids)
    assert first.id == RequestId(kind=RequestKind.TURN, name="0:3/1.1")
    assert RequestId.parse(str(second.id)) == second.id
    assert [spec.min_version for spec in model.asked] == [4, 6], "a sample's versions never go back"
    assert {spec.sampling.n for spec in model.asked} == {1}
    assert first.sampling.seed != second.sampling.seed
    assert (first.position, first.sampling.temperature, first.sampling.max_tokens) == (3, 0.5, 20)
    (sample,), (conversation,) = played.output.samples, played.conversations
    assert (*GROUP.prompt_token_ids, *sample.token_ids) == (*second.prompt_token_ids, *TOKENIZER("end").input_ids, END)
    assert sample.index == 1
    assert (conversation.num_turns, conversation.reward, conversation.environment_s) == (3, 1.5, 0.25)
    (session,) = environments.sessions
    assert session.task == EnvironmentTask(id="0:3/1", prompt="prompt 3", answer="3")
    assert [(turn.text, turn.number) for turn in session.turns] == [("a", 0), ("b", 1), ("end", 2)]
    assert session.num_closed == 1
    (shown,) = reward_samples(played, DECODE)
    assert (shown.turns, shown.environment_reward, shown.response) == (("a", "b", "end"), 1.5, "a a b b end")


def test_an_environment_whose_reply_has_no_room_gives_what_is_left() -> None:
    def long(task: EnvironmentTask, turn: ModelTurn) -> Reply:
        return Reply(text="a" * 80, reward=0.25)

    played, environments = play(long, Model(), said("b"))
    (conversation,) = played.conversations
    assert (conversation.turn_rewards, conversation.metrics) == ((0.375,), {"truncated": 1.0})
    assert played.output.samples[0].finish_reason is FinishReason.LENGTH
    assert [(session.num_truncated, session.num_closed) for session in environments.sessions] == [(1, 1)]
    _, others = play(echo, Model(), said("end"))
    assert others.sessions[0].num_truncated == 0, "it has said that it is over"


def test_samples_go_on_by_themselves_and_stay_in_order() -> None:
    def over_for_the_first(task: EnvironmentTask, turn: ModelTurn) -> Reply:
        return Reply(over=task.id == "0:3/0" or turn.number == 1, text="x")

    played, _ = play(over_for_the_first, Model(said("late")), said("a"), said("b", index=1))
    assert [sample.index for sample in played.output.samples] == [0, 1]
    assert [conversation.num_turns for conversation in played.conversations] == [1, 2]
    assert played.num_generated_tokens == 2 + 2 + 5


def test_a_conversation_whose_process_is_lost_begins_anew_with_its_first_turn() -> None:
    lost = [WorkerLostError("its process ended")]

    def lost_once(task: EnvironmentTask, turn: ModelTurn) -> Reply | WorkerLostError:
        return lost.pop() if lost else Reply(over=True, reward=float(turn.number))

    model = Model(said("again", version=3))
    played, environments = play(lost_once, model, said("a", version=4))
    assert model.asked[0].prompt_token_ids == GROUP.prompt_token_ids
    assert model.asked[0].min_version == 2, "as the group's own request"
    assert DECODE(played.output.samples[0].tokens.token_ids) == "again"
    assert [session.num_closed for session in environments.sessions] == [1, 1]
    assert played.conversations[0].num_turns == 1

    def always(task: EnvironmentTask, turn: ModelTurn) -> WorkerLostError:
        return WorkerLostError("its process ended")

    with pytest.raises(
        EnvironmentFailedError, match=r"game\.py:Game on prompt 0:3/0: its process ended, and that 3 times"
    ):
        play(always, Model(said("b"), said("c")), said("a"))


def test_one_failure_gives_the_group_up() -> None:
    def fails(task: EnvironmentTask, turn: ModelTurn) -> Reply | EnvironmentFailedError:
        return EnvironmentFailedError("environment game.py:Game broke") if task.id == "0:3/1" else Reply(text="more")

    class Waiting(Model):
        async def __call__(self, spec: RequestSpec) -> RequestOutput:
            raise await asyncio.Future()

    environments = ScriptedEnvironments(fails)
    answered = RequestOutput(request_id="training/0:3#0", samples=(said("a"), said("b", index=1)))
    with pytest.raises(EnvironmentFailedError, match="broke"):
        asyncio.run(player(environments, Waiting()).play(GROUP, answered, turns_of))
    assert [session.num_closed for session in environments.sessions] == [1, 1]


def test_a_turn_that_the_engine_refuses_is_the_groups_refusal() -> None:
    played, _ = play(echo, Model("too long"), said("a"))
    assert played.output.error == "turn 2 of its conversation: too long"
    assert not played.output.samples


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(token_ids=(5, 4000)), "its reply has the token 4000; the tokenizer has those from 0 to"),
        (Reply(text=""), "its reply is not over and has no tokens"),
        (Reply(messages=({"role": "tool", "content": "x"},)), "messages, which need data.apply_chat_template=true"),
    ],
)
def test_a_reply_that_is_not_for_this_model_is_named(reply: Reply, message: str) -> None:
    with pytest.raises(EnvironmentFailedError, match=r"environment game\.py:Game on prompt 0:3/0: ") as raised:
        play(lambda task, turn: reply, Model(), said("a"))
    assert message in str(raised.value)


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>+{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chat_tokens(reply: Reply, turn: Sequence[int]) -> str:
    tokenizer: Any = character_tokenizer(ALPHABET)
    tokenizer.chat_template = TEMPLATE
    tokens = ReplyTokens(tokenizer, end_token_ids=(END,), applies_template=True, template_arguments={})
    return str(tokenizer.decode(tokens(reply, turn)))


def test_with_a_template_the_reply_is_what_stands_between_two_turns() -> None:
    ended, stopped = [*TOKENIZER("hi").input_ids, END], TOKENIZER("hi").input_ids
    assert chat_tokens(Reply(text="4"), ended) == "+<user>4<eos>+<assistant>", "the end token is there already"
    assert chat_tokens(Reply(text="4"), stopped) == "<eos>+<user>4<eos>+<assistant>", "a stop string is no end token"
    messages = ({"role": "tool", "content": "1"}, {"role": "tool", "content": "2"})
    assert chat_tokens(Reply(messages=messages), ended) == "+<tool>1<eos>+<tool>2<eos>+<assistant>"
    assert chat_tokens(Reply(token_ids=(5, 6)), ended) == TOKENIZER.decode([5, 6])


def test_the_environments_reward_is_added() -> None:
    played, _ = play(echo, Model(said("end")), said("a"))
    conversations: tuple[Conversation, ...] = played.conversations
    (score,) = with_environment([Score(value=2.0, parts={"length": 3.0})], conversations)
    assert score == Score(value=3.25, parts={"environment": 1.25, "length": 3.0})
    assert with_environment([Score()], conversations)[0].value is None
    assert with_environment([Score(error="no")], conversations) == [Score(error="no")]
    assert with_environment([Score(value=1.0)], ()) == [Score(value=1.0)]
