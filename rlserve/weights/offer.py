"""What controller, senders and receivers say to each other about a version: plain data, no torch, no Ray."""

from __future__ import annotations

from dataclasses import dataclass

FINGERPRINT_MASK = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What a replica has: the version that its engine serves, and the fingerprint of what is really loaded."""

    version: int
    fingerprint: int


@dataclass(frozen=True, kw_only=True)
class SentPart:
    """What one sender has sent of a version: whole tensors, each of them in one part only."""

    sender: str
    """Slot of the trainer that sent it."""
    num_bytes: int
    fingerprint: int
    """Of these tensors at this version, also where only what changed of them was sent."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A version that can be taken. The cargo of its parts, which says where to find them, travels beside it."""

    version: int
    parts: tuple[SentPart, ...]
    """In the order of their cargo; one a sender."""
    base_version: int | None = None
    """None offers the whole weights; a version offers what changed since that one."""

    @property
    def fingerprint(self) -> int:
        """Of the whole weights at this version: a fingerprint is a sum over tensors, so those of the parts add up."""
        return sum(part.fingerprint for part in self.parts) & FINGERPRINT_MASK

    @property
    def num_bytes(self) -> int:
        """Size of all parts."""
        return sum(part.num_bytes for part in self.parts)

    def fits(self, holding: Holding | None) -> bool:
        """Whether a replica can take this: it gets newer weights, or its first ones, and has the base of a delta."""
        if holding is None:
            return self.base_version is None
        return self.version > holding.version and self.base_version in (None, holding.version)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a replica reports after taking a version."""

    version: int
    fingerprint: int
    """Of what its engine has really loaded."""
    load_s: float
    """Time the engine stood still: for the swap, and for the fingerprint that proves it."""

    @property
    def holding(self) -> Holding:
        """What the replica has now."""
        return Holding(version=self.version, fingerprint=self.fingerprint)
