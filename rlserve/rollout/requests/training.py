"""The requests that prompt groups become."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b

from rlserve.engine.requests.request import SamplingParams
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.requests.base import RequestId, RequestKind, RequestSpec
from rlserve.rollout.workload.workload import Workload


def sampling_seed(run_seed: int, group_id: str) -> int:
    """Seed of a group's random numbers: the same in every process and after every restart of the group. [0, 2**63)"""
    digest = blake2b(f"{run_seed}/{group_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, kw_only=True)
class TrainingRequests:
    """Makes them."""

    sampling: SamplingParams
    """Holds for every group; its seed is replaced by the group's own."""
    run_seed: int
    workload: Workload | None = None
    """What decides lengths; None: the model does."""

    def of(self, group: PromptGroup, *, min_version: int, attempt: int = 0) -> RequestSpec:
        """The request for ``group``. ``attempt`` is the ledger's, above 0 after a resume of the run.

        A group starts only on a replica whose weights are at least as new as the policy at its admission: with that, no
        token is older than ``min_version``, which the bound on staleness rests on.
        """
        sampling = self.sampling if self.workload is None else self.workload.sampling(group, self.sampling)
        return RequestSpec(
            id=RequestId(kind=RequestKind.TRAINING, name=group.id, attempt=attempt),
            prompt_token_ids=group.prompt_token_ids,
            sampling=replace(sampling, seed=sampling_seed(self.run_seed, group.id)),
            position=group.position,
            min_version=min_version,
        )
