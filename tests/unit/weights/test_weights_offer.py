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


def test_what_a_replica_has_of_all_parts_is_the_sum_of_what_it_has_of_each() -> None:
    offer = Offer(version=3, parts=(part("a", fingerprint=7), part("b", fingerprint=2**64 - 3)))
    assert offer.holding == Holding(version=3, fingerprint=4)
    assert offer.holding_from("a") == Holding(version=3, fingerprint=7)
    assert offer.holding_from("b") == Holding(version=3, fingerprint=2**64 - 3)
    assert offer.holding_from("c") is None


@pytest.mark.parametrize("base", [None, Holding(version=1, fingerprint=9)])
def test_an_offer_without_the_base_of_its_parts_is_a_defect(base: Holding | None) -> None:
    parts = part("a", base=Holding(version=2, fingerprint=7)), part("b")
    with pytest.raises(AssertionError, match=r"parts are based on versions \{2\}, the offer on "):
        Offer(version=3, parts=parts, base=base)
    with pytest.raises(AssertionError, match="the offer on "):
        Offer(version=3, parts=parts[1:], base=Holding(version=2, fingerprint=7))


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
