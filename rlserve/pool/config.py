"""Configuration of the pool: which slots there are. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from rlserve.errors import check_fields
from rlserve.pool.pacing.config import PacingConfig
from rlserve.pool.sharing.config import ShareConfig
from rlserve.roofline.accelerators import is_paced, is_spot

CLOUD_PROBES = ("aws", "azure", "google")
"""Names that ``pool.notice_probe`` may have beside those of functions."""


@dataclass(frozen=True, kw_only=True)
class SlotGroupConfig:
    """A number of like slots: ``{type: H100, count: 8, prefer: train}``."""

    type: str
    """A type of the catalogue (``H100``, ``H200``, ``A100`` …), or any name that begins with ``cpu``.
    ``paced-H100`` is a CPU process that takes as long for everything as an H100 would: see ``pool.pacing``.
    ``H100-spot`` is an H100 on a spot machine, which can be taken away: see ``pool.train_on_spot``."""
    count: int
    """Slots of this type."""
    prefer: Literal["train", "rollout"] | None = None
    """Role that these slots start in, and leave last; None lets the catalogue's figures decide."""
    num_threads: int = 1
    """CPU threads of each worker; only for CPU slots."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "type": bool(self.type.strip()) or "must name a type",
                "count": self.count >= 1 or "must be at least 1",
                "num_threads": self.num_threads >= 1 or "must be at least 1",
            },
        )


@dataclass(frozen=True, kw_only=True)
class ColocatedConfig:
    """How training and rollout share each slot with ``placement=colocated``."""

    batches_per_turn: int = 1
    """Batches that must be finished before training has its turn, in which it makes a step of each; at most
    ``rollout.max_staleness`` + 1. More of them spread the cost of a change of turn over more steps, and make tokens
    staler."""
    rollout_time_share: float = 0.0
    """Least share of the time that rollout has, as long as there is anything to generate: with 0.7, a turn of rollout
    after one of training of 3 s lasts 7 s, also where batches are finished before. It needs
    ``rollout.max_staleness`` of 1 or more, since otherwise nothing may be generated beyond one batch."""
    rollout_memory_share: float | None = None
    """Share of a slot's memory that its engine may take, weights and KV cache together; the rest is left to the trainer
    that sleeps beside it. The slots of a machine's CPU have equal parts of its memory. None sizes the KV cache as
    ``rollout.engine`` says: on a GPU by what the trainer leaves free."""
    offload_trainer: bool = True
    """Whether parameters and optimizer's state of the trainer are in host memory while a GPU rolls out. Without effect
    on CPU slots, whose memory is the host's."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "batches_per_turn": self.batches_per_turn >= 1 or "must be at least 1",
                "rollout_time_share": 0 <= self.rollout_time_share < 1 or "must be in [0, 1)",
                "rollout_memory_share": self.rollout_memory_share is None
                or 0 < self.rollout_memory_share < 1
                or "must be in (0, 1)",
            },
        )


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """The slots that training and rollout share."""

    slots: Literal["auto"] | tuple[SlotGroupConfig, ...] = "auto"
    """``auto`` takes every accelerator of the machine or the cluster, or four CPU slots where there is none; on a
    cluster also those of nodes that join while the run goes on. A list stays as it is, but slots that left with their
    node are taken again from another."""
    auto_prefer: dict[str, Literal["train", "rollout"]] = field(default_factory=dict)
    """With ``auto``, the role that slots of a type prefer: ``{H100: train, L40S-spot: rollout}``."""
    placement: Literal["elastic", "separate", "colocated"] = "elastic"
    """``elastic`` lets the manager's policy move slots between training and rollout. With ``separate`` roles stay as
    they start, whatever the policy, as with ``manager=static``: a role that would be empty still gets a slot, one that
    joins gets a role, and ``rlserve move`` works. With ``colocated`` all slots roll out, then all train, and so on: see
    ``pool.colocated``; one slot is enough, nothing moves, and weights stay in their processes whatever
    ``weights.transport`` says."""
    num_initial_rollout: int | None = None
    """Slots (gangs, where ``rollout.engine.tensor_parallel_size`` makes them) that begin as rollout; None takes those
    that prefer it, or half."""
    train_on_spot: bool = False
    """Whether slots on spot machines (``type: H100-spot``) may train too. A replica that is taken away costs the tokens
    that it has not handed on, or none where a notice comes before; a trainer costs the step under way."""
    worker_start_timeout_s: float = 180.0
    """Deadline of a worker process coming up."""
    switch_timeout_s: float = 120.0
    """Deadline of changing one slot's role."""
    move_hold_s: float = 600.0
    """How long no policy changes a split that was made by hand (`rlserve move`)."""
    notice_grace_s: float = 120.0
    """Time that a notice gives which does not say when slots are taken away (a signal to a worker process, a line
    without seconds). What is not emptied by then is given up."""
    notice_file: str | None = None
    """File that names slots, gangs, nodes or hosts that will be taken away, one a line, with the seconds that are left;
    None is `notices` in the run's folder."""
    notice_probe: str | None = None
    """Asked every second on each machine whether it will be taken away:
    ``aws``, ``azure`` or ``google`` asks that cloud;
    `path/to/file.py:function` or `package.module:function` returns the seconds until then, or None."""
    health_interval_s: float = 1.0
    """How often each worker is asked for a sign of life."""
    health_timeout_s: float = 10.0
    """Longest that a worker may leave that unanswered, whatever it is doing, or may compute without using the
    processor; then it is ended and replaced."""
    max_worker_failures: int = 8
    """Lost workers that are replaced; one more stops the run."""
    colocated: ColocatedConfig = field(default_factory=ColocatedConfig)
    pacing: PacingConfig = field(default_factory=PacingConfig)
    share: ShareConfig = field(default_factory=ShareConfig)

    @property
    def is_paced(self) -> bool:
        """Whether slots stand for accelerators."""
        return self.slots != "auto" and any(is_paced(group.type) for group in self.slots)

    def _may_prefer(self, wishes: Iterable[tuple[str, str | None]]) -> bool | str:
        """Whether types may prefer these roles, or what must be so that they may."""
        asked = any(role == "train" and is_spot(name) for name, role in wishes)
        return not asked or self.train_on_spot or "may let spot machines train only with pool.train_on_spot=true"

    @property
    def keeps_slots_from_training(self) -> bool:
        """Whether some are on spot machines, and may only roll out."""
        return self.slots != "auto" and not self.train_on_spot and any(is_spot(group.type) for group in self.slots)

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "slots": self.slots == "auto"
                or (
                    "must hold at least 1 slot"
                    if not self.slots
                    else self._may_prefer((s.type, s.prefer) for s in self.slots)
                ),
                "auto_prefer": "goes with slots=auto alone"
                if self.slots != "auto" and self.auto_prefer
                else self._may_prefer(self.auto_prefer.items()),
                "num_initial_rollout": self.num_initial_rollout is None
                or self.num_initial_rollout >= 1
                or "must be at least 1",
                "worker_start_timeout_s": self.worker_start_timeout_s > 0 or "must be above 0",
                "switch_timeout_s": self.switch_timeout_s > 0 or "must be above 0",
                "move_hold_s": self.move_hold_s >= 0 or "must be at least 0",
                "notice_grace_s": self.notice_grace_s > 0 or "must be above 0",
                "notice_probe": self.notice_probe is None
                or self.notice_probe in CLOUD_PROBES
                or all(self.notice_probe.rpartition(":"))
                or f"must be {', '.join(CLOUD_PROBES)}, path/to/file.py:function or package.module:function",
                "health_interval_s": self.health_interval_s > 0 or "must be above 0",
                "health_timeout_s": self.health_timeout_s >= self.health_interval_s
                or f"must be at least pool.health_interval_s={self.health_interval_s:g}",
                "max_worker_failures": self.max_worker_failures >= 0 or "must be at least 0",
            },
        )
