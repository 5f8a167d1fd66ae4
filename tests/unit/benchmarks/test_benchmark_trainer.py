"""The benchmark of training: cases, what both sides are given, ratios, checks, table and JSON."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace

import pytest
import torch
from rich.console import Console
from trainer_parts.base import PHASES, Assignment, Case, Outcome, Turn, Turns, assignment_from
from trainer_parts.cases import CASES, SMOKE, chosen
from trainer_parts.comparison import checks, compare, report, shares, table
from trainer_parts.data import answer_lengths, records_of_step
from trainer_parts.factory import PEERS, REQUIRED_MODULE
from trainer_parts.rounds import CaseResult, PeerResult, _compare_work, environment_of
from trainer_parts.trl_common import ForcedLengths

from rlserve.tasks.base import Record

STEP = CASES["grpo-short"]
MEMORY = CASES["memory-4-ranks"]
PAD, EOS = 0, 2


def side(peer: str, *values: float, missing: str | None = None, **others: dict[str, float]) -> PeerResult:
    outcomes = [Outcome(value=value, **others) for value in values]  # type: ignore[arg-type]
    return PeerResult(peer=peer, outcomes=outcomes, missing=missing, versions={peer: "1"})


def result(case: Case, ours: PeerResult, peer: PeerResult) -> CaseResult:
    return CaseResult(case=case, ours=ours, peer=peer, load_average=0.5)


def test_time_is_compared_as_the_peers_by_ours_within_rounds() -> None:
    compared = compare(result(STEP, side("rlserve", 1.0, 2.0, 4.0), side("trl-grpo", 3.0, 8.0, 20.0)))
    assert compared is not None
    assert compared.ratios == (3.0, 4.0, 5.0)
    assert (compared.ratio, compared.ours, compared.peer) == (4.0, 2.0, 8.0)


def test_memory_is_compared_as_ours_by_the_peers() -> None:
    compared = compare(result(MEMORY, side("rlserve", 10.0), side("deepspeed", 8.0)))
    assert compared is not None
    assert compared.ratios == (1.25,)


def test_only_rounds_that_both_have_are_compared() -> None:
    compared = compare(result(STEP, side("rlserve", 1.0, 2.0), side("trl-grpo", 3.0)))
    assert compared is not None
    assert compared.ratios == (3.0,)
    assert compare(result(STEP, side("rlserve", 1.0), side("trl-grpo"))) is None


@pytest.mark.parametrize(
    ("case", "ours", "peer", "met"),
    [(STEP, 1.0, 3.0, True), (STEP, 1.0, 2.9, False), (MEMORY, 1.1, 1.0, True), (MEMORY, 1.2, 1.0, False)],
)
def test_a_check_keeps_to_the_bar_of_its_case(case: Case, ours: float, peer: float, met: bool) -> None:
    (check,) = checks([result(case, side("rlserve", ours), side(case.peer, peer))])
    assert set(check.line()) == {"name", "value", "bar", "met"}
    assert (check.bar, check.met) == (case.bar, met)
    assert case.name in check.name


def test_what_was_not_measured_or_has_no_bar_is_not_checked() -> None:
    missing = result(STEP, side("rlserve", 1.0), side("trl-grpo", missing="not installed: no Python was named for it"))
    assert checks([missing, result(replace(STEP, bar=None), side("rlserve", 1.0), side("trl-grpo", 2.0))]) == []


def test_shares_are_of_our_step_and_of_a_trainings_mean_step() -> None:
    phases = dict.fromkeys(PHASES, 0.1)
    assert shares(side("rlserve", 0.5, phases_s=phases).outcomes, STEP) == dict.fromkeys(PHASES, pytest.approx(0.2))
    training = side("rlserve", 50.0, phases_s=phases, remarks={"s a step": 0.2})
    assert shares(training.outcomes, CASES["score"]) == dict.fromkeys(PHASES, pytest.approx(0.5))
    assert shares(side("rlserve", 0.5).outcomes, STEP) == {}


def test_table_has_a_row_a_case_and_says_who_is_missing() -> None:
    phases = dict(zip(PHASES, (0.5, 0.1, 0.0, 0.3, 0.1), strict=True))
    results = [
        result(STEP, side("rlserve", 1.0, 1.0, phases_s=phases), side("trl-grpo", 3.0, 4.0)),
        result(MEMORY, side("rlserve", 20.0), side("deepspeed", missing="not installed: no Python was named for it")),
    ]
    output = io.StringIO()
    Console(file=output, width=170).print(table(results))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.getvalue().splitlines() if "│" in line]
    assert rows == [
        ["grpo-short", "s a step", "1", "3.5", "3.50", "3.00–4.00", "≥ 3", "50%", "10%", "0%", "30%", "10%"],
        ["memory-4-ranks", "bytes a parameter", "20", "not installed", *[""] * 8],
    ]


def test_report_is_json_with_circumstances_checks_and_every_round() -> None:
    content = json.loads(json.dumps(report([result(STEP, side("rlserve", 1.0), side("trl-grpo", 4.0))], num_threads=2)))
    assert {"date", "machine", "commit", "versions", "checks", "cases"} <= set(content)
    assert content["versions"] == {"rlserve": {"rlserve": "1"}, "trl-grpo": {"trl-grpo": "1"}}
    assert content["checks"] == [
        {"name": "trainer: grpo-short, trl-grpo ÷ ours", "value": 4.0, "bar": 3.0, "met": True},
    ]
    assert content["cases"][0]["peer"]["outcomes"][0]["value"] == 4.0


def test_a_round_of_different_work_counts_for_neither() -> None:
    ours, peer = PeerResult(peer="rlserve"), PeerResult(peer="trl-grpo")
    for work in ({"updates": 1}, {"updates": 2}):
        ours.outcomes.append(Outcome(value=1.0, work={"updates": 1}))
        peer.outcomes.append(Outcome(value=1.0, work=work))
        _compare_work(ours, peer)
    assert (len(ours.outcomes), len(peer.outcomes)) == (1, 1)
    assert "did other work: {'updates': 2}" in (peer.missing or "")


def test_smoke_stands_for_every_peer_and_measures_nothing() -> None:
    assert {case.peer for case in SMOKE} == set(PEERS) == {case.peer for case in CASES.values()}
    assert set(PEERS) < set(REQUIRED_MODULE)
    assert all(case.bar is None for case in SMOKE)
    assert chosen(["grpo-long", "smoke"]) == [CASES["grpo-long"], *SMOKE]


def test_lengths_are_drawn_for_each_answer_and_are_the_same_everywhere() -> None:
    case = CASES["ppo-long"]
    lengths = answer_lengths(case, 3)
    assert len(lengths) == 512
    assert min(lengths) >= 50
    assert max(lengths) <= 250
    assert lengths == answer_lengths(CASES["grpo-long"], 3)
    assert lengths != answer_lengths(case, 4)


def test_steps_take_the_prompts_in_order_and_begin_again() -> None:
    records = [Record(prompt=str(index), answer="") for index in range(6)]
    case = replace(STEP, num_prompts=2)
    prompts = [[record.prompt for record in records_of_step(records, case, step)] for step in range(4)]
    assert prompts == [["0", "1"], ["2", "3"], ["4", "5"], ["0", "1"]]


def test_an_assignment_survives_json() -> None:
    assignment = Assignment(case=STEP, model_folder="model", data_folder="data", num_threads=2)
    assert assignment_from(json.loads(json.dumps(asdict(assignment)))) == assignment


def test_turns_are_read_and_answered_a_line_each_until_the_input_ends() -> None:
    answers = io.StringIO()
    turns = Turns(io.StringIO('{"command": "turn 2", "turn": {"index": 2, "num_steps": 5}}\n'), answers)
    assert turns.next() == Turn(index=2, num_steps=5)
    turns.answer(Outcome(value=1.5, work={"updates": 5}))
    assert turns.next() is None
    assert Outcome(**json.loads(answers.getvalue())) == Outcome(value=1.5, work={"updates": 5})
    assert Turn(index=2, num_steps=5).first_step == 10


def test_forced_answers_end_with_the_end_token_and_nowhere_before() -> None:
    lengths = ForcedLengths(eos_token_id=EOS, pad_token_id=PAD)
    lengths.expect([1, 3])
    num_tokens, ended = [0, 0], [False, False]
    token_ids = torch.zeros(2, 4, dtype=torch.long)
    for _ in range(3):
        scores = lengths(token_ids, torch.zeros(2, 5))
        drawn = scores.argmax(dim=1)
        for row in range(2):
            if not ended[row]:
                num_tokens[row] += 1
                is_end = bool(drawn[row] == EOS)
                assert bool(torch.isfinite(scores[row, EOS])) == is_end
                assert int(torch.isfinite(scores[row]).sum()) == (1 if is_end else 3)
                ended[row] = is_end
        token_ids = torch.cat([token_ids, drawn[:, None]], dim=1)
    assert num_tokens == [1, 3]
    assert ended == [True, True]


def test_both_sides_wait_passively_with_the_threads_that_were_asked_for() -> None:
    environment = environment_of({"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "1"}, 2)
    assert (environment["OMP_WAIT_POLICY"], environment["OMP_NUM_THREADS"]) == ("passive", "2")
