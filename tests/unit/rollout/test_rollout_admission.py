"""Admission towards the end of a run: as many groups as are lacking, and more where a filter drops some."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from rlserve.rollout.admission import PromptAdmission, num_to_run
from rlserve.rollout.ledger import Ledger


def admit(ledger: Ledger, number: int) -> None:
    for _ in range(number):
        position = ledger.num_admitted
        ledger.admit(str(position), position=position, current_version=0, time_s=0.0)
        ledger.start(str(position), version=0, time_s=0.0)


def finish(ledger: Ledger, admission: PromptAdmission, number: int, *, kept: bool) -> None:
    running = [record.id for record in ledger.live() if record.state == "running"]
    for group_id in running[:number]:
        admission.note(kept=kept)
        if kept:
            ledger.score(group_id, time_s=0.0)
            ledger.buffer(group_id, time_s=0.0)
        else:
            ledger.drop(group_id, reason="filtered", time_s=0.0)


def train(ledger: Ledger) -> None:
    for record in ledger.live():
        if record.state == "buffered":
            ledger.train(record.id, time_s=0.0)


def test_far_from_the_end_the_ledger_decides() -> None:
    ledger = Ledger(prompts_per_step=4, max_staleness=1)
    for num_groups in (None, 100):
        admission = PromptAdmission(ledger, num_groups=num_groups)
        finish(ledger, admission, 1, kept=False)
        assert admission.room == ledger.room == 8


def test_where_all_groups_are_kept_exactly_the_lacking_ones_are_admitted() -> None:
    ledger = Ledger(prompts_per_step=4, max_staleness=1)
    admission = PromptAdmission(ledger, num_groups=6)
    admit(ledger, admission.room)
    assert (ledger.num_admitted, admission.room) == (6, 0)
    finish(ledger, admission, 4, kept=True)
    assert admission.room == 0
    train(ledger)
    assert (admission.room, ledger.room) == (0, 6)


def test_where_half_are_dropped_more_than_twice_the_lacking_ones_run() -> None:
    ledger = Ledger(prompts_per_step=8, max_staleness=3)
    admission = PromptAdmission(ledger, num_groups=24)
    admit(ledger, 24)
    finish(ledger, admission, 11, kept=True)
    finish(ledger, admission, 12, kept=False)
    train(ledger)
    assert admission.kept_share == 0.5
    # 13 lack: 34 leave 17 in the mean, 14.1 if a deviation fewer; 33 would leave 13.6, 32 leave 13.2, 31 only 12.7
    assert num_to_run(13, 0.5) == 32
    assert admission.room == 31 - 0, "one is on its way"


def test_once_enough_groups_are_finished_none_is_admitted() -> None:
    ledger = Ledger(prompts_per_step=2, max_staleness=1)
    admission = PromptAdmission(ledger, num_groups=2)
    admit(ledger, 3)
    finish(ledger, admission, 1, kept=False)
    finish(ledger, admission, 2, kept=True)
    assert admission.room == 0


@given(num_lacking=st.integers(-3, 500), num_seen=st.integers(0, 64), data=st.data())
def test_no_fewer_would_do(num_lacking: int, num_seen: int, data: st.DataObject) -> None:
    kept_share = (data.draw(st.integers(0, num_seen)) + 1) / (num_seen + 1)

    def leaves(number: int) -> float:
        return kept_share * number - math.sqrt(number * kept_share * (1 - kept_share))

    number = num_to_run(num_lacking, kept_share)
    assert number >= max(0, num_lacking)
    if num_lacking > 0:
        assert leaves(number) >= num_lacking - 1e-6
        assert leaves(number - 1) < num_lacking
    else:
        assert number == 0
