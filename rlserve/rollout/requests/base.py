"""What a request is before any replica has it: its id, its kind, and what it asks for. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from rlserve.engine.requests.request import SamplingParams


class RequestKind(StrEnum):
    """Who asks."""

    TRAINING = "training"
    """A prompt group of the ledger."""
    TURN = "turn"
    """A later turn of a conversation in training, of one sample."""
    EVALUATION = "evaluation"
    """A held-out prompt, or a later turn of its conversation."""
    CLIENT = "client"
    """Of somebody outside the run, who talks to its replicas over HTTP. The router keeps a share for them."""


URGENCY: Mapping[RequestKind, int] = {
    RequestKind.TRAINING: 0,
    RequestKind.TURN: 0,
    RequestKind.EVALUATION: 1,
    RequestKind.CLIENT: 2,
}
"""Higher goes first: an evaluation holds training up until it is answered. Clients hold nobody up, since they have no
more than their share of any replica; being first, they have that much."""


@dataclass(frozen=True, kw_only=True)
class RequestId:
    """The name of one attempt at a request, the same everywhere in a run.

    Its string form, ``training/0:17#2``, is what engines know a request by. It is made and read here and nowhere else.
    """

    kind: RequestKind
    name: str
    """Unique among the requests of its kind that are not answered yet."""
    attempt: int = 0
    """Grows when a replica loses the request, so that an answer that comes too late is recognised."""

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}#{self.attempt}"

    @classmethod
    def parse(cls, text: str) -> RequestId:
        """The id with this string form.

        Raises:
            ValueError: there is none.
        """
        kind, _, rest = text.partition("/")
        name, _, attempt = rest.rpartition("#")
        return cls(kind=RequestKind(kind), name=name, attempt=int(attempt))

    @property
    def first(self) -> RequestId:
        """The same request's first attempt, which stands for all of them."""
        return replace(self, attempt=0) if self.attempt else self


@dataclass(frozen=True, kw_only=True)
class RequestSpec:
    """What somebody wants answered."""

    id: RequestId
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    position: int
    """Among the requests of its kind: lower goes first."""
    min_version: int = 0
    """Oldest version of the weights that may answer it."""
    continues: tuple[int, ...] = ()
    """Prompt of the request that this one is the next turn of: whoever answered that may cache what both begin with."""
    timeout_s: float | None = None
    """Longest that it may make no progress; None: as long as it takes."""
    cache_salt: str = ""
    """Cached prefixes are shared by requests with the same one alone."""
