"""Weights from one GPU's memory into another's of the same machine, or within one GPU: the cargo says whom to ask.

The sender takes its snapshots into GPU memory that other processes can map, and keeps what it sent there. A receiver
borrows it (``rlserve/weights/ipc/``): it copies the whole into memory of its own GPU, beside the running model, and
gives it back before it stages anything. What is discarded meanwhile is freed when the last borrower is done.

All versions travel whole, since bytes are cheap within a machine. A worker that leaves the trainers gives up what it
sent, for the memory's sake: whoever still wants that gets it from another trainer.
"""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Collection
from dataclasses import dataclass

from rlserve.errors import ArgumentLostError, WeightsRefusedError
from rlserve.weights.config import CudaIpcConfig
from rlserve.weights.ipc.base import IpcMemory, UnreachableMemoryError
from rlserve.weights.ipc.cuda import CudaIpcMemory
from rlserve.weights.ipc.lending import Lender, Loan, borrowed
from rlserve.weights.packing import Manifest, PackedWeights
from rlserve.weights.reused_memory import Block
from rlserve.weights.transports.base import ReceivingEnd, SendingEnd, Transport

_END_S = 1.0
"""How much later than its memory the connection of a process that ends may close."""


@dataclass(frozen=True, kw_only=True)
class LentWeights:
    """Where a version can be borrowed."""

    machine: str
    address: str
    parcel: str
    device: str
    manifest: Manifest


class CudaIpcSendingEnd(SendingEnd):
    """Keeps what it sent, and lends it, until it is discarded."""

    def __init__(self, config: CudaIpcConfig, memory: IpcMemory | None = None) -> None:
        """``memory`` is that of the GPU that this process computes on, unless it is told."""
        self._memory = memory or CudaIpcMemory()
        self._lock = threading.Lock()
        self._parcels: dict[str, PackedWeights] = {}
        self._lender: Lender | None = None

    def new_block(self, num_bytes: int) -> Block:
        return self._memory.new_block(num_bytes)

    def send(self, packed: PackedWeights) -> LentWeights:
        parcel = f"{packed.manifest.version}-{uuid.uuid4().hex}"
        with self._lock:
            self._parcels[parcel] = packed
            if self._lender is None or not self._lender.is_serving:
                self._lender = Lender(self._find)
            address = self._lender.address
        return LentWeights(
            machine=socket.gethostname(),
            address=address,
            parcel=parcel,
            device=self._memory.device_name(),
            manifest=packed.manifest,
        )

    def discard(self, needed: Collection[int]) -> None:
        """Of what others sent, nothing is known here."""
        with self._lock:
            for parcel in [name for name, packed in self._parcels.items() if packed.manifest.version not in needed]:
                del self._parcels[parcel]
            lender = None if self._parcels else self._lender
            if lender is not None:
                self._lender = None
        if lender is not None:
            lender.close()

    def retire(self) -> None:
        self.discard(())

    def _find(self, parcel: str) -> Loan | None:
        with self._lock:
            packed = self._parcels.get(parcel)
        return None if packed is None else Loan(handle=self._memory.handle(packed.payload), kept=packed)


class CudaIpcReceivingEnd(ReceivingEnd):
    """Copies what it borrows into its own GPU."""

    def __init__(self, config: CudaIpcConfig, memory: IpcMemory | None = None) -> None:
        """``memory``: as for the sending end."""
        self._memory = memory or CudaIpcMemory()

    def receive(self, cargo: LentWeights) -> PackedWeights:
        manifest = cargo.manifest
        if cargo.machine != (here := socket.gethostname()):
            raise WeightsRefusedError(
                f"version {manifest.version} of the weights lies on {cargo.machine}, and this is {here}: "
                "weights.transport=cuda_ipc stays on one machine, take weights=nccl"
            )
        try:
            with borrowed(cargo.address, cargo.parcel) as loan:
                try:
                    payload = self._memory.copy(loan.handle, manifest.num_bytes)
                except UnreachableMemoryError as error:
                    if loan.is_lost(_END_S):
                        raise ArgumentLostError("is gone with its sender") from error
                    raise WeightsRefusedError(
                        f"version {manifest.version} of the weights lies on {cargo.device}, which "
                        f"{self._memory.device_name()} cannot reach: {error}; the two must be one GPU, or reach each "
                        "other directly (nvidia-smi topo -p2p r says which do), or take weights=nccl"
                    ) from error
        except ArgumentLostError as error:
            raise ArgumentLostError(f"version {manifest.version} of the weights {error}") from error
        return PackedWeights(manifest=manifest, payload=payload, is_own=True)


CUDA_IPC = Transport(sending=CudaIpcSendingEnd, receiving=CudaIpcReceivingEnd)
