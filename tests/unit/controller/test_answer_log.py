"""Which answers are kept in full, and what is written of each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from controller_fakes import output

from rlserve.controller.answer_log import AnswerLog
from rlserve.controller.events import GroupsTrained, HeldOutAnswered
from rlserve.engine.requests.request import FinishReason
from rlserve.rollout.groups import PromptGroup, ScoredAnswer, ScoredGroup
from rlserve.tracking.answers import Answer, Keep, MakeAnswers


class FakeTracker:
    """Keeps what it is handed."""

    def __init__(self) -> None:
        self.made: list[Answer] = []
        self.calls: list[tuple[int, str]] = []

    def log_answers(self, step: int, kind: str, make: MakeAnswers) -> None:
        self.calls.append((step, kind))
        self.made += make()


def make_log(keep: Keep) -> tuple[AnswerLog, FakeTracker]:
    tracker: Any = FakeTracker()
    return AnswerLog(tracker, keep, lambda token_ids: f"{len(token_ids)} tokens"), tracker


def prompt(position: int) -> PromptGroup:
    return PromptGroup(
        id=f"0:{position}", position=position, row=position, prompt_text="1+1=", prompt_token_ids=(1, 2), answer="2"
    )


def scored(position: int, rewards: tuple[float, ...] = (0.0, 1.0)) -> ScoredGroup:
    return ScoredGroup(
        group=prompt(position),
        output=output(f"0:{position}", FinishReason.STOP, num_samples=len(rewards)),
        rewards=rewards,
        reward_parts=tuple({"format": reward / 2} for reward in rewards),
        attempt=0,
    )


def test_all_answers_of_the_chosen_groups_are_kept() -> None:
    log, tracker = make_log(2)
    log.note_trained(GroupsTrained(step=4, groups=[scored(position) for position in range(4)]))
    assert tracker.calls == [(4, "training")]
    assert [(answer.group_id, answer.index, answer.reward, answer.reward_parts) for answer in tracker.made] == [
        ("0:0", 0, 0.0, {"format": 0.0}),
        ("0:0", 1, 1.0, {"format": 0.5}),
        ("0:2", 0, 0.0, {"format": 0.0}),
        ("0:2", 1, 1.0, {"format": 0.5}),
    ]


def test_what_is_written_of_an_answer() -> None:
    log, tracker = make_log("all")
    log.note_trained(GroupsTrained(step=4, groups=[scored(0, (0.5,))]))
    assert tracker.made == [
        Answer(
            step=4,
            kind="training",
            group_id="0:0",
            index=0,
            prompt="1+1=",
            reference="2",
            response="1 tokens",
            reward=0.5,
            reward_parts={"format": 0.25},
            finish_reason="stop",
            num_prompt_tokens=2,
            num_response_tokens=1,
            weight_spans=((0, 0, 1),),
            staleness=3,
        )
    ]


def test_the_prompt_is_what_the_model_read() -> None:
    log, tracker = make_log("all")
    rendered = replace(scored(0), group=replace(prompt(0), prompt_rendered="<user>1+1=<end>"))
    log.note_trained(GroupsTrained(step=1, groups=[rendered]))
    assert {answer.prompt for answer in tracker.made} == {"<user>1+1=<end>"}


def test_of_held_out_answers_the_same_prompts_are_kept_each_time() -> None:
    log, tracker = make_log(0.5)
    sample = output("x", FinishReason.LENGTH).samples[0]
    answers = [
        ScoredAnswer(prompt=prompt(row), sample=sample, reward=None if row else 1.0, reward_parts={})
        for row in range(4)
    ]
    for step in (0, 10):
        log.note_held_out(HeldOutAnswered(step=step, answers=answers, num_tokens=0))
    found = [(answer.step, answer.kind, answer.group_id, answer.reward, answer.staleness) for answer in tracker.made]
    assert found == [
        (0, "held_out", "0:0", 1.0, 0),
        (0, "held_out", "0:2", None, 0),
        (10, "held_out", "0:0", 1.0, 0),
        (10, "held_out", "0:2", None, 0),
    ]
    assert tracker.made[0].finish_reason == "length"
