"""The update by ours and by plain PyTorch: the same gradient of the same batch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import SHAPES, model_folder
from trainer_parts.base import Assignment, Turn, TurnByTurn, Turns
from trainer_parts.batches import make_batch
from trainer_parts.cases import CASES
from trainer_parts.plain_update import PlainUpdate, _micro_batch, group_advantages, micro_batches
from trainer_parts.rlserve_update import RlserveUpdate

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "trainer.py"
CASE = replace(CASES["update-f32"], shape="tiny", num_prompts=2, num_samples=4, answer_tokens=(2, 9), prompt_tokens=3)


def test_micro_batches_have_answers_of_like_length_and_all_of_them_once() -> None:
    batch = make_batch(CASE, 128, 0)
    parts = list(micro_batches(batch, tokens_at_once=24))
    assert sorted(np.concatenate(parts).tolist()) == list(range(8))
    for part in parts:
        assert len(part) == 1 or len(part) * (int(batch.lengths[part].max()) + 3) <= 24
    longest = [int(batch.lengths[part].max()) for part in parts]
    assert longest == sorted(longest)


def test_a_micro_batch_predicts_each_answer_token_from_the_one_before() -> None:
    batch = make_batch(CASE, 128, 0)
    part = _micro_batch(batch, np.array([5, 1]), group_advantages(batch))
    starts = np.cumsum(batch.lengths + 3) - (batch.lengths + 3)
    answers = [batch.token_ids[starts[index] + 3 : starts[index] + 3 + batch.lengths[index]] for index in (5, 1)]
    assert part.targets_a.tolist() == np.concatenate(answers).tolist()
    before = [batch.token_ids[starts[index] + 2 : starts[index] + 2 + batch.lengths[index]] for index in (5, 1)]
    assert part.input_ids_SL.flatten()[part.states_a].tolist() == np.concatenate(before).tolist()
    assert float(part.weights_a.sum()) == pytest.approx(2 / batch.num_samples)


def test_both_sides_have_the_same_gradient(tmp_path: Path) -> None:
    folder = model_folder(SHAPES["tiny"], tmp_path)
    assignment = Assignment(case=CASE, model_folder=str(folder), data_folder="", num_threads=torch.get_num_threads())
    turns = Turns(sys.stdin, sys.stdout)
    peers: tuple[TurnByTurn, ...] = (RlserveUpdate(assignment), PlainUpdate(assignment))
    for index in range(2):
        ours, plain = (peer.do(Turn(index=index, num_steps=1), turns) for peer in peers)
        assert ours.work == plain.work
        assert ours.remarks["gradient norm"] == pytest.approx(plain.remarks["gradient norm"], rel=1e-3)


@pytest.mark.slow
def test_smoke_cases_without_peers_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    words = [
        "--case",
        "smoke-grpo",
        "smoke-update",
        "--threads",
        "1",
        "--json",
        str(path),
        "--model-cache",
        str(tmp_path),
    ]
    words += ["--trl-python", "no-python", "--trl-ppo-python", "no-python", "--deepspeed-python", "no-python"]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    cases = {case["peer"]["peer"]: case for case in json.loads(path.read_text())["cases"]}
    for peer, case in cases.items():
        assert case["ours"]["missing"] is None
        assert len(case["ours"]["outcomes"]) == 1
        assert (case["peer"]["missing"] is None) == (peer == "plain"), case["peer"]["missing"]
    assert cases["plain"]["ratios"][0] > 0
    assert "smoke-grpo: trl-grpo not installed" in done.stdout
