"""The peers by name. Each is imported only in its own process, so that none needs the packages of another."""

from __future__ import annotations

from peers.base import Peer, PeerOptions

VLLM_PYTHON_VARIABLE = "RLSERVE_VLLM_PYTHON"
"""Environment variable with the Python that has vLLM."""
OURS = "rlserve"
PEERS = ("hf", "hf_batch", "vllm")
"""Those that ours is compared with."""

REQUIRED_MODULE = {OURS: "rlserve", "hf": "transformers", "hf_batch": "transformers", "vllm": "vllm"}
"""Module without which a peer is missing."""


def create_peer(name: str, options: PeerOptions) -> Peer:
    """Load the model into the named peer.

    Raises:
        ValueError: no such peer.
    """
    if name == OURS:
        from peers.rlserve_peer import RlservePeer

        return RlservePeer(options)
    if name == "hf":
        from peers.hf import HuggingFacePeer

        return HuggingFacePeer(options)
    if name == "hf_batch":
        from peers.hf_batch import ContinuousBatchingPeer

        return ContinuousBatchingPeer(options)
    if name == "vllm":
        from peers.vllm_peer import VllmPeer

        return VllmPeer(options)
    raise ValueError(f"no peer {name!r}; there are {', '.join((OURS, *PEERS))}")
