"""What a run needs of the world outside the controller's process, and nothing more: workers, a scorer, clients.

A run hands in Ray's (``rlserve.controller.ray_ports``); tests and simulations hand in their own, and import no Ray.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rlserve.pool.autoscaler import NodeShape
from rlserve.pool.base import WorkerInfo, WorkerSpec
from rlserve.pool.gangs import Node
from rlserve.pool.sharing.base import Allowance, HeldSlots
from rlserve.pool.slots import Slot
from rlserve.rollout.environments.base import Environments
from rlserve.rollout.scoring.base import AnswerScorer
from rlserve.weights.offer import Holding, SentPart

if TYPE_CHECKING:
    from rlserve.controller.clients.desk import ClientDesk


class RemoteMethod(Protocol):
    """A method of a worker, called as Ray's are; ``rlserve.remote.answer`` gives the call its deadline."""

    def remote(self, *arguments: Any) -> Awaitable[Any]:
        """Call it; what is returned can be awaited once."""


class SendMethod(Protocol):
    """The method that sends weights: the first thing that it returns is for receivers alone, and is not awaited."""

    def remote(self, version: int, base: Holding | None, needed: Sequence[int]) -> tuple[Any, Awaitable[SentPart]]:
        """Call it."""


class WorkerHandle(Protocol):
    """What the controller calls on a worker: the methods of ``rlserve.pool.worker.Worker``."""

    @property
    def sign_of_life(self) -> RemoteMethod: ...
    @property
    def pacing_account(self) -> RemoteMethod: ...
    @property
    def release(self) -> RemoteMethod: ...

    # Rollout.
    @property
    def start_rollout(self) -> RemoteMethod: ...
    @property
    def follow_rollout(self) -> RemoteMethod: ...
    @property
    def take_weights(self) -> RemoteMethod: ...
    @property
    def take_own_weights(self) -> RemoteMethod: ...
    @property
    def score_canary(self) -> RemoteMethod: ...
    @property
    def submit(self) -> RemoteMethod: ...
    @property
    def submit_streamed(self) -> RemoteMethod: ...
    @property
    def abort(self) -> RemoteMethod: ...
    @property
    def collect(self) -> RemoteMethod: ...
    @property
    def stream(self) -> RemoteMethod: ...
    @property
    def stop_rollout(self) -> RemoteMethod: ...
    @property
    def rollout_ended(self) -> RemoteMethod: ...

    # Training.
    @property
    def choose_port(self) -> RemoteMethod: ...
    @property
    def prepare_training(self) -> RemoteMethod: ...
    @property
    def meet_trainers(self) -> RemoteMethod: ...
    @property
    def break_off_group(self) -> RemoteMethod: ...
    @property
    def join_training(self) -> RemoteMethod: ...
    @property
    def step(self) -> RemoteMethod: ...
    @property
    def evaluate(self) -> RemoteMethod: ...
    @property
    def last_metrics(self) -> RemoteMethod: ...
    @property
    def copy_between_steps(self) -> RemoteMethod: ...
    @property
    def drop_snapshot(self) -> RemoteMethod: ...
    @property
    def send_weights(self) -> SendMethod: ...
    @property
    def discard_weights(self) -> RemoteMethod: ...
    @property
    def sleep_training(self) -> RemoteMethod: ...
    @property
    def wake_training(self) -> RemoteMethod: ...
    @property
    def describe_weights(self) -> RemoteMethod: ...
    @property
    def leave_training(self) -> RemoteMethod: ...
    @property
    def write_state(self) -> RemoteMethod: ...
    @property
    def load_trainer(self) -> RemoteMethod: ...


class Fleet(Protocol):
    """One worker process for each slot: :class:`rlserve.pool.fleet.Fleet`."""

    @property
    def ready(self) -> tuple[str, ...]:
        """Slots whose worker has come up and was not ended."""

    def __getitem__(self, slot_id: str) -> WorkerHandle:
        """The worker on a slot.

        Raises:
            WorkerLostError: it was ended.
        """

    def share(self, value: Any) -> Any:
        """Something to hand to several workers in place of ``value``."""

    def info(self, slot_id: str) -> WorkerInfo:
        """Process and host of the worker on a slot."""

    async def start(self, slots: Iterable[tuple[Slot, WorkerSpec]]) -> None:
        """Start the workers of slots side by side.

        Raises:
            WorkerLostError: one died while starting, or did not come up in time.
        """

    async def recover(self, slot_ids: Sequence[str], *, on_restart: Callable[[str], None]) -> tuple[str, ...]:
        """Bring the workers of a gang that lost one to where they have no role; the slots whose workers were replaced,
        for each of which ``on_restart`` was called before.

        Raises:
            WorkerLostError: as ``start``.
        """

    def processor_s(self, slot_id: str) -> float | None:
        """Seconds of processor time that a worker has used; None where that cannot be seen."""

    def is_ready_to_run(self, slot_id: str) -> bool:
        """Whether a thread of a worker runs, or would if it had a processor; False where that cannot be seen."""

    def is_stopped(self, slot_id: str) -> bool:
        """Whether the process of a worker is stopped by a signal; False where that cannot be seen."""

    def reason(self, slot_id: str) -> str | None:
        """Why the last worker of a slot was ended, where ``kill`` was given one."""

    def kill(self, slot_id: str, reason: str | None = None) -> None:
        """End a worker at once; calls that wait for it fail."""

    def close(self) -> None:
        """End all workers."""


ProcessorSource = Callable[[], Mapping[str, float]]
"""How busy the processors of each node with CPU slots were since it was last asked, 0 to 1, by the node's name."""
NodeSource = Callable[[], Awaitable[tuple[Node, ...]]]
"""Gives the nodes of the cluster that are there now."""
NodeRequest = Callable[[Sequence[NodeShape]], Awaitable[None]]
"""Asks the cluster's autoscaler to have nodes of these shapes, those that are there included, and no more for this
run."""


class Sharing(Protocol):
    """The other runs of a cluster that is shared: :class:`rlserve.pool.sharing.member.Member`."""

    @property
    def allowance(self) -> Allowance:
        """What the run was told last."""

    def claim(self, holding: HeldSlots, useful: int | None) -> Allowance:
        """What the run may have now, with what it has, and how many slots it could use.

        Raises:
            PoolError: nobody answers.
        """


class Front(Protocol):
    """What lets clients in, for as long as the run goes on."""

    async def run(self) -> None:
        """Serve until ``stop``; what fails here ends the run."""

    async def stop(self) -> None:
        """Take nothing new, and return when answers under way have ended, or were given up."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ports:
    """The outside of one run."""

    fleet: Fleet
    scorer: AnswerScorer | None
    """None where nothing is generated."""
    environments: Environments | None = None
    """None where an answer is one turn."""
    nodes: NodeSource | None = None
    """None where there is but this machine, whose slots stay as they are."""
    request_nodes: NodeRequest | None = None
    """None where the run does not grow."""
    sharing: Sharing | None = None
    """None where no other run has slots of the cluster."""
    front: Callable[[ClientDesk], Front] | None = None
    """Makes it; None where there are no clients."""
    processors: ProcessorSource | None = None
    """None where nobody asks: no slot computes on the CPU, or its node is not this machine."""

    @property
    def services(self) -> tuple[AnswerScorer | Environments, ...]:
        """Those that start beside the workers, and end with the run."""
        return tuple(service for service in (self.scorer, self.environments) if service is not None)
