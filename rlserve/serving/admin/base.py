"""What an operator can do to whoever answers. Each is refused where it cannot be had."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rlserve.serving.protocol.errors import ApiError


@dataclass(frozen=True, kw_only=True)
class ReplicaStatus:
    """How a replica stands."""

    name: str
    state: str
    num_samples: int | None = None
    """Answers that it has."""
    weight_version: int | None = None
    is_drained: bool = False
    tokens_per_s: float | None = None
    """While it was busy of late; None before it was."""
    process_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class NewWeights:
    """What became of new weights."""

    weight_version: int
    pause_s: float
    """The longest that an engine made no step."""
    num_replicas: int
    """That have swapped them in. Others start anew with them."""


@dataclass(frozen=True, kw_only=True)
class MovedGang:
    """What became of a move."""

    message: str


@dataclass(frozen=True, kw_only=True)
class ProfileBounds:
    """A profile ends with the first that is reached."""

    num_steps: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a profile has seen."""

    path: str
    """Of a trace for Perfetto (https://ui.perfetto.dev), compressed, on the machine of the server."""
    replica: str
    num_steps: int
    num_bytes: int


class Operations(ABC):
    """All but a look is refused; implementations override what they can do."""

    @abstractmethod
    async def status(self) -> list[ReplicaStatus]:
        """Of all replicas."""

    async def pause(self) -> None:
        """Let engines stand still between two steps; streams stay open.

        Raises:
            ApiError: this server cannot, or a replica did not.
        """
        _refuse("pause")

    async def resume(self) -> None:
        """Go on after :meth:`pause`."""
        _refuse("resume")

    async def load_weights(self, folder: Path) -> NewWeights:
        """Load the weights in a folder into all replicas, under a new version.

        Raises:
            ApiError: this server cannot, or the folder is not good: all is as before.
        """
        _refuse("weights")

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Load a LoRA adapter into all replicas, in the place of the one of that name, if there is one.

        Raises:
            ApiError: this server cannot, or the folder is not good: all is as before.
        """
        _refuse_adapters()

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter that was loaded.

        Raises:
            ApiError: this server cannot.
        """
        _refuse_adapters()

    def drain(self, replica: str) -> None:
        """Give a replica nothing new.

        Raises:
            ApiError: this server cannot, or there is no such replica.
        """
        _refuse("drain of one replica")

    def undrain(self, replica: str) -> None:
        """Call :meth:`drain` off."""
        _refuse("undrain of one replica")

    def begin_profile(self, replica: str | None, bounds: ProfileBounds) -> None:
        """Have the next steps of an engine profiled.

        Args:
            replica: by its name; None takes one that has something to do.

        Raises:
            ApiError: this server cannot, there is no such replica, or a profile is being taken.
        """
        _refuse("profile")

    async def end_profile(self) -> Profile:
        """End the profile of now; what became of it, or of the last one.

        Raises:
            ApiError: this server cannot, there was none, or it cannot be had.
        """
        _refuse("profile")

    async def last_profile(self) -> Profile:
        """Wait for the end of the profile that was begun last.

        Raises:
            ApiError: it cannot be had.
        """
        _refuse("profile")

    async def move(self, gang: str, role: str) -> MovedGang:
        """Have a gang of a run change its role.

        Args:
            gang: its name, or that of one of its slots.
            role: ``train`` or ``rollout``.

        Raises:
            ApiError: this server cannot, or the run refuses.
        """
        _refuse("move")


def _refuse_adapters() -> NoReturn:
    raise ApiError(
        501,
        "a run's server has no adapters: they belong to weights that stay, and a run's change with each step; export a "
        "checkpoint (rlserve export) and serve that with model.adapters",
    )


def _refuse(what: str) -> NoReturn:
    raise ApiError(501, f"{what}: this server cannot do that; docs/serving.md says which can")
