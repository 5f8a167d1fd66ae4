"""What a run's slots could have done, by its own rates: worked examples, and what holds of any."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.tracking.timeline.efficiency import Window, efficiency, generation_rates, oracle_rate
from rlserve.tracking.timeline.ownership import SlotTimeline


def row(slot_id: str, gang_id: str | None = None) -> SlotTimeline:
    return SlotTimeline(slot_id=slot_id, slot_type=slot_id.split("/")[0], gang_id=gang_id or slot_id, phases=())


def stretch(slot_id: str, begin_s: float, num_tokens: int, busy_s: float = 10.0) -> dict[str, object]:
    return {
        "event": "replica",
        "slot_id": slot_id,
        "begin_s": begin_s,
        "time_s": begin_s + 10,
        "busy_s": busy_s,
        "num_tokens": num_tokens,
    }


def step(end_s: float, num_groups: int, work_s: float, *slot_ids: str) -> dict[str, object]:
    return {
        "event": "step",
        "begin_s": end_s - 10,
        "work_begin_s": end_s - work_s,
        "work_end_s": end_s,
        "time_s": end_s,
        "num_groups": num_groups,
        "slot_ids": slot_ids,
    }


ROWS = [row("a/0"), row("a/1"), row("b/0"), row("b/1")]


def test_the_split_that_was_best_is_found() -> None:
    """A slot trains a group a second, or makes a third of one: of four, three roll out, as they did."""
    events = []
    for number in range(10):
        events += [step(10.0 * (number + 1), 10, 10, "a/0")]
        events += [stretch(slot_id, 10.0 * number, 100) for slot_id in ("a/1", "b/0", "b/1")]
    found = efficiency(ROWS, events)
    assert found is not None
    assert found.realised == pytest.approx(1)
    # 300 tokens were generated for 10 groups, two of three dropped: a slot of 10 tokens/s makes 1/3 group a second.
    assert found.best_static == pytest.approx(1)
    assert found.best_static_num_rollout == 3
    assert found.oracle == pytest.approx(1)


def test_under_drift_the_oracle_is_above_every_static_split() -> None:
    """First generating is four times as slow as training, then as quick."""
    events = []
    for number in range(20):
        tokens = 100 if number < 10 else 25
        events += [step(10.0 * (number + 1), 10, 5, "a/0", "a/1")]
        events += [stretch(slot_id, 10.0 * number, tokens, 10.0 * tokens / 100) for slot_id in ("b/0", "b/1")]
    found = efficiency(ROWS, events)
    assert found is not None
    assert found.realised == pytest.approx(1)
    # First: 20 tokens a group, so n/2 groups a second against 4 - n; then 5 tokens, so 2n against 4 - n.
    assert found.oracle == pytest.approx((4 / 3 + 8 / 3) / 2)
    assert (found.best_static, found.best_static_num_rollout) == (pytest.approx((1 + 2) / 2), 2)


def test_quick_types_come_first_and_gangs_share_their_rate() -> None:
    rows = [row("a/0"), row("b/0", "b/0-1"), row("b/1", "b/0-1"), row("c/0")]
    stretches = [stretch("a/0", 0.0, 100), stretch("b/0", 0.0, 600)]
    assert generation_rates(rows, stretches) == [30, 30, 10, 10]


def test_too_little_measured_is_no_efficiency() -> None:
    assert efficiency(ROWS, []) is None
    assert efficiency(ROWS, [step(10.0 * number, 10, 5, "a/0") for number in range(1, 9)]) is None


positive = st.floats(0.1, 100)


@given(
    st.lists(positive, min_size=2, max_size=8),
    st.builds(Window, duration_s=positive, tokens_per_group=positive, groups_per_slot_s=positive),
)
def test_no_split_is_above_the_oracle(rates: list[float], window: Window) -> None:
    rates = sorted(rates, reverse=True)
    oracle = oracle_rate(window, rates)
    for tenths in range(10 * len(rates) + 1):
        num = tenths / 10
        generated = (sum(rates[: int(num)]) + (num % 1) * (*rates, 0.0)[int(num)]) / window.tokens_per_group
        trained = (len(rates) - num) * window.groups_per_slot_s
        assert min(generated, trained) <= oracle * (1 + 1e-6)
