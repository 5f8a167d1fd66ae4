"""``live.json``: how a run stands right now, for whoever looks on from outside; gone once the run has ended.

What is written down for good (metrics, decisions, events) is not repeated here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rlserve.errors import DataError
from rlserve.tracking.events import Owner

_OWNERS: Mapping[str, Owner] = {"train": "train", "rollout": "rollout", "called_to_train": "rollout", "dead": "dead"}
"""By the state of a gang; in the others it is on its way."""


@dataclass(frozen=True, kw_only=True)
class LiveGang:
    """One gang. None is what is not known, or has no meaning in its role."""

    id: str
    type: str
    """Of its slots."""
    num_slots: int
    state: str
    """``train``, ``rollout`` or ``called_to_train``, or on the way: ``leaving_train``, ``joining_rollout`` …"""
    worker_state: str | None = None
    """Of the worker that is worst off, where the gang has a role and not all of its workers may be relied on:
    ``suspect``, ``dead``, ``restarting``, ``stale``."""
    version: int | None = None
    """Of the weights that it serves, or trains."""
    num_running: int | None = None
    """Samples in its running batch."""
    num_waiting: int | None = None
    """Samples that wait inside its engine."""
    kv_cache_usage: float | None = None
    """0 to 1."""
    tokens_per_s: float | None = None
    """Generated."""

    @property
    def owner(self) -> Owner:
        """Who has it."""
        return _OWNERS.get(self.state, "moving")


@dataclass(frozen=True, kw_only=True)
class LiveScaleOut:
    """Slots that the run grows by, by type."""

    asked: Mapping[str, int]
    """Of the cluster, those included that are there."""
    present: Mapping[str, int]
    max_slots: Mapping[str, int]
    """Most that may be asked for."""
    money_per_hour: float | None
    """Of all slots of the run, those included that are still to come or to end; None where one has no price."""
    budget_per_hour: float | None
    """Most that this may be."""


@dataclass(frozen=True, kw_only=True)
class LiveShare:
    """How a cluster is divided that other runs share."""

    num_lent: int
    """Slots that others have because this run gave them up."""
    num_borrowed: int
    """Slots that it has because others gave them up."""
    runs: Mapping[str, int]
    """Slots of each of the others, by name."""


@dataclass(frozen=True, kw_only=True)
class LiveState:
    """The run at one moment."""

    time_s: float
    """On the run's clock."""
    status: str
    """What the run is doing: ``starting workers``, ``training`` …"""
    queue_length: int
    """Prompt groups that wait for a replica."""
    num_in_flight: int
    """Groups admitted and not yet finished."""
    num_buffered: int
    """Finished groups that wait for the trainer."""
    trainer_waiting: bool
    """Whether the trainer waits for a batch."""
    weight_version: int | None
    """The newest that replicas can take."""
    tokens_per_s: float | None
    """Generated, by all replicas together."""
    gangs: tuple[LiveGang, ...]
    scale_out: LiveScaleOut | None = None
    """None where the run does not grow."""
    share: LiveShare | None = None
    """None where no other run has slots of the cluster."""


class LiveFile:
    """Writes ``live.json``, wholly or not at all: it may be read at any moment."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}-{os.getpid()}")

    def write(self, state: LiveState) -> None:
        """Replace what is there. Not forced onto the disk: after a loss of power it would be of no use."""
        self._temporary.write_text(json.dumps(asdict(state)) + "\n", encoding="utf-8")
        self._temporary.replace(self._path)

    def remove(self) -> None:
        """The run has ended; what it was doing last is no news."""
        self._path.unlink(missing_ok=True)


def read_live(path: Path) -> LiveState | None:
    """What the run wrote last; None where it writes nothing, or nothing any more.

    Raises:
        DataError: the file is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:  # also of a run that ended just now
        return None
    try:
        content = json.loads(text)
        gangs = tuple(LiveGang(**gang) for gang in content.pop("gangs"))
        grows, share = content.pop("scale_out", None), content.pop("share", None)
        return LiveState(
            **content,
            gangs=gangs,
            scale_out=None if grows is None else LiveScaleOut(**grows),
            share=None if share is None else LiveShare(**share),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is not what a run writes there: {error}") from error
