"""Which links bring a replica to the newest version."""

from __future__ import annotations

import pytest

from rlserve.weights.chain import Link, WeightChain
from rlserve.weights.offer import Holding, Offer, SentPart


def holding(version: int) -> Holding:
    return Holding(version=version, fingerprint=100 + version)


def link(version: int, base: int | None = None) -> Link:
    part = SentPart(
        sender="a",
        num_bytes=1,
        num_whole_bytes=8,
        fingerprint=100 + version,
        base=None if base is None else holding(base),
    )
    return Link(offer=Offer(version=version, parts=(part,), base=part.base), cargo=(version,))


def next_base(chain: WeightChain) -> Holding | None:
    return None if chain.next_base is None else chain.next_base.holding


@pytest.fixture
def chain() -> WeightChain:
    """7 ◄ 8 ◄ 10 ◄ 11; 9 was never sent."""
    made = WeightChain(anchor_every=10)
    for added in (link(7), link(8, 7), link(10, 8), link(11, 10)):
        made.add(added)
    return made


def versions(links: tuple[Link, ...]) -> list[int]:
    return [link.offer.version for link in links]


@pytest.mark.parametrize(
    ("held", "needed"),
    [
        (None, [7, 8, 10, 11]),
        (holding(7), [8, 10, 11]),
        (holding(10), [11]),
        (holding(11), []),
        (holding(12), []),
        (holding(3), [7, 8, 10, 11]),
        (Holding(version=8, fingerprint=1), [7, 8, 10, 11]),
    ],
)
def test_a_replica_needs_the_links_after_what_it_has_or_all(
    chain: WeightChain, held: Holding | None, needed: list[int]
) -> None:
    assert versions(chain.links_for(held)) == needed


def test_nothing_is_needed_before_the_first_version() -> None:
    empty = WeightChain(anchor_every=10)
    assert empty.links_for(None) == ()
    assert empty.links_for(holding(1)) == ()
    assert empty.next_base is None
    assert empty.versions == ()


def test_all_links_are_kept_until_a_whole_version_comes(chain: WeightChain) -> None:
    assert chain.versions == (7, 8, 10, 11)
    chain.add(link(12))
    assert chain.versions == (12,)
    assert versions(chain.links_for(holding(11))) == [12]


@pytest.mark.parametrize(("anchor_every", "bases"), [(1, [None] * 5), (3, [None, 0, 1, None, 3])])
def test_every_so_many_versions_one_must_be_whole(anchor_every: int, bases: list[int | None]) -> None:
    made = WeightChain(anchor_every)
    for version, base in enumerate(bases):
        assert next_base(made) == (None if base is None else holding(base))
        made.add(link(version, base))


def test_a_chain_that_is_ended_goes_on_only_from_a_whole_version(chain: WeightChain) -> None:
    chain.end()
    assert chain.next_base is None
    chain.add(link(12, 11))  # was under way
    assert chain.next_base is None
    assert versions(chain.links_for(None)) == [7, 8, 10, 11, 12]
    chain.add(link(12))
    assert next_base(chain) == holding(12)


def test_a_gap_in_a_chain_is_a_defect(chain: WeightChain) -> None:
    with pytest.raises(AssertionError, match="version 13 of the weights is based on"):
        chain.add(link(13, 12))
