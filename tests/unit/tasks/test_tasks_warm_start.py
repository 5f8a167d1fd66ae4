from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlserve.tasks.addition import AdditionTask
from rlserve.tasks.base import Demonstration, Record, Split, Task
from rlserve.tasks.cache import resolve_model
from rlserve.tasks.character_tokenizer import character_tokenizer
from rlserve.tasks.warm_start import IGNORED_LABEL, learning_rate_factor, make_batch, warm_start

SMALL_RECIPE = replace(
    AdditionTask.recipe,
    hidden_size=32,
    intermediate_size=32,
    num_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    num_steps=40,
    batch_size=4,
    num_warmup_steps=4,
)


class ParrotTask(Task):
    """One demonstration for ever: small models learn it at once."""

    name = "parrot"
    alphabet = "abc?"
    recipe = SMALL_RECIPE

    def records(self, *, seed: int, split: Split, count: int) -> list[Record]:
        return [Record(prompt="ab?", answer="cab")] * count

    def demonstrations(self, *, seed: int, easy: bool) -> Iterator[Demonstration]:
        while True:
            yield Demonstration(prompt="ab?", response="cab")


def generate(folder: Path, prompts: list[str], num_tokens: int) -> list[str]:
    """Greedy answers of the model in ``folder``."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    output = model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False)
    return list(tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_the_saved_folder_is_loaded_by_transformers_and_repeats_what_it_was_taught(tmp_path: Path) -> None:
    warm_start(ParrotTask(), tmp_path)
    assert generate(tmp_path, ["ab?"], num_tokens=8) == ["cab"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.architectures == ["Qwen3ForCausalLM"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for owner in (model.config, model.generation_config):
        assert owner.eos_token_id == tokenizer.eos_token_id
        assert owner.pad_token_id == tokenizer.pad_token_id
    assert model.config.vocab_size == len(tokenizer)


def test_the_same_recipe_gives_the_same_weights_and_leaves_the_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    warm_start(ParrotTask(), tmp_path / "one")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    warm_start(ParrotTask(), tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_only_responses_are_learned() -> None:
    tokenizer = character_tokenizer("abc?")
    token_ids, labels = make_batch(
        [Demonstration(prompt="ab?", response="c"), Demonstration(prompt="a?", response="bca")], tokenizer
    )
    a, b, c, question, end, pad = (*tokenizer.encode("abc?"), tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert token_ids.tolist() == [[a, b, question, c, end, pad], [a, question, b, c, a, end]]
    no = IGNORED_LABEL
    assert labels.tolist() == [[no, no, no, c, end, no], [no, no, b, c, a, end]]


def test_the_learning_rate_rises_stays_and_falls() -> None:
    recipe = replace(SMALL_RECIPE, num_steps=100, num_warmup_steps=10, decay_share=0.5)
    factors = [learning_rate_factor(step, recipe) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:51] == [1.0] * 42
    assert factors[75] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.02)
    assert factors[100] == 0.0


def test_a_tokenizer_survives_saving_and_takes_every_character(tmp_path: Path) -> None:
    character_tokenizer("01+").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    token_ids = tokenizer.encode("10+\n é1")
    assert tokenizer.decode(token_ids, skip_special_tokens=True) == "10+1"
    assert token_ids.count(tokenizer.unk_token_id) == 3
    assert tokenizer.decode([*token_ids[:3], tokenizer.eos_token_id, tokenizer.pad_token_id]) == "10+<eos><pad>"


@pytest.mark.slow
def test_the_warm_started_model_has_the_form_and_the_bad_habit() -> None:
    """The one that whole runs use too: its place in the cache follows from all that shapes it."""
    folder = resolve_model("builtin:addition")
    records = AdditionTask().records(seed=0, split="held_out", count=256)
    responses = generate(folder, [record.prompt for record in records], num_tokens=64)
    num_right, num_well_formed = 0, 0
    for record, response in zip(records, responses, strict=True):
        num_right += response.rsplit(";", maxsplit=1)[-1] == record.answer
        columns, written = response.split(";")[:-1], response.rsplit(";", maxsplit=1)[-1]
        gathered = "".join(column[-1] for column in reversed(columns))
        carried = "1" if columns and columns[-1][-2] == "1" else ""
        num_well_formed += written == carried + gathered and all(map(column_adds_up, columns))
    assert num_well_formed / 256 > 0.9
    assert 0.05 < num_right / 256 < 0.5


def column_adds_up(column: str) -> bool:
    left, right = column.split("=")
    return sum(map(int, left.split("+"))) == int(right)
