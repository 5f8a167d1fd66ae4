"""What controller, senders and receivers say to each other about a version: plain data, no torch, no Ray."""

from __future__ import annotations

from dataclasses import dataclass

from rlserve.weights.canary import CanaryScores

FINGERPRINT_MASK = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class Holding:
    """Weights that somebody has: a replica in its engine, or both ends as the base of a delta."""

    version: int
    fingerprint: int


@dataclass(frozen=True, kw_only=True)
class SentPart:
    """What one sender has sent of a version: whole tensors, or what changed of them; each tensor in one part only.
    Every sender decides by itself which of the two pays."""

    sender: str
    """Slot of the trainer that sent it."""
    num_bytes: int
    """That travel."""
    num_whole_bytes: int
    """Of these tensors."""
    fingerprint: int
    """Of these tensors at this version, also where only what changed of them was sent, and of what belongs to the
    version and does not travel (``contents/``)."""
    base: Holding | None = None
    """What the changes are to be made to; None: it was sent whole."""
    changed_share: float | None = None
    """Of the elements, since the version that this sender sent before; None where it has nothing to compare with."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A version that can be taken. The cargo of its parts, which says where to find them, travels beside it."""

    version: int
    parts: tuple[SentPart, ...]
    """In the order of their cargo; one a sender."""
    base: Holding | None = None
    """What a replica must have to take it: that which those parts that are not whole build on. None: nothing, all parts
    are whole."""

    def __post_init__(self) -> None:
        base_versions = {part.base.version for part in self.parts if part.base is not None}
        expected = set() if self.base is None else {self.base.version}
        assert base_versions == expected, f"parts are based on versions {base_versions}, the offer on {self.base}"

    @property
    def holding(self) -> Holding:
        """What a replica has that took it."""
        return Holding(version=self.version, fingerprint=self.fingerprint)

    def holding_from(self, sender: str) -> Holding | None:
        """What a replica that took it has of one sender's tensors; None where that sent nothing of it."""
        found = [part for part in self.parts if part.sender == sender]
        return Holding(version=self.version, fingerprint=found[0].fingerprint) if found else None

    @property
    def fingerprint(self) -> int:
        """Of the whole weights at this version: a fingerprint is a sum over tensors, so those of the parts add up."""
        return sum(part.fingerprint for part in self.parts) & FINGERPRINT_MASK

    @property
    def num_bytes(self) -> int:
        """Of all parts, as they travel."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def num_whole_bytes(self) -> int:
        """Of all tensors."""
        return sum(part.num_whole_bytes for part in self.parts)

    @property
    def changed_share(self) -> float | None:
        """Of all elements; None where a sender had nothing to compare with."""
        shares = [part.changed_share for part in self.parts]
        changed = [
            share * part.num_whole_bytes for share, part in zip(shares, self.parts, strict=True) if share is not None
        ]
        return sum(changed) / self.num_whole_bytes if len(changed) == len(shares) and self.num_whole_bytes else None


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


@dataclass(frozen=True, kw_only=True)
class TrainedWeights:
    """What a trainer says of a version that does not travel: every engine must agree with it."""

    fingerprint: int
    """In the engines' type."""
    canary: CanaryScores = ()
