"""The peers by name. Each is imported only in its own process, so that none needs the packages of another."""

from __future__ import annotations

from importlib import import_module

from trainer_parts.base import Assignment, Peer

OURS = {
    "step": ("rlserve_step", "RlserveStep"),
    "score": ("rlserve_score", "RlserveScore"),
    "update": ("rlserve_update", "RlserveUpdate"),
    "memory": ("rlserve_memory", "RlserveMemory"),
}
"""By kind of case."""
PEERS = {
    "trl-grpo": ("trl_grpo", "TrlGrpo"),
    "trl-ppo": ("trl_ppo", "TrlPpo"),
    "trl-score": ("trl_score", "TrlScore"),
    "plain": ("plain_update", "PlainUpdate"),
    "deepspeed": ("deepspeed_memory", "DeepSpeedMemory"),
}
"""Those that ours is compared with."""
OUR_NAME = "rlserve"
REQUIRED_MODULE = {
    OUR_NAME: "rlserve",
    "trl-grpo": "trl",
    "trl-ppo": "trl.experimental.ppo",
    "trl-score": "trl",
    "plain": "transformers",
    "deepspeed": "deepspeed",
}
"""Module without which a peer is missing."""


def create_peer(name: str, assignment: Assignment) -> Peer:
    """Ours or the named peer, ready for its first turn."""
    module, class_name = OURS[assignment.case.kind] if name == OUR_NAME else PEERS[name]
    peer: Peer = getattr(import_module(f"trainer_parts.{module}"), class_name)(assignment)
    return peer
