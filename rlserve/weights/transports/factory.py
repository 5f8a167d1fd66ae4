"""Choosing the transport."""

from __future__ import annotations

from typing import Any

from rlserve.weights.config import WeightsConfig
from rlserve.weights.transports.base import ReceivingEnd, SendingEnd, Transport
from rlserve.weights.transports.cuda_ipc import CUDA_IPC
from rlserve.weights.transports.nccl import NCCL
from rlserve.weights.transports.object_store import OBJECT_STORE
from rlserve.weights.transports.shared_folder import SHARED_FOLDER

TRANSPORTS: dict[str, Transport[Any]] = {
    "object_store": OBJECT_STORE,
    "shared_folder": SHARED_FOLDER,
    "nccl": NCCL,
    "cuda_ipc": CUDA_IPC,
}


def create_sending_end(config: WeightsConfig) -> SendingEnd:
    """A sender's end of the transport that the configuration names."""
    return TRANSPORTS[config.transport].sending(config)


def create_receiving_end(config: WeightsConfig) -> ReceivingEnd:
    """A receiver's end of it."""
    return TRANSPORTS[config.transport].receiving(config)
