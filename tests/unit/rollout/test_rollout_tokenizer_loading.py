"""Loading a tokenizer, and what the driver process must not import for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rollout_tokenizers import CHARACTERS, character_tokenizer

from rlserve.errors import ModelError
from rlserve.rollout.tokenizer_loading import load_tokenizer


def test_a_saved_tokenizer_comes_back(tmp_path: Path) -> None:
    character_tokenizer(chat_template="{{ messages }}").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer("1+a").input_ids == [CHARACTERS.index(character) + 2 for character in "1+a"]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.chat_template) == (1, 0, "{{ messages }}")


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=rf"{tmp_path}: no tokenizer can be loaded .*model\.tokenizer_path"):
        load_tokenizer(str(tmp_path))


def test_the_driver_reads_prompts_and_finds_rewards_without_torch(tmp_path: Path) -> None:
    character_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "sums.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n' * 3)
    script = f"""
import sys
import rlserve.launch.run
from rlserve.rollout.config import DataConfig, RewardConfig
from rlserve.rollout.prompt_source import load_prompts
from rlserve.rollout.rewards.factory import create_reward
from rlserve.rollout.tokenizer_loading import load_tokenizer
config = DataConfig(path={str(tmp_path / "sums.jsonl")!r}, num_held_out=1)
tokenizer = load_tokenizer({str(tmp_path)!r})
prompts = load_prompts(config, tokenizer, seed=0, max_prompt_tokens=9, prompts_per_step=1)
create_reward(RewardConfig(function="builtins:len"))
assert (len(prompts.source.next().prompt_token_ids), len(prompts.held_out)) == (4, 1)
assert "torch" not in sys.modules, "torch was imported"
"""
    environment = {"HF_HOME": str(tmp_path / "cache"), "PATH": ""}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=120)
