"""The contracts of environments: of one, which a user writes, and of the processes that hold many.

::

    reset(task) ──► step(turn) ──► reply: more for the model to read ──► step(turn) ──► … ──► over ──► close()
                                   └── no room for it ──► truncate() ──► what is left to give ──────┘
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlserve.rollout.columns import Columns
from rlserve.rollout.groups import Answer, Message


@dataclass(frozen=True, kw_only=True)
class EnvironmentTask:
    """What a conversation is about: one row of the data set."""

    id: str
    """Names the prompt's group and the sample; errors quote it."""
    prompt: str
    """As the data set has it; of a conversation, what the user said last."""
    answer: Answer
    """Reference answer of the data set; None where it has none."""
    messages: tuple[Message, ...] | None = None
    """The conversation that the chat template rendered; None without a template."""
    row: Columns = field(default_factory=Columns)
    """All columns of the row, read only."""


@dataclass(frozen=True, kw_only=True)
class ModelTurn:
    """What the model said."""

    text: str
    """Of the tokens, as a reward sees it."""
    token_ids: tuple[int, ...]
    """As they were drawn, the end token or stop string included."""
    number: int
    """Turns of the model before this one."""
    finished: bool
    """False where the turn was cut off by a limit of tokens; the conversation ends with it, whatever the reply says."""
    is_last: bool
    """Whether the model has no turn after this one: it was cut off, or the last of ``environment.max_turns``."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What an environment answers. Where it is not over, exactly one of ``text``, ``messages`` and ``token_ids``."""

    text: str | None = None
    """Becomes a user's message with a chat template, and tokens as it is without."""
    messages: tuple[Message, ...] | None = None
    """For the chat template, which the data must then be rendered with."""
    token_ids: tuple[int, ...] | None = None
    """Appended as they are."""
    reward: float = 0.0
    """Of this turn; those of a conversation are added up."""
    over: bool = False
    """The conversation ends here, and what else the reply says to the model is passed over."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Further finite numbers by name, added up over the turns, for the metrics ``reward/NAME/mean``."""


class Environment(ABC):
    """One conversation's counterpart, made anew for each. Its calls come one after the other, in one event loop with
    those of many other environments: a call that waits must await, since one that blocks holds all of them up.

    A class with these methods need not inherit from this one; plain methods will do for what takes no time.
    """

    @abstractmethod
    async def reset(self, task: EnvironmentTask) -> None:
        """Get ready for the conversation about ``task``. The model has been given its prompt."""

    @abstractmethod
    async def step(self, turn: ModelTurn) -> Reply | Mapping[str, Any]:
        """Answer a turn of the model; a dict with the fields of :class:`Reply` will do."""

    async def truncate(self) -> Reply | Mapping[str, Any] | None:
        """The last reply did not fit into ``rollout.max_tokens``: the model does not read it and has no further turn.
        Reward and metrics of what is returned are added to those of the last turn, and all else of it is passed over.
        """
        return None

    async def close(self) -> None:
        """The conversation has ended, was given up, or failed. Called once after ``reset`` was."""
        return


class EnvironmentSession(Protocol):
    """One environment, open in some process."""

    @property
    def duration_s(self) -> float:
        """Seconds that its calls took until now."""

    async def step(self, turn: ModelTurn) -> Reply:
        """As the environment's.

        Raises:
            EnvironmentFailedError: it raised, hung, or gave a reply that is none.
            WorkerLostError: its process was lost, for which it need not be to blame: the conversation can begin anew.
        """

    async def truncate(self) -> Reply:
        """As the environment's; a reply without rewards where it has no such method. Raises what ``step`` does."""

    def close(self) -> None:
        """Let it be closed, in the background."""


class Environments(Protocol):
    """Opens environments, in other processes."""

    async def start(self) -> None:
        """Start the processes.

        Raises:
            EnvironmentFailedError: the class cannot be found or loaded.
            WorkerFailedError: a process did not come up.
        """

    async def open(self, task: EnvironmentTask) -> EnvironmentSession:
        """Make an environment and reset it, once there is room for one more.

        Raises:
            EnvironmentFailedError: it raised or hung.
            WorkerLostError: its process was lost, for which it need not be to blame.
        """

    def close(self) -> None:
        """End all processes."""
