"""What is offered to whom, by plain data alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.weights.offer import Holding, Offer, Receipt, SentPart
from rlserve.weights.packing import take_snapshot


def offer(version: int, base_version: int | None = None) -> Offer:
    part = SentPart(sender="a", num_bytes=8, fingerprint=5)
    return Offer(version=version, base_version=base_version, parts=(part,))


@pytest.mark.parametrize(
    ("offered", "held", "fits"),
    [
        (offer(3), None, True),
        (offer(3), 2, True),
        (offer(3), 0, True),
        (offer(3), 3, False),
        (offer(3), 4, False),
        (offer(3, 2), 2, True),
        (offer(3, 2), 1, False),
        (offer(3, 2), None, False),
        (offer(3, 2), 3, False),
    ],
)
def test_a_whole_version_fits_whoever_is_older_and_a_delta_whoever_has_its_base(
    offered: Offer, held: int | None, fits: bool
) -> None:
    assert offered.fits(None if held is None else Holding(version=held, fingerprint=0)) is fits


@given(cut=st.integers(0, 5))
def test_the_parts_of_several_senders_add_up_to_the_whole(cut: int) -> None:
    names = [f"layer.{number}" for number in range(5)]
    tensors = {name: torch.full((3,), float(number)) for number, name in enumerate(names)}
    parts = []
    for sender, own in (("a", names[:cut]), ("b", names[cut:])):
        snapshot = take_snapshot(1, {name: tensors[name] for name in own}, torch.float32)
        parts.append(SentPart(sender=sender, num_bytes=snapshot.payload.nbytes, fingerprint=snapshot.fingerprint()))
    whole = Offer(version=1, parts=tuple(parts))
    assert whole.fingerprint == fingerprint(tensors.items())
    assert whole.num_bytes == sum(part.num_bytes for part in parts)


def test_a_receipt_is_what_the_replica_holds_from_then_on() -> None:
    receipt = Receipt(version=4, fingerprint=7, load_s=0.1)
    assert receipt.holding == Holding(version=4, fingerprint=7)
    assert not offer(4).fits(receipt.holding)
