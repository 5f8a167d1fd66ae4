"""A sender and receivers over many versions: what is sent as what changed, what is refused, and that every bit
arrives."""

from __future__ import annotations

import pickle
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from weights_fakes import StagedCopy

from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import WeightsRefusedError
from rlserve.weights.chain import Link, WeightChain
from rlserve.weights.config import ObjectStoreConfig
from rlserve.weights.contents.whole_model import WholeModel
from rlserve.weights.offer import Holding, Offer
from rlserve.weights.receiver import Receiver
from rlserve.weights.sender import Sender
from rlserve.weights.transports.object_store import ObjectStoreReceivingEnd, ObjectStoreSendingEnd, StoredWeights

Weights = dict[str, torch.Tensor]


def new_sender(name: str = "a", *, keeps_last: bool = True) -> Sender:
    return Sender(name, ObjectStoreSendingEnd(ObjectStoreConfig()), WholeModel(torch.bfloat16), keeps_last=keeps_last)


def new_receiver(*, keeps_last: bool = True) -> Receiver:
    return Receiver(ObjectStoreReceivingEnd(ObjectStoreConfig()), keeps_last=keeps_last)


def first_weights() -> Weights:
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed": (50, 30), "layer.0": (30, 21), "norm": (30,), "none": (0, 4)}  # gaps between the tensors
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


def changed(weights: Weights, share: float, chance: np.random.Generator) -> Weights:
    """Some elements a few units in the last place away, some anywhere."""
    found = {}
    for name, tensor in weights.items():
        bits = tensor.clone().view(torch.int16).numpy()
        where = chance.random(bits.shape) < share
        largest = 2 if chance.random() < 0.8 else 2**15 - 1
        step = chance.integers(-largest, largest + 1, bits.shape)
        bits[where] += step[where].astype(np.int16)
        found[name] = torch.from_numpy(bits).view(torch.bfloat16)
    return found


def send(sender: Sender, version: int, weights: Weights, base: Holding | None = None) -> Link:
    sender.take_snapshot(version, weights)
    cargo, part = sender.send(version, base, ())
    return Link(offer=Offer(version=version, parts=(part,), base=part.base), cargo=(cargo,))


def receive(receiver: Receiver, *links: Link) -> Weights:
    cargo = [piece for link in links for piece in link.cargo]
    return receiver.receive([link.offer for link in links], cargo, StagedCopy).tensors


def same_bits(one: Weights, other: Weights) -> bool:
    return list(one) == list(other) and all(
        torch.equal(one[name].view(torch.int16), other[name].view(torch.int16)) for name in one
    )


def two_versions(sender: Sender, *, share: float = 0.01) -> tuple[Link, Link, Weights]:
    weights = first_weights()
    whole = send(sender, 0, weights)
    newer = {name: tensor.clone() for name, tensor in weights.items()}
    flat = newer["embed"].view(torch.int16).flatten()
    flat[: int(len(flat) * share)] += 1
    newer["embed"] = flat.view(torch.bfloat16).reshape(newer["embed"].shape)
    return whole, send(sender, 1, newer, whole.offer.holding), newer


def test_few_changes_are_sent_as_such_and_many_as_the_whole() -> None:
    _, few, _ = two_versions(new_sender())
    assert few.offer.base == Holding(version=0, fingerprint=few.offer.base.fingerprint)
    assert few.offer.num_bytes * 8 < few.offer.num_whole_bytes
    assert 0 < few.offer.changed_share < 0.01
    _, many, _ = two_versions(new_sender(), share=0.9)
    assert many.offer.base is None
    assert many.offer.num_bytes == many.offer.num_whole_bytes
    assert many.offer.changed_share > 0.05


def test_changes_that_do_not_code_well_are_sent_as_the_whole() -> None:
    sender, weights = new_sender(), {"w": torch.zeros(100)}
    whole = send(sender, 0, weights)
    link = send(sender, 1, {"w": torch.ones(100) * torch.tensor([1.0] + [0.0] * 99)}, whole.offer.holding)
    assert link.offer.changed_share == 1 / 128
    assert link.offer.base is None, "what a delta has besides the changes is more than so small a payload"


@pytest.mark.parametrize("asked", [None, Holding(version=0, fingerprint=1), Holding(version=5, fingerprint=0)])
def test_another_base_than_what_was_sent_last_makes_it_whole(asked: Holding | None) -> None:
    sender, weights = new_sender(), first_weights()
    send(sender, 0, weights)
    link = send(sender, 1, weights, asked)
    assert link.offer.base is None
    assert link.offer.changed_share == 0.0


def test_a_sender_that_keeps_nothing_or_has_retired_sends_whole() -> None:
    for sender in (new_sender(keeps_last=False), new_sender()):
        weights = first_weights()
        whole = send(sender, 0, weights)
        sender.take_snapshot(1, weights)
        sender.retire()
        _, part = sender.send(1, whole.offer.holding, ())
        assert (part.base, part.changed_share) == (None, None)
        assert send(sender, 2, weights, Holding(version=1, fingerprint=part.fingerprint)).offer.base is None
    assert send(sender, 3, weights, Holding(version=2, fingerprint=part.fingerprint)).offer.base is not None, "again"


def test_a_snapshot_takes_the_memory_of_one_that_nobody_holds_and_of_no_other() -> None:
    sender, places = new_sender(keeps_last=False), []
    for version in range(3):
        (packed,) = send(sender, version, first_weights()).cargo
        places.append(packed.payload.ctypes.data)
        del packed
    assert len(set(places)) == 1
    held = send(sender, 3, first_weights())
    for version in (4, 5):
        send(sender, version, {name: tensor * 2 for name, tensor in first_weights().items()})
    assert same_bits(receive(new_receiver(), held), first_weights())


def test_other_tensors_than_before_are_sent_whole() -> None:
    sender = new_sender()
    whole = send(sender, 0, {"w": torch.zeros(4, 64)})
    assert send(sender, 1, {"w": torch.zeros(64, 4)}, whole.offer.holding).offer.base is None


def test_what_changed_arrives_on_its_base_alone() -> None:
    whole, delta, newer = two_versions(new_sender())
    for receiver in (new_receiver(), new_receiver(keeps_last=False)):
        receive(receiver, whole)
        receiver.drop()
        with pytest.raises(WeightsRefusedError, match=r"version 1 .* since version 0 \(\w{16}\); here is nothing"):
            receive(receiver, delta)
        assert same_bits(receive(receiver, whole, delta), newer)
    other = new_receiver()
    receive(other, send(new_sender(), 0, {name: tensor * 2 for name, tensor in first_weights().items()}))
    with pytest.raises(WeightsRefusedError, match=r"here is version 0 \(\w{16}\)"):
        receive(other, delta)
    with pytest.raises(WeightsRefusedError, match="here is nothing"):
        receive(other, delta)


def damaged(link: Link, place: int = -1) -> Link:
    (packed,) = link.cargo
    payload = packed.payload.copy()
    payload[place] ^= 1
    return replace(link, cargo=(replace(packed, payload=payload),))


def test_a_damaged_link_is_refused_before_anything_is_written() -> None:
    sender, receiver = new_sender(), new_receiver()
    whole, first, newer = two_versions(sender)
    second = send(sender, 2, newer, first.offer.holding)
    receive(receiver, whole)
    with pytest.raises(WeightsRefusedError, match="version 2 of the weights arrived damaged"):
        receive(receiver, first, damaged(second))
    assert same_bits(receive(receiver, first, second), newer), "what is kept is as it was"


@pytest.mark.parametrize("place", [0, 2999, 3008])
def test_a_damaged_whole_is_refused_wherever_its_bits_are_used(place: int) -> None:
    whole, delta, newer = two_versions(new_sender())
    receiver = new_receiver()
    with pytest.raises(WeightsRefusedError, match=r"version 0 .* arrived damaged: its fingerprint is \w{16}, must be"):
        receive(receiver, damaged(whole, place))
    with pytest.raises(WeightsRefusedError, match="here is nothing"):
        receive(receiver, delta)
    with pytest.raises(WeightsRefusedError, match="version 1 of the weights arrived damaged"):
        receive(receiver, damaged(whole, place), delta)
    assert same_bits(receive(receiver, whole, delta), newer)


def test_what_cannot_be_staged_is_not_kept() -> None:
    whole, delta, _ = two_versions(new_sender())
    receiver = new_receiver()
    receive(receiver, whole)

    def refuse(_: object) -> StagedCopy:
        raise WeightsRefusedError("not for this model")

    with pytest.raises(WeightsRefusedError, match="not for this model"):
        receiver.receive([delta.offer], delta.cargo, refuse)
    with pytest.raises(WeightsRefusedError, match="here is nothing"):
        receive(receiver, delta)


def test_a_whole_version_is_read_where_it_lies() -> None:
    (packed,) = (whole := send(new_sender(), 0, first_weights())).cargo
    places = []

    def stage(tensors: Mapping[str, torch.Tensor]) -> StagedCopy:
        places.append(tensors["embed"].data_ptr())
        return StagedCopy(tensors)

    new_receiver().receive([whole.offer], whole.cargo, stage)
    assert places == [packed.payload.ctypes.data]


def test_a_result_of_another_fingerprint_is_refused_and_not_kept() -> None:
    sender, receiver = new_sender(), new_receiver()
    whole, delta, newer = two_versions(sender)
    (part,) = delta.offer.parts
    other = replace(delta, offer=replace(delta.offer, parts=(replace(part, fingerprint=9),)))
    receive(receiver, whole)
    with pytest.raises(WeightsRefusedError, match=r"its fingerprint is \w{16}, must be 0000000000000009"):
        receive(receiver, other)
    with pytest.raises(WeightsRefusedError, match="here is nothing"):
        receive(receiver, delta)
    assert same_bits(receive(receiver, whole, delta), newer)


def test_a_delta_offered_as_the_whole_is_refused() -> None:
    whole, delta, _ = two_versions(new_sender())
    receiver = new_receiver()
    receive(receiver, whole)
    hidden = Offer(version=1, parts=(replace(delta.offer.parts[0], base=None),))
    with pytest.raises(WeightsRefusedError, match=r"sent version 1 of the weights since version 0, offered was 1$"):
        receiver.receive([hidden], delta.cargo, StagedCopy)


def test_what_was_sent_is_not_written_to() -> None:
    """In one process, as here, a delta could be applied to the sender's memory."""
    sender, receiver = new_sender(), new_receiver()
    whole, delta, newer = two_versions(sender)
    assert same_bits(receive(receiver, whole, delta), newer)
    assert same_bits(receive(new_receiver(), whole), first_weights())


class Replica:
    """A receiver, with what it should hold."""

    def __init__(self) -> None:
        self.receiver = new_receiver()
        self.holding: Holding | None = None

    def take(self, chain: WeightChain, expected: Weights) -> int:
        """Get to the newest version; returns how many links that took."""
        links = chain.links_for(self.holding)
        if links:
            found = receive(self.receiver, *(pickle.loads(pickle.dumps(link)) for link in links))
            assert same_bits(found, expected)
            assert fingerprint(found.items()) == links[-1].offer.fingerprint
            self.holding = links[-1].offer.holding
        return len(links)


def test_a_thousand_syncs_end_with_the_same_bits() -> None:
    """Any share changes; versions are skipped, replicas are slow, forget, leave and come, senders are lost."""
    chance, values = random.Random(11), np.random.default_rng(11)
    chain, sender, weights = WeightChain(anchor_every=10), new_sender("a"), first_weights()
    replicas = [Replica() for _ in range(3)]
    num_deltas = num_links = 0
    for version in range(1000):
        weights = changed(weights, chance.choice([0.0, 0.001, 0.01, 0.05, 0.3, 1.0]), values)
        if chance.random() < 0.1:
            sender.take_snapshot(version, weights)
            sender.drop_snapshot(version)  # superseded
            continue
        if chance.random() < 0.03:
            sender = new_sender(chance.choice("ab"))
        base = chain.next_base
        link = send(sender, version, weights, None if base is None else base.holding)
        num_deltas += link.offer.base is not None
        chain.add(link)
        if chance.random() < 0.05:
            replicas[chance.randrange(3)] = Replica()
        for replica in replicas:
            if chance.random() < 0.6:
                num_links = max(num_links, replica.take(chain, weights))
    send_again: Any = send(sender, 1000, weights)
    chain.add(send_again)
    for replica in replicas:
        replica.take(chain, weights)
        assert replica.holding == chain.links_for(None)[-1].offer.holding
    assert num_deltas > 200
    assert num_links > 4, "some have taken long chains"
    assert isinstance(send_again.cargo[0], StoredWeights)


def send_together(
    senders: Mapping[str, Sender], dealt: Mapping[str, Weights], version: int, base: Offer | None
) -> Link:
    """Each sender sends its own tensors, as it sees fit."""
    sent = []
    for name, weights in dealt.items():
        senders[name].take_snapshot(version, weights)
        sent.append(senders[name].send(version, None if base is None else base.holding_from(name), ()))
    cargo, parts = zip(*sent, strict=True)
    has_deltas = base is not None and any(part.base is not None for part in parts)
    offer = Offer(version=version, parts=parts, base=base.holding if base is not None and has_deltas else None)
    return Link(offer=offer, cargo=cargo)


def test_parts_of_several_senders_are_whole_or_deltas_each_by_itself_and_every_bit_arrives() -> None:
    """Tensors are dealt out anew as the group of senders changes; senders are replaced by others of their name."""
    chance, values = random.Random(5), np.random.default_rng(5)
    chain, weights = WeightChain(anchor_every=12), first_weights()
    senders = {name: new_sender(name) for name in "abc"}
    owners = dict(zip(weights, "abca", strict=True))
    replicas = [Replica() for _ in range(3)]
    num_mixed = 0
    for version in range(300):
        shares = {name: chance.choice([0.0, 0.002, 0.01, 1.0]) for name in "abc"}
        weights = {
            name: changed({name: tensor}, shares[owners[name]], values)[name] for name, tensor in weights.items()
        }
        if chance.random() < 0.05:
            names = chance.choice(["a", "ab", "abc", "cb"])
            owners = {name: chance.choice(names) for name in weights}
        if chance.random() < 0.05:
            name = chance.choice("abc")
            senders[name] = new_sender(name)
        dealt = {
            sender: {name: tensor for name, tensor in weights.items() if owners[name] == sender}
            for sender in sorted(set(owners.values()))
        }
        link = send_together(senders, dealt, version, chain.next_base)
        bases = {part.base is None for part in link.offer.parts}
        num_mixed += len(bases) == 2
        chain.add(link)
        expected = {name: tensor for of_sender in dealt.values() for name, tensor in of_sender.items()}
        if chance.random() < 0.05:
            replicas[chance.randrange(3)] = Replica()
        for replica in replicas:
            if chance.random() < 0.6:
                replica.take(chain, expected)
    assert num_mixed > 50
