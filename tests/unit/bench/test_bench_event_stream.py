"""Server-sent events from bytes in any pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.bench.client.event_stream import EventStream
from rlserve.bench.client.failures import FailedRequestError

LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)


@given(
    events=st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5),
    ending=st.sampled_from([b"\n", b"\r\n"]),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_however_bytes_are_cut_the_events_are_the_same(events: list[list[str]], ending: bytes, cuts: list[int]) -> None:
    data = b": a comment" + ending + b"event: named" + ending
    for lines in events:
        data += b"".join(b"data: " + line.encode() + ending for line in lines) + ending
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    stream = EventStream()
    found = [event for start, end in pairwise(edges) for event in stream.feed(data[start:end])]
    assert found == ["\n".join(lines) for lines in events]


def test_an_event_is_none_before_its_empty_line() -> None:
    stream = EventStream()
    assert stream.feed(b"data:x\n") == []
    assert stream.feed(b"\n") == ["x"]


def test_an_event_that_never_ends_is_refused_before_it_fills_the_memory() -> None:
    stream, line = EventStream(), b"data: " + b"x" * (1 << 20) + b"\n"
    for _ in range(7):
        stream.feed(line)
    with pytest.raises(FailedRequestError, match="MiB"):
        stream.feed(line)
