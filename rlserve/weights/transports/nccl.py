"""Weights by broadcast from a trainer to all replicas that want them at once: the cargo says where to ask.

The sender keeps what it sent, and serves it in a thread: it broadcasts a version to whoever asks for it, by one group
that stays as long as the same replicas ask. A replica that is lost, or comes late, breaks that group, is named in the
log, and the others ask again; one that asks later gets a broadcast of its own. So a version can be taken at any time,
by newcomers too, and nobody waits for anybody longer than ``peer_timeout_s``.

A worker that sends no more keeps what it sent last in its memory, until it sends again or ends.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field

from rlserve.distributed.addresses import LOOPBACK, address_towards, listen
from rlserve.distributed.base import RankPlace
from rlserve.distributed.store import RendezvousStore, StoreLostError, connect
from rlserve.errors import ArgumentLostError, DeadlineExceededError, WorkerFailedError
from rlserve.weights.broadcast.desk import GONE, Answer, AskingDesk, ask_for
from rlserve.weights.broadcast.group import BroadcastGroup
from rlserve.weights.broadcast.membership import Ask, Round, Standing, plan_round
from rlserve.weights.config import NcclConfig
from rlserve.weights.packing import Manifest, PackedWeights
from rlserve.weights.reused_memory import ReusedMemory
from rlserve.weights.transports.base import ReceivingEnd, SendingEnd, Transport

logger = logging.getLogger(__name__)

_POLL_S = 0.02
_Identity = tuple[str, int, str]
"""A sender's address and secret."""
_MAX_TRIES = 3
"""Broadcasts of a version that one receiver takes part in: another may be lost in each."""
_OUTSIDE = ("192.0.2.1", 9)
"""An address that is nobody's (RFC 5737): the one that faces it is that of the network. Nothing is sent."""


@dataclass(frozen=True, kw_only=True)
class ParcelPlace:
    """Where a version can be had."""

    host: str
    port: int
    secret: str = field(repr=False)
    parcel: str
    manifest: Manifest


class NcclSendingEnd(SendingEnd):
    """Serves what it sent until it is discarded."""

    def __init__(self, config: NcclConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._parcels: dict[str, PackedWeights] = {}
        self._server: _Server | None = None

    def send(self, packed: PackedWeights) -> ParcelPlace:
        parcel = f"{packed.manifest.version}-{uuid.uuid4().hex}"
        with self._lock:
            self._parcels[parcel] = packed
            if self._server is None or not self._server.is_serving:
                self._server = _Server(self._config, self._parcels)
            server = self._server
        return ParcelPlace(
            host=server.host, port=server.port, secret=server.secret, parcel=parcel, manifest=packed.manifest
        )

    def discard(self, needed: Collection[int]) -> None:
        """Of what others sent, nothing is known here."""
        with self._lock:
            for parcel in [name for name, packed in self._parcels.items() if packed.manifest.version not in needed]:
                del self._parcels[parcel]
            if not self._parcels and self._server is not None:
                self._server.close()
                self._server = None


class _Server:
    """Broadcasts parcels to whoever asks, in a thread of its own; what is asked for at once is answered in turn."""

    def __init__(self, config: NcclConfig, parcels: dict[str, PackedWeights]) -> None:
        self._config = config
        self._parcels = parcels
        self.host = config.host or _own_address()
        self.secret = secrets.token_hex(32)
        listening = listen(self.host)
        self.port: int = listening.getsockname()[1]
        self._store = connect(
            self.host, self.port, self.secret, timeout_s=config.peer_timeout_s, serve=True, listening=listening
        )
        self._desk = AskingDesk(self._store)
        self._generation = 0
        self._group: BroadcastGroup | None = None
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="weights by broadcast", daemon=True)
        self._thread.start()

    @property
    def is_serving(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Serve no more: whoever asks finds nobody."""
        self._is_closing.set()
        self._thread.join()

    def _serve(self) -> None:
        asks: list[Ask] = []
        try:
            while not self._is_closing.wait(_POLL_S):
                asks += self._desk.new_asks()
                members = () if self._group is None else self._group.members
                standing = Standing(members=members, generation=self._generation)
                plan = plan_round(asks, standing, now_s=self._desk.now_s(), gather_s=self._config.gather_s)
                if plan is not None:
                    self._broadcast(plan)
                    served = {ask.member: ask.number for ask in plan.asks}
                    asks = [ask for ask in asks if ask.number > served.get(ask.member, 0)]
        finally:
            self._leave()
            del self._desk, self._store  # with them the store's address is free, and whoever waits fails

    def _broadcast(self, plan: Round) -> None:
        packed = self._parcels.get(plan.parcel)
        if packed is None:
            for ask in plan.asks:
                self._desk.answer(ask, GONE)
            return
        try:
            self._joined(plan).broadcast(packed.payload)
        except (WorkerFailedError, DeadlineExceededError) as error:  # those who were there ask again
            logger.warning("a broadcast of version %d of the weights failed: %s", packed.manifest.version, error)
            self._leave()

    def _joined(self, plan: Round) -> BroadcastGroup:
        """The group of a round, whose members are told."""
        if self._group is not None and plan.is_same_group:
            self._tell(plan, port=0)
            return self._group
        self._leave()
        self._generation += 1
        listening = listen(self.host)
        self._tell(plan, port=listening.getsockname()[1])
        place = self._place(listening, num_ranks=len(plan.members) + 1)
        self._group = BroadcastGroup(
            place,
            plan.members,
            backend=self._config.backend,
            timeout_s=self._config.peer_timeout_s,
            listening=listening,
        )
        return self._group

    def _place(self, listening: socket.socket, *, num_ranks: int) -> RankPlace:
        port = listening.getsockname()[1]
        return RankPlace(rank=0, num_ranks=num_ranks, host=self.host, port=port, secret=self.secret)

    def _tell(self, plan: Round, *, port: int) -> None:
        for rank, ask in enumerate(plan.asks, 1):
            answer = Answer(generation=self._generation, rank=rank, members=plan.members, port=port)
            self._desk.answer(ask, answer)

    def _leave(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None


@dataclass(kw_only=True, eq=False)
class _Sender:
    """A sender as a receiver knows it."""

    store: RendezvousStore
    version: int
    """The newest that it was asked for."""
    memory: ReusedMemory = field(default_factory=ReusedMemory)
    """Of its parts, which are of one size."""
    generation: int = 0
    group: BroadcastGroup | None = None

    def leave(self) -> None:
        if self.group is not None:
            self.group.close()
            self.group = None


class NcclReceivingEnd(ReceivingEnd):
    """Asks, joins the group that it is told, and takes part in the broadcast."""

    def __init__(self, config: NcclConfig) -> None:
        self._config = config
        self._member = f"{socket.gethostname()}, process {os.getpid()} ({uuid.uuid4().hex[:8]})"
        self._lock = threading.Lock()
        self._senders: dict[_Identity, _Sender] = {}
        """Those of a version's parts keep their groups from one version to the next."""

    def receive(self, cargo: ParcelPlace) -> PackedWeights:
        with self._lock:
            self._leave_idle_senders(cargo.manifest.version)
            for _ in range(_MAX_TRIES - 1):
                try:
                    return self._receive(cargo)
                except (WorkerFailedError, DeadlineExceededError) as error:
                    self._leave_group(cargo)
                    logger.warning("version %d of the weights is asked for again: %s", cargo.manifest.version, error)
            return self._receive(cargo)

    def _receive(self, cargo: ParcelPlace) -> PackedWeights:
        version = cargo.manifest.version
        try:
            sender = self._known(cargo)
            answer = ask_for(
                sender.store,
                cargo.parcel,
                member=self._member,
                generation=0 if sender.group is None else sender.generation,
                timeout_s=self._patience_s,
            )
        except (StoreLostError, DeadlineExceededError) as error:
            self._forget_sender(_identity(cargo))
            raise ArgumentLostError(f"version {version} of the weights is gone with its sender: {error}") from error
        if answer.is_gone:
            raise ArgumentLostError(f"version {version} of the weights is not kept any more")
        payload = sender.memory.take(cargo.manifest.num_bytes)
        self._joined(sender, cargo, answer).broadcast(payload)
        return PackedWeights(manifest=cargo.manifest, payload=payload, is_own=True)

    @property
    def _patience_s(self) -> float:
        """Until the sender has come to an ask: it may be waiting for a member of another round."""
        return self._config.gather_s + 3 * self._config.peer_timeout_s

    def _known(self, cargo: ParcelPlace) -> _Sender:
        identity, version = _identity(cargo), cargo.manifest.version
        if identity not in self._senders:
            store = connect(*identity, timeout_s=self._config.peer_timeout_s)
            self._senders[identity] = _Sender(store=store, version=version)
        sender = self._senders[identity]
        sender.version = max(sender.version, version)
        return sender

    def _joined(self, sender: _Sender, cargo: ParcelPlace, answer: Answer) -> BroadcastGroup:
        if sender.group is not None and sender.generation == answer.generation:
            return sender.group
        sender.leave()
        place = RankPlace(
            rank=answer.rank,
            num_ranks=len(answer.members) + 1,
            host=cargo.host,
            port=answer.port,
            secret=cargo.secret,
        )
        sender.generation = answer.generation
        sender.group = BroadcastGroup(
            place, answer.members, backend=self._config.backend, timeout_s=self._config.peer_timeout_s
        )
        return sender.group

    def _leave_idle_senders(self, version: int) -> None:
        """When a new version comes, those that had no part in the one before send no more."""
        newest = max((sender.version for sender in self._senders.values()), default=version)
        if version > newest:
            for identity in [each for each, sender in self._senders.items() if sender.version < newest]:
                self._forget_sender(identity)

    def _leave_group(self, cargo: ParcelPlace) -> None:
        sender = self._senders.get(_identity(cargo))
        if sender is not None:
            sender.leave()

    def _forget_sender(self, identity: _Identity) -> None:
        sender = self._senders.pop(identity, None)
        if sender is not None:
            sender.leave()


def _identity(cargo: ParcelPlace) -> _Identity:
    return cargo.host, cargo.port, cargo.secret


def _own_address() -> str:
    """Of this machine in its network; without one, that it has towards itself."""
    try:
        return address_towards(*_OUTSIDE)
    except OSError:
        return LOOPBACK


NCCL = Transport(sending=NcclSendingEnd, receiving=NcclReceivingEnd)
