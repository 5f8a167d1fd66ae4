"""Plain builders for the tests of the rollout side."""

from __future__ import annotations

from collections.abc import Sequence

from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.requests.request import FinishReason, RequestOutput, SampleOutput
from rlserve.rollout.groups import PromptGroup, ScoredGroup


def make_group(position: int, *, epoch: int = 0, prompt_token_ids: tuple[int, ...] | None = None) -> PromptGroup:
    """A group whose row is its position."""
    return PromptGroup(
        id=f"{epoch}:{position}",
        position=position,
        row=position,
        prompt_text=f"prompt {position}",
        prompt_token_ids=(7, position) if prompt_token_ids is None else prompt_token_ids,
        answer=str(position),
    )


def make_sample(
    index: int, versions: Sequence[int], *, finish: FinishReason | None = FinishReason.STOP
) -> SampleOutput:
    """A sample of which token t has id 100 * index + t and log-probabilities that tell the tokens apart."""
    return SampleOutput(
        index=index,
        tokens=GeneratedTokens.of(
            token_ids=[100 * index + place for place in range(len(versions))],
            log_probs=[-(index + place / 16) for place in range(len(versions))],
            behaviour_log_probs=[-(index + place / 8) for place in range(len(versions))],
            weight_versions=versions,
        ),
        finish_reason=finish,
    )


def make_scored(group: PromptGroup, versions: Sequence[Sequence[int]], *, attempt: int = 0) -> ScoredGroup:
    """A finished group, one sequence of token versions a sample; sample i has reward i."""
    samples = tuple(make_sample(index, sample_versions) for index, sample_versions in enumerate(versions))
    return ScoredGroup(
        group=group,
        output=RequestOutput(request_id=f"{group.id}#{attempt}", samples=samples),
        rewards=tuple(float(index) for index in range(len(samples))),
        attempt=attempt,
    )
