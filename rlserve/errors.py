"""Every error that rlserve raises on purpose.

One root, :class:`RlserveError`; each leaf also inherits the standard type that it refines, so
``except ValueError`` keeps working for people who use a part as a library. ``exit_code`` is what the
command line returns: 2 for something the user can mend in the configuration, the data or the model, 1 for
a failure of the run itself. Messages name the value and the remedy.

All of them cross process borders, so they must survive pickling: pass every constructor argument to
``super().__init__``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


class RlserveError(Exception):
    """Root of all errors of rlserve."""

    exit_code = 1


class UserError(RlserveError, ValueError):
    """Something that the user can mend: shown as one clear message, without a traceback."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a configuration: a dotted key (relative to where it was found) and what is wrong."""

    key: str
    """Empty where the whole file is meant."""
    message: str
    source: str = ""
    """The file, or ``override``, that it comes from; empty where it is not known."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.key, self.message) if part)


class ConfigurationError(UserError):
    """One or more problems in the configuration, all reported at once."""

    def __init__(self, problems: Sequence[Problem], source: str = "") -> None:
        super().__init__(tuple(problems), source)
        self.problems = tuple(problems)
        self.source = source

    def __str__(self) -> str:
        return "\n".join(str(replace(problem, source=problem.source or self.source)) for problem in self.problems)


class DataError(UserError):
    """A data set that cannot be used: a broken line (``file:line``), a missing column, no prompts."""


class ModelError(UserError):
    """A folder that is no model, an unsupported architecture, weights that do not fit the configuration."""


class RewardError(UserError):
    """A reward that cannot be found, raised, or returned something that is not a finite number."""


class EnvironmentFailedError(UserError):
    """An environment that cannot be found, raised, hung, ended its process, or gave a reply that is none."""


class TurnRefusedError(RlserveError, RuntimeError):
    """The engine refused the next turn of a conversation, or it made no progress by its deadline."""


class PoolError(UserError):
    """A pool or a split that cannot be: more slots than the machine has, a role without a slot."""


class NonFiniteLossError(RlserveError, FloatingPointError):
    """The loss or the gradient of a step is not finite; the step was not applied."""

    exit_code = 2


class IllegalTransitionError(RlserveError, RuntimeError):
    """A state machine was asked for a move that its table does not have."""


class WeightsRefusedError(RlserveError, ValueError):
    """Weights that do not fit: a version that goes back, a wrong base, a wrong checksum, names or shapes."""


class WorkerFailedError(RlserveError, RuntimeError):
    """A worker process died, or did not answer, and the run cannot go on without it."""


class WorkerLostError(WorkerFailedError):
    """A worker process is gone, or is as good as gone: it did not answer before the deadline."""


class StateLostError(WorkerFailedError):
    """No trainer is left that holds some part of the state: a run continues from its last checkpoint."""


class ArgumentLostError(RlserveError, LookupError):
    """What was to be handed to a worker is gone with the node that held it; the worker itself may be well."""


class CheckpointError(RlserveError, OSError):
    """A checkpoint could not be written; the one before it is untouched."""


class WriterLostError(CheckpointError):
    """A worker that wrote a part of a checkpoint was lost; others can write it anew."""


class DeadlineExceededError(RlserveError, TimeoutError):
    """A wait passed its deadline; the message names what was waited for."""


def check_fields(owner: object, conditions: Mapping[str, bool | str]) -> None:
    """Raise one :class:`ConfigurationError` for all fields of ``owner`` that fail.

    Called from ``__post_init__`` of a config dataclass. ``conditions`` maps a field's name to ``True`` when
    it is fine, or to what it must be: ``{"top_p": 0 < self.top_p <= 1 or "must be in (0, 1]"}``.
    """
    problems = [
        Problem(name, f"{condition or 'is not valid'}, got {getattr(owner, name)!r}")
        for name, condition in conditions.items()
        if condition is not True
    ]
    if problems:
        raise ConfigurationError(problems)
