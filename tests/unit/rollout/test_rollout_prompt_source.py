"""The endless stream of prompts: its order, its place in a checkpoint, and what it is not resumed on."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from rollout_data_files import config, load, sums, write_jsonl
from rollout_tokenizers import character_tokenizer

from rlserve.errors import DataError
from rlserve.rollout.encoder import PROMPT_EMPTY, PROMPT_TOO_LONG
from rlserve.rollout.prompt_source import load_prompts


def test_held_out_and_training_rows_share_none_and_leave_none_out(tmp_path: Path) -> None:
    prompts = load(write_jsonl(tmp_path / "sums.jsonl", sums(20)), num_held_out=5)
    training = [prompts.source.next() for _ in range(15)]
    assert prompts.source.num_prompts == 15
    assert sorted(group.prompt_text for group in (*prompts.held_out, *training)) == sorted(
        row["prompt"] for row in sums(20)
    )
    assert all(group.prompt_text == f"{group.row}+1=" and group.answer == str(group.row + 1) for group in training)


def test_the_held_out_rows_do_not_depend_on_the_seed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", sums(20))
    splits = [
        load_prompts(
            config(path, num_held_out=5), character_tokenizer(), seed=seed, max_prompt_tokens=9, prompts_per_step=1
        ).held_out
        for seed in (0, 1)
    ]
    assert [group.row for group in splits[0]] == [group.row for group in splits[1]]


def test_every_epoch_hands_out_every_row_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    source = load(write_jsonl(tmp_path / "sums.jsonl", sums(31))).source
    groups = [source.next() for _ in range(60)]
    epochs = [[group.row for group in groups[:30]], [group.row for group in groups[30:]]]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(set(epochs[0])) == 30
    assert epochs[0] != epochs[1]
    assert [group.id for group in groups] == [f"{epoch}:{row}" for epoch in (0, 1) for row in epochs[epoch]]
    assert [group.position for group in groups] == list(range(60))


def test_without_shuffling_rows_come_in_order(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", sums(3))
    source = load(path, shuffle=False, held_out_path=str(path)).source
    assert [source.next().row for _ in range(6)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("num_before", [0, 4, 9, 10, 20, 25])
def test_a_restored_source_goes_on_where_it_stopped(tmp_path: Path, num_before: int) -> None:
    """At the end of an epoch (10 and 20 of 10 prompts) the next one begins, and none is left out."""
    path = write_jsonl(tmp_path / "sums.jsonl", sums(11))
    source = load(path).source
    before = [source.next() for _ in range(num_before)]
    saved = json.loads(json.dumps(source.snapshot()))
    after = [source.next() for _ in range(15)]
    restored = load(path).source
    restored.restore(saved)
    assert restored.position == num_before
    assert [restored.next().id for _ in range(15)] == [group.id for group in after]
    assert [restored.get(group.id, position=group.position).id for group in before] == [group.id for group in before]
    assert restored.position == num_before + 15


def test_a_run_is_not_resumed_on_another_number_of_prompts(tmp_path: Path) -> None:
    source = load(write_jsonl(tmp_path / "sums.jsonl", sums(11))).source
    first = source.next()
    other = load(write_jsonl(tmp_path / "other.jsonl", sums(12))).source
    with pytest.raises(DataError, match=r"10 of .*other\.jsonl were used, and now there are 11"):
        other.restore(source.snapshot())
    with pytest.raises(DataError, match=f"where prompt {first.id}x was"):
        source.get(f"{first.id}x", position=0)


@pytest.mark.parametrize("change", ["reversed", "prompt", "answer"])
def test_a_run_is_not_resumed_on_data_that_were_edited_to_the_same_length(tmp_path: Path, change: str) -> None:
    records = sums(20)
    path = write_jsonl(tmp_path / "sums.jsonl", records)
    saved = load(path, held_out_path=str(path)).source.snapshot()
    if change == "reversed":
        records.reverse()
    else:
        records[7][change] = "9"
    source = load(write_jsonl(path, records), held_out_path=str(path)).source
    line = 1 if change == "reversed" else 8
    with pytest.raises(DataError, match=rf"prompt or answer at {path}:{line} is not what it was .*restore {path}"):
        source.restore(saved)


def test_a_run_is_not_resumed_on_other_held_out_prompts(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", sums(5))
    held_out = write_jsonl(tmp_path / "held_out.jsonl", sums(3))
    saved = load(path, held_out_path=str(held_out)).source.snapshot()
    for records, message in (
        (sums(4), "3 of .* now there are 4"),
        (list(reversed(sums(3))), rf"at {held_out}:1 is not"),
    ):
        source = load(path, held_out_path=str(write_jsonl(held_out, records))).source
        with pytest.raises(DataError, match=message):
            source.restore(saved)


def test_a_run_is_resumed_on_the_same_data_written_in_another_way(tmp_path: Path) -> None:
    records = sums(20)
    path = write_jsonl(tmp_path / "sums.jsonl", records)
    saved = load(path).source.snapshot()
    path.write_text("\n".join(json.dumps(dict(reversed(record.items())), indent=None) for record in records))
    load(path).source.restore(saved)


def test_prompts_that_cannot_be_used_say_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [{"prompt": prompt, "answer": "0"} for prompt in ("1+1=", "111111111+1=", "§")]
    path = write_jsonl(tmp_path / "sums.jsonl", records)
    held_out = write_jsonl(tmp_path / "held_out.jsonl", sums(2))
    source = load(path, shuffle=False, held_out_path=str(held_out), max_prompt_tokens=5).source
    assert [source.next().drop_reason for _ in range(3)] == [None, PROMPT_TOO_LONG, PROMPT_EMPTY]
    assert (
        "prompts of more than 5 tokens are left out and counted as prompt_too_long; the longest has 12" in caplog.text
    )


def test_held_out_prompts_that_cannot_be_used_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", sums(12))
    held_out = load(path, held_out_path=str(path), num_held_out=12, max_prompt_tokens=4).held_out
    assert [group.prompt_text for group in held_out] == [f"{number}+1=" for number in range(10)]
    assert "2 of 12 held-out prompts" in caplog.text


def test_of_a_held_out_file_the_first_prompts_are_taken(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", sums(600))
    assert len(load(path, held_out_path=str(path), num_held_out=3).held_out) == 3
    assert len(load(path, held_out_path=str(path), num_held_out=None).held_out) == 512


def test_a_set_without_one_usable_prompt_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", sums(3))
    short = write_jsonl(tmp_path / "short.jsonl", [{"prompt": "a", "answer": "b"}])
    with pytest.raises(DataError, match="every prompt is empty or longer than 2 tokens"):
        load(path, held_out_path=str(short), max_prompt_tokens=2)
    with pytest.raises(DataError, match=r"sums\.jsonl: every held-out prompt is empty or longer than 2 tokens"):
        load(short, held_out_path=str(path), max_prompt_tokens=2)


def test_the_longest_prompt_is_found_also_among_many_that_are_too_long(tmp_path: Path) -> None:
    held_out = write_jsonl(tmp_path / "held_out.jsonl", sums(2))
    records = [{"prompt": "1" * length, "answer": "1"} for length in range(1, 60)]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    for limit in (100, 50, 5):
        longest = load(path, held_out_path=str(held_out), max_prompt_tokens=limit).longest
        assert len(longest.prompt_token_ids) == min(limit, 59) if limit > 27 else longest.drop_reason is None


def test_fewer_prompts_than_a_step_takes_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Such a run goes on, with the same prompt several times in a batch, under ids of their own."""
    path = write_jsonl(tmp_path / "sums.jsonl", sums(3))
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts(config(path), character_tokenizer(), seed=0, max_prompt_tokens=9, prompts_per_step=16)
    assert "2 prompts to train on are fewer than rollout.prompts_per_step=16" in caplog.text
    batch = [prompts.source.next() for _ in range(16)]
    assert len({group.id for group in batch}) == 16
    assert len({group.row for group in batch}) == 2
