"""Trainers and replicas with fake workers, and the weight sync between them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

from controller_fakes import BATCH, FakeClock, FakeFleet, recorded, run_context
from ray.exceptions import ObjectLostError, RayTaskError

from rlserve.controller.canary import CanaryWatch
from rlserve.controller.events import WeightsNotTaken, WeightsTaken, WorkerLost
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.controller.weight_sync import WeightSync
from rlserve.errors import WeightsRefusedError
from rlserve.pool.base import Copied, Copies, Joined, Stepped
from rlserve.tracking.events import WeightEvent
from rlserve.weights.canary import CanaryScores
from rlserve.weights.offer import Holding, Offer, Receipt, SentPart


class Setting:
    """Trainers ``t0``, ``t1`` and replicas ``r0``, ``r1`` that hold version 0. Fingerprints are numbers of steps, so
    weights of another step under a version's number are found."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        *,
        timeout_s: float = 5.0,
        anchor_every: int = 1,
        weights_are_spread: bool = False,
    ) -> None:
        self.fleet = FakeFleet(("t0", "t1", "r0", "r1"))
        self.clock = FakeClock(0.0)
        self.context = run_context(tasks, self.clock)
        events, fleet = self.context.events, self.fleet
        self.lost = recorded(events, WorkerLost)
        self.taken = recorded(events, WeightsTaken)
        self.not_taken = recorded(events, WeightsNotTaken)
        self.noted = recorded(events, WeightEvent)
        outside: Any = fleet
        self.trainers = TrainerGroup(
            self.context, outside, switch_timeout_s=5.0, step_timeout_s=5.0, on_one_machine=True
        )
        canary = CanaryWatch(self.context, tolerance=0.1, timeout_s=timeout_s)
        self.weights = WeightSync(
            self.context,
            outside,
            self.trainers,
            canary,
            timeout_s=timeout_s,
            anchor_every=anchor_every,
            weights_are_spread=weights_are_spread,
        )
        self.snapshots: dict[tuple[str, int], int] = {}
        """(slot, version) → steps that the trainers had done when it was copied."""
        self.expected: CanaryScores = ()
        """What trainers make of the canary of the next version."""
        self.held: dict[str, Holding] = {}
        """What each replica can apply a delta to."""
        for slot_id in ("t0", "t1"):
            self._hold_snapshots(slot_id)
        for slot_id in ("r0", "r1"):
            self.fleet[slot_id].answers["take_weights"] = functools.partial(self._take, slot_id)

    def _take(self, slot_id: str, offers: tuple[Offer, ...], *cargo: str) -> Receipt:
        assert len(cargo) == sum(len(offer.parts) for offer in offers)
        for offer in offers:
            if offer.base is not None and self.held.get(slot_id) != offer.base:
                raise WeightsRefusedError(f"{slot_id} does not have {offer.base}")
            self.held[slot_id] = offer.holding
        return Receipt(version=offers[-1].version, fingerprint=offers[-1].fingerprint, load_s=0.0)

    def _hold_snapshots(self, slot_id: str) -> None:
        last: list[Holding] = []

        def copy(copies: Copies, num_steps: int) -> Copied:
            if copies.version is None:
                return Copied()
            self.snapshots[slot_id, copies.version] = num_steps
            return Copied(canary=self.expected)

        def send(version: int, base: Holding | None, needed: list[int]) -> SentPart:
            fingerprint = self.snapshots.pop((slot_id, version))
            known = base if base in last else None
            last[:] = [Holding(version=version, fingerprint=fingerprint)]
            return sent_part(slot_id, fingerprint, base=known)

        def drop(version: int) -> None:
            del self.snapshots[slot_id, version]

        self.fleet[slot_id].answers |= {
            "join_training": lambda *_: Joined(num_steps=self.trainers.num_steps),
            "step": lambda _, copies: Stepped(metrics={"loss": 1.0}, copied=copy(copies, self.trainers.num_steps + 1)),
            "copy_between_steps": lambda copies: copy(copies, self.trainers.num_steps),
            "send_weights": send,
            "drop_snapshot": drop,
        }

    async def begin(self) -> None:
        await self.trainers.form([("t0",), ("t1",)], None)
        await self.weights.publish(0)
        await self.weights.settled()
        for slot_id in ("r0", "r1"):
            await self.weights.add(slot_id, await self.weights.take(slot_id))
        self.fleet.log.clear()

    async def step(self) -> None:
        """A step of the trainers, and its snapshot."""
        version = self.trainers.num_steps + 1
        step = await self.trainers.step(BATCH, self.weights.copies(version))
        await self.weights.publish(version, step.copies)

    async def step_and_settle(self) -> None:
        """A step whose version gets to everyone before anything else happens."""
        await self.step()
        await self.weights.settled()

    def chains(self, slot_id: str) -> list[list[int]]:
        """Versions of the links that a replica was offered, call by call; a delta's is negative."""
        calls = self.fleet[slot_id].arguments.get("take_weights", [])
        return [[offer.version if offer.base is None else -offer.version for offer in call[0]] for call in calls]

    def offers(self, slot_id: str) -> list[Offer]:
        """The last link of each call."""
        return [arguments[0][-1] for arguments in self.fleet[slot_id].arguments.get("take_weights", [])]

    def versions(self, slot_id: str) -> list[int]:
        """What a replica has taken after version 0."""
        return [event.version for event in self.taken if event.slot_id == slot_id]

    @property
    def published(self) -> list[int]:
        return [event.version for event in self.noted if event.slot_id is None]

    def senders(self) -> list[tuple[str, int]]:
        """Who was asked to send which version after 0."""
        calls = [
            (slot_id, version)
            for slot_id in ("t0", "t1")
            for version, _, _ in self.fleet[slot_id].arguments.get("send_weights", [])
        ]
        return sorted((call for call in calls if call[1] > 0), key=lambda call: call[1])


def sent_part(slot_id: str, fingerprint: int, base: Holding | None = None) -> SentPart:
    num_bytes = 8 if base is None else 1
    return SentPart(sender=slot_id, num_bytes=num_bytes, num_whole_bytes=8, fingerprint=fingerprint, base=base)


def run(scenario: Callable[[Setting], Awaitable[None]], **options: Any) -> None:
    async def whole() -> None:
        async with asyncio.TaskGroup() as tasks:
            setting = Setting(tasks, **options)
            await setting.begin()
            await asyncio.wait_for(scenario(setting), 10)

    asyncio.run(whole())


def gone(what: str) -> RayTaskError:
    return RayTaskError(what, "traceback", ObjectLostError("00", None, ""))
