"""What the front and a replica's process say to each other. Plain data; ``wire.py`` turns it into bytes.

::

    front ── Start, Submit, Abort, Order ──►  replica
          ◄── Ready | Refused, News, Beat, Done ──
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rlserve.engine.config import EngineConfig
from rlserve.engine.requests.delta import RequestDelta
from rlserve.engine.requests.request import Request
from rlserve.engine.stats.metrics import Value


@dataclass(frozen=True, kw_only=True)
class Start:
    """The first message to a replica: load this model."""

    model_path: str
    engine: EngineConfig
    beat_interval_s: float
    max_pieces_per_s: float
    """Of all streams together."""
    weight_version: int = 0
    """What the weights of that folder are called."""
    is_paused: bool = False
    """Whether the engine stands still until it is told to resume."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Folders of LoRA adapters, by name."""


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Requests to answer."""

    requests: tuple[Request, ...]
    streamed: bool
    """Whether new tokens are told as they come, or at intervals, and the whole answers at their end."""


@dataclass(frozen=True, kw_only=True)
class Abort:
    """Nobody waits for these any more."""

    request_ids: tuple[str, ...]


OrderAction = Literal[
    "pause", "resume", "stage", "swap", "discard", "load_adapter", "unload_adapter", "profile", "end_profile", "report"
]


@dataclass(frozen=True, kw_only=True)
class Order:
    """Something that an operator wants. ``pause`` and ``resume`` the engine between two steps; ``stage`` the weights of
    a folder beside the running model; then ``swap`` them in between two steps, or ``discard`` them; ``load_adapter`` or
    ``unload_adapter`` between two steps; ``profile`` the next steps, or ``end_profile`` before it ends by itself;
    ``report``: a beat at once, before its ``Done``."""

    action: OrderAction
    number: int = 0
    """Given by who sends it."""
    model_path: str = ""
    """Of ``stage``, and the folder of ``load_adapter``."""
    weight_version: int = 0
    """Of ``swap``."""
    adapter: str = ""
    """Its name."""
    trace_path: str = ""
    """Of ``profile``: the file to write."""
    max_steps: int = 0
    """Of ``profile``."""
    max_s: float = 0.0
    """Of ``profile``."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """The order of this number was carried out, or was not."""

    number: int
    error: str | None = None
    """Why it was not; all is as before, but after a ``swap``, where nobody knows."""
    pause_s: float = 0.0
    """Of ``swap``: for so long the engine made no step."""
    num_steps: int = 0
    """Of ``profile``: that were seen."""
    num_bytes: int = 0
    """Of ``profile``: of the file."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The engine is loaded: what it can take."""

    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    max_num_sequences: int


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The engine cannot be had; the process ends."""

    message: str


@dataclass(frozen=True, kw_only=True)
class News:
    """New tokens and ends, of one step or of several. Of requests that are not streamed, the tokens
    come at intervals, and those before the end in the whole answer alone."""

    deltas: tuple[RequestDelta, ...]


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A sign of life, with the engine's numbers by vLLM's names."""

    num_steps: int
    """Of the engine. A replica whose engine has work and whose steps do not count up is stuck, or in a long step."""
    has_work: bool
    """False while it is paused, whatever waits."""
    busy_s: float
    """Seconds that its steps took in all."""
    num_generated_tokens: int
    weight_version: int
    metrics: dict[str, Value]


Message = Start | Submit | Abort | Order | Ready | Refused | News | Beat | Done
