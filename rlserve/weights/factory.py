"""Choosing the transport."""

from __future__ import annotations

from rlserve.weights.base import Transport
from rlserve.weights.config import WeightsConfig
from rlserve.weights.object_store import ObjectStoreTransport

TRANSPORTS = {"object_store": ObjectStoreTransport}


def create_transport(config: WeightsConfig) -> Transport:
    """The transport that the configuration names."""
    return TRANSPORTS[config.transport](config)
