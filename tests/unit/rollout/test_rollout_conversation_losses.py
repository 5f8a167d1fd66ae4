"""Conversations over the real router, while replicas come, leave with their tokens, or die in any order.

The model is a function of all tokens before, so what a conversation must be can be worked out beside: the same whatever
happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_builders import make_group
from rollout_environments import ScriptedEnvironments
from rollout_tokenizers import character_tokenizer

from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput, SampleOutput, SamplingParams
from rlserve.rollout.conversations.player import ConversationPlayer
from rlserve.rollout.conversations.reply_tokens import ReplyTokens
from rlserve.rollout.conversations.transcript import ConversationLimits
from rlserve.rollout.environments.base import EnvironmentTask, ModelTurn, Reply
from rlserve.rollout.groups import Conversation, GeneratedGroup
from rlserve.rollout.requests.base import RequestId, RequestSpec
from rlserve.rollout.requests.router import Router
from rlserve.rollout.requests.training import TrainingRequests
from rlserve.rollout.requests.turns import TurnRequests, turns_in_training

TOKENIZER = character_tokenizer()
LIMITS = ConversationLimits(max_turns=4, max_tokens=30, max_turn_tokens=8)
GROUPS = [make_group(position) for position in range(3)]
REQUESTS = TrainingRequests(sampling=SamplingParams(n=1, max_tokens=8), run_seed=0)


def next_token(before: Sequence[int]) -> int:
    return (sum(before) * 31 + len(before) * 7) % 37 + 2


def is_end(token: int) -> bool:
    return token % 5 == 0


def reply_to(turn: ModelTurn) -> Reply:
    """From the tokens alone."""
    total = sum(turn.token_ids)
    return Reply(over=total % 7 == 0, token_ids=(2 + total % 11, 3), reward=float(total % 3))


def expected(prompt: Sequence[int]) -> tuple[list[int], list[bool]]:
    """The tokens of a conversation and whose they are."""
    said: list[int] = []
    is_models: list[bool] = []
    for number in range(1, LIMITS.max_turns + 1):
        turn: list[int] = []
        most = min(LIMITS.max_turn_tokens, LIMITS.max_tokens - len(said))
        while len(turn) < most and not (turn and is_end(turn[-1])):
            turn.append(next_token([*prompt, *said, *turn]))
        said += turn
        is_models += [True] * len(turn)
        shown = ModelTurn(text="", token_ids=tuple(turn), number=number, finished=True, is_last=False)
        reply = reply_to(shown)
        is_full = len(said) + len(reply.token_ids or ()) >= LIMITS.max_tokens
        if reply.over or not is_end(turn[-1]) or number == LIMITS.max_turns or is_full:
            break
        said += reply.token_ids or ()
        is_models += [False] * len(reply.token_ids or ())
    return said, is_models


class Replicas:
    """Engines of the deterministic model, and who waits for them."""

    def __init__(self) -> None:
        self.router = Router()
        self.held: dict[str, dict[str, tuple[Request, list[int]]]] = {}
        self.waiting: dict[RequestId, asyncio.Future[RequestOutput]] = {}
        self.num_joined = 0
        self.join()

    def join(self) -> None:
        name = f"r{self.num_joined}"
        self.num_joined += 1
        self.held[name] = {}
        self.router.join(name, version=0, capacity=4, time_s=0.0)

    async def ask(self, spec: RequestSpec) -> RequestOutput:
        answer = self.waiting[spec.id.first] = asyncio.get_running_loop().create_future()
        self.router.submit(spec, time_s=0.0)
        return await answer

    def leave(self, name: str, *, hands_over: bool) -> None:
        held = self.held.pop(name)
        partials = [
            RequestOutput(request_id=request.id, samples=(sample_of(tokens, None),))
            for request, tokens in held.values()
        ]
        self.router.replica_left(name, partials if hands_over else None, time_s=0.0)

    def step(self) -> None:
        """Every request of every replica gets a token."""
        for name, requests in self.router.assign(time_s=0.0).items():
            for request in requests:
                tokens = list(request.resumed[0].token_ids) if request.resumed else []
                self.held[name][request.id] = (request, tokens)
        self.router.check_integrity()
        for name, held in self.held.items():
            for request, tokens in list(held.values()):
                tokens.append(next_token([*request.prompt_token_ids, *tokens]))
                is_cut = len(tokens) == request.sampling.max_tokens
                if is_end(tokens[-1]) or is_cut:
                    del held[request.id]
                    reason = FinishReason.STOP if is_end(tokens[-1]) else FinishReason.LENGTH
                    output = RequestOutput(request_id=request.id, samples=(sample_of(tokens, reason),))
                    found = self.router.finished(name, output)
                    assert found is not None
                    self.waiting.pop(found.first).set_result(output)


def sample_of(token_ids: Sequence[int], reason: FinishReason | None) -> SampleOutput:
    zeros = [0] * len(token_ids)
    return SampleOutput(index=0, tokens=GeneratedTokens.of(token_ids, zeros, zeros, zeros), finish_reason=reason)


async def played(accidents: list[str]) -> list[GeneratedGroup]:
    """All groups, with an accident after each step as long as there are some."""
    replicas = Replicas()

    def script(task: EnvironmentTask, turn: ModelTurn) -> Reply:
        return reply_to(turn)

    player = ConversationPlayer(
        ScriptedEnvironments(script),
        name="game",
        ask=replicas.ask,
        decode=str,
        reply_tokens=ReplyTokens(TOKENIZER, end_token_ids=(), applies_template=False, template_arguments={}),
        limits=LIMITS,
    )

    async def whole(number: int) -> GeneratedGroup:
        group = GROUPS[number]

        def turns(index: int) -> TurnRequests:
            return turns_in_training(REQUESTS, group, index, min_version=0)

        first = await replicas.ask(REQUESTS.of(group, min_version=0))
        return await player.play(group, first, turns)

    tasks = [asyncio.create_task(whole(number)) for number in range(len(GROUPS))]
    while not all(task.done() for task in tasks):
        for _ in range(10):
            await asyncio.sleep(0)
        replicas.step()
        accident = accidents.pop() if accidents else "none"
        if accident == "join":
            replicas.join()
        elif accident != "none":
            replicas.leave(next(iter(replicas.held)), hands_over=accident == "leave")
            if not replicas.held:
                replicas.join()
    return [task.result() for task in tasks]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["none", "none", "join", "leave", "die"]), max_size=30))
def test_whatever_becomes_of_replicas_the_conversations_are_the_same(accidents: list[str]) -> None:
    for generated in asyncio.run(played(accidents)):
        (sample,), (conversation,) = generated.output.samples, generated.conversations
        assert isinstance(conversation, Conversation)
        said, is_models = expected(generated.group.prompt_token_ids)
        assert list(sample.token_ids) == said, "no token is lost or doubled"
        assert conversation.loss_mask.tolist() == is_models
