"""The requests that the turns of a conversation become, each of one sample."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlserve.engine.requests.request import SamplingParams
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.requests.base import RequestId, RequestKind, RequestSpec
from rlserve.rollout.requests.training import TrainingRequests, sampling_seed


def turns_in_training(requests: TrainingRequests, group: PromptGroup, index: int, *, min_version: int) -> TurnRequests:
    """The requests for the later turns of one sample of a prompt group."""
    return TurnRequests(
        kind=RequestKind.TURN,
        name=f"{group.id}/{index}",
        sampling=replace(requests.sampling, num_greedy=0, temperature=requests.sampling.temperature_of(index)),
        position=group.position,
        min_version=min_version,
        run_seed=requests.run_seed,
    )


@dataclass(frozen=True, kw_only=True)
class TurnRequests:
    """Makes them for one conversation."""

    kind: RequestKind
    name: str
    """Of the sample, unique among those of its kind."""
    sampling: SamplingParams
    position: int
    min_version: int
    """Oldest version of the weights that may take part."""
    run_seed: int | None = None
    """Gives each turn random numbers of its own; None: the seed of ``sampling`` holds for all."""
    timeout_s: float | None = None

    def of(
        self,
        prompt_token_ids: tuple[int, ...],
        *,
        number: int,
        max_tokens: int,
        newest_version: int,
        continues: tuple[int, ...],
    ) -> RequestSpec:
        """The request for the turn after ``number`` others: whatever was said before is the prompt, token for token.

        No turn is made by weights that are older than ``newest_version``, those of the turn before.
        """
        name = f"{self.name}.{number}"
        seed = self.sampling.seed if self.run_seed is None else sampling_seed(self.run_seed, name)
        return RequestSpec(
            id=RequestId(kind=self.kind, name=name),
            prompt_token_ids=prompt_token_ids,
            sampling=replace(self.sampling, n=1, max_tokens=max_tokens, seed=seed),
            position=self.position,
            min_version=max(self.min_version, newest_version),
            continues=continues,
            timeout_s=self.timeout_s,
        )
