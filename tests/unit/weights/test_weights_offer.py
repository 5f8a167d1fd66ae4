"""What is offered to whom, by plain data alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.weights.offer import Holding, Offer, Receipt, SentPart
from rlserve.weights.packing import take_snapshot


def part(
    sender: str,
    *,
    num_whole_bytes: int = 8,
    fingerprint: int = 5,
    base: Holding | None = None,
    share: float | None = None,
) -> SentPart:
    return SentPart(
        sender=sender,
        num_bytes=2,
        num_whole_bytes=num_whole_bytes,
        fingerprint=fingerprint,
        base=base,
        changed_share=share,
    )


def test_changes_to_several_parts_have_the_sum_of_their_bases_as_base() -> None:
    bases = [Holding(version=2, fingerprint=fingerprint) for fingerprint in (7, 2**64 - 3)]
    offer = Offer(version=3, parts=(part("a", base=bases[0]), part("b", base=bases[1])))
    assert offer.base == Holding(version=2, fingerprint=4)
    assert offer.holding == Holding(version=3, fingerprint=10)
    assert Offer(version=3, parts=(part("a"),)).base is None


def test_the_share_that_changed_is_that_of_all_elements() -> None:
    known = part("a", share=0.5), part("b", share=0.1, num_whole_bytes=24)
    assert Offer(version=3, parts=known).changed_share == pytest.approx((4 + 2.4) / 32)
    assert Offer(version=3, parts=(known[0], part("b"))).changed_share is None


@given(cut=st.integers(0, 5))
def test_the_parts_of_several_senders_add_up_to_the_whole(cut: int) -> None:
    names = [f"layer.{number}" for number in range(5)]
    tensors = {name: torch.full((3,), float(number)) for number, name in enumerate(names)}
    parts = []
    for sender, own in (("a", names[:cut]), ("b", names[cut:])):
        snapshot = take_snapshot(1, {name: tensors[name] for name in own}, torch.float32)
        size = snapshot.payload.nbytes
        parts.append(SentPart(sender=sender, num_bytes=size, num_whole_bytes=size, fingerprint=snapshot.fingerprint))
    whole = Offer(version=1, parts=tuple(parts))
    assert whole.fingerprint == fingerprint(tensors.items())
    assert whole.num_bytes == whole.num_whole_bytes == sum(part.num_bytes for part in parts)


def test_a_receipt_is_what_the_replica_holds_from_then_on() -> None:
    receipt = Receipt(version=4, fingerprint=7, load_s=0.1)
    assert receipt.holding == Holding(version=4, fingerprint=7)
